"""The regime of a run, the table of recipes, and what the user's fields leave open."""

import json

import pretrain_clm
import pretrain_mlm
import pytest
import torch
from pretraining_runs import TEXTS, arguments
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from hf_tfm import TfmDecoderConfig, TfmDecoderForCausalLM, TfmEncoderConfig
from hf_tfm.artifacts.tokenizer_files import load_tokenizer
from hf_tfm.core.errors import InputError
from hf_tfm.train import pretrain_choice
from hf_tfm.train.pretrain_choice import choose_recipe, count_evaluations, fit_row
from hf_tfm.train.pretrain_model import build_model
from hf_tfm.train.pretrain_recipe import PretrainingArguments, check_pretraining, pretraining_identity
from hf_tfm.train.recipe import parse_recipe
from hf_tfm.train.regime import Regime
from hf_tfm.train.regime_table import CAUSAL, MASKED, STANDARD, Row, choose_row


OPEN = {"per_device_train_batch_size": None, "save_steps": None, "eval_steps": None}
LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
         "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}  # fmt: skip


def choose(files, out, masked=False, **changes):
    """Return recipe, arguments and choice of a run that leaves open what `changes` do not set."""
    script_recipe = pretrain_mlm.MaskedRecipe if masked else pretrain_clm.CausalRecipe
    fields = arguments(files, out, "encoder" if masked else "decoder", **{**OPEN, **changes})
    recipe, args = parse_recipe(fields, script_recipe, PretrainingArguments)
    check_pretraining(recipe, args)
    auto_class = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    config_class = TfmEncoderConfig if masked else TfmDecoderConfig
    return recipe, args, choose_recipe(recipe, args, auto_class, config_class, load_tokenizer(recipe.tokenizer))


def regime(passes: float | None = 1.0, steps: int = 100, validation_tokens: int = 1000) -> Regime:
    text = None if passes is None else round(steps * 4096 / passes)
    return Regime(steps, 4096, text, text, validation_tokens, 2_000_000, 1_000_000)


@pytest.mark.parametrize("masked", [False, True])
def test_the_regime_counts_text_and_model(files, tmp_path, masked):
    _, args, choice = choose(files, tmp_path, masked, gradient_accumulation_steps=2)
    tokenizer = AutoTokenizer.from_pretrained(files / ("encoder" if masked else "decoder"))
    ids = tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    ends = 0 if masked else 2  # an encoder's stand around pieces of rows
    assert choice.regime.text_tokens == sum(len(row) + ends for row in ids)
    assert choice.regime.text_bytes == sum(len(text.encode()) for text in TEXTS)
    assert choice.regime.tokens == 8 * 2 * 16 * 32 and args.per_device_train_batch_size == 16
    assert choice.regime.passes == pytest.approx(8 * 2 * 16 * 32 / choice.regime.text_tokens)
    auto_class, config_class = (
        (AutoModelForMaskedLM, TfmEncoderConfig) if masked else (AutoModelForCausalLM, TfmDecoderConfig)
    )
    recipe, _, _ = choose(files, tmp_path, masked)
    model, _ = build_model(auto_class, config_class, tokenizer, recipe)
    assert choice.regime.parameters == sum(p.numel() for p in model.parameters())
    assert choice.regime.other_parameters == choice.regime.parameters - model.get_input_embeddings().weight.numel()
    assert choice.regime.tokens_per_parameter == pytest.approx(8192 / choice.regime.parameters)


def test_a_regime_is_described_in_one_line():
    assert regime(6.1, 1000).describe().startswith("6.1 passes over 671,475 tokens (671,475 bytes) of text; 2 tokens")
    assert "is a stream" in regime(None).describe() and "\n" not in regime(None).describe()


def test_a_stream_has_unknown_passes(files, tmp_path):
    _, _, choice = choose(files, tmp_path, streaming="true")
    assert choice.name == "auto" and choice.regime.passes is None


def test_the_last_row_that_is_small_enough_is_taken():
    rows = (Row("a"), Row("b", from_steps=1000), Row("c", from_passes=4), Row("d", from_passes=4, from_steps=1000))
    reasons = [choose_row(rows, regime(*sizes)).reason for sizes in [(1, 999), (1, 1000), (4, 999), (9, 4000)]]
    assert reasons == ["a", "b", "c", "d"] and choose_row(rows, regime(None, 50)).reason == "a"


@pytest.mark.parametrize("rows", [CAUSAL, MASKED])
def test_each_table_has_a_row_for_the_smallest_run(rows):
    assert choose_row(rows, regime(0.0001, 1)) is rows[0]


def test_evaluations_take_a_tenth_of_the_time_at_most():
    row = Row("", evaluations=40)
    assert count_evaluations(row, regime(steps=1000, validation_tokens=10_000)) == 40
    # Evaluations of 60,000 tokens cost as much as training on 20,000: 20 of them a tenth of 1,000 steps of 4,096.
    assert count_evaluations(row, regime(steps=1000, validation_tokens=60_000)) == 20
    assert count_evaluations(row, regime(steps=10, validation_tokens=60_000)) == STANDARD.evaluations


@pytest.mark.parametrize(
    "changes, name",
    [({}, "auto"), ({"weight_decay": 0.1}, "standard"), ({"per_device_train_batch_size": 4}, "standard"),
     ({"recipe": "auto", "weight_decay": 0.1}, "auto"), ({"recipe": "standard"}, "standard"),
     ({"load_best_model_at_end": "false"}, "auto"), ({"dropout": 0.0}, "standard")],
)  # fmt: skip
def test_auto_is_the_default_without_optimization_fields(files, tmp_path, changes, name):
    recipe, args, choice = choose(files, tmp_path, **changes)
    assert choice.name == recipe.recipe == name and choice.describe()[0].startswith(f"{name}: ")
    for field, value in changes.items():
        if field in choice.settings:
            assert choice.settings[field] == (value if value != "false" else False) and field in choice.given


def test_the_standard_recipe_is_what_runs_had_before_there_were_others(files, tmp_path):
    recipe, args, choice = choose(files, tmp_path, masked=True, recipe="standard")
    assert (recipe.optimizer, recipe.embedding_learning_rate, recipe.dropout) == ("muon", None, None)
    assert (recipe.schedule, recipe.warmup, recipe.decay, recipe.ema_decay) == ("wsd", 0.05, 0.5, 0.0)
    assert (recipe.masking_rates, recipe.causal_first) == ([0.3, 0.15], 0.0)
    assert (args.learning_rate, args.weight_decay, args.per_device_train_batch_size) == (None, None, 16)
    assert (args.eval_steps, args.load_best_model_at_end, args.metric_for_best_model) == (0.2, False, None)
    assert recipe.early_decay_patience == 0


@pytest.fixture
def rows(monkeypatch):
    """A table of one row with a value for every field."""
    row = Row(
        "for tests", optimizer="normuon", learning_rate=0.02, embedding_learning_rate=0.01, weight_decay=0.3,
        dropout=0.1, token_noise=0.05, ema_decay=0.9, patience=0.2, evaluations=20, load_best_model_at_end=True,
        per_device_train_batch_size=32, masking_rates=(0.4,), causal_first=0.25,
    )  # fmt: skip
    monkeypatch.setattr(pretrain_choice, "CAUSAL", (row,))
    monkeypatch.setattr(pretrain_choice, "MASKED", (row,))


def test_the_row_fills_what_is_open(files, tmp_path, rows):
    recipe, args, choice = choose(files, tmp_path, masked=True)
    assert (recipe.optimizer, recipe.dropout, recipe.ema_decay, recipe.causal_first) == ("normuon", 0.1, 0.9, 0.25)
    assert (args.weight_decay, args.per_device_train_batch_size, recipe.masking_rates) == (0.3, 32, [0.4])
    assert (args.load_best_model_at_end, args.metric_for_best_model, args.greater_is_better) == (True, "loss", False)
    # A step has a quarter of the tokens that the rates of the table are for.
    assert (args.learning_rate, recipe.embedding_learning_rate) == (0.01, 0.005)
    assert choice.regime.tokens_per_step == 32 * 32


def test_the_users_fields_win(files, tmp_path, rows):
    fields = {
        "recipe": "auto", "optimizer": "normuon", "learning_rate": 0.5, "weight_decay": 0.0, "dropout": 0.0,
        "ema_decay": 0.0, "early_decay_patience": 0, "per_device_train_batch_size": 8, "causal_first": 0.0,
    }  # fmt: skip
    recipe, args, choice = choose(files, tmp_path, masked=True, eval_steps=4, **fields)
    for name, value in fields.items():
        assert getattr(recipe if hasattr(recipe, name) else args, name) == value, name
    assert args.eval_steps == 4 and recipe.masking_rates == [0.4]
    given = next(line for line in choice.describe() if line.startswith("as given: "))
    assert "learning_rate 0.5" in given and "masking_rates" not in given


def test_patience_is_a_share_of_the_evaluations():
    patience = [fit_row(Row("", patience=0.1), regime(), None, count)["early_decay_patience"] for count in (5, 10, 40)]
    assert patience == [2, 2, 4] and fit_row(Row(""), regime(), None, 40)["early_decay_patience"] == 0


def test_weight_decay_forgets_in_passes():
    row = Row("", learning_rate=0.01, memory_passes=2.0, weight_decay=0.1)
    # 25 steps a pass: in two passes 50 steps, each of which shrinks a weight by the rate times the decay.
    assert fit_row(row, regime(passes=4, steps=100), None, 5)["weight_decay"] == pytest.approx(1 / (50 * 0.01))
    assert fit_row(row, regime(passes=4, steps=100), 0.02, 5)["weight_decay"] == pytest.approx(1 / (50 * 0.02))
    assert fit_row(row, regime(passes=None), None, 5)["weight_decay"] == 0.1


def test_token_noise_is_in_the_inputs_of_training_alone(files, tmp_path, monkeypatch, quick_runs, capsys):
    """The preflight does not report what was asked for."""
    batches = {"train": [], "eval": []}
    forward = TfmDecoderForCausalLM.forward

    def record(self, input_ids=None, labels=None, **kwargs):
        if labels is not None:
            batches["train" if self.training else "eval"].append((input_ids, labels))
        return forward(self, input_ids=input_ids, labels=labels, **kwargs)

    monkeypatch.setattr(TfmDecoderForCausalLM, "forward", record)
    assert pretrain_clm.main(arguments(files, tmp_path / "run", max_steps=2, token_noise=0.3, compile="off")) == 0
    assert "are not the token at their place" not in capsys.readouterr().out

    def changed(pairs):
        [ids, labels] = [torch.cat([pair[part].flatten() for pair in pairs]) for part in (0, 1)]
        return float((ids != labels)[labels != -100].float().mean())

    assert 0.2 < changed(batches["train"]) < 0.4 and changed(batches["eval"]) == 0


def test_token_noise_is_not_for_denoisers(files, tmp_path, rows):
    recipe, _, choice = choose(files, tmp_path, denoisers='{"R": 1.0}')
    assert not recipe.token_noise and any("without token_noise" in note for note in choice.notes)
    with pytest.raises(InputError, match="--token_noise: it is for next tokens"):
        choose(files, tmp_path, denoisers='{"R": 1.0}', token_noise=0.1)


def test_rates_of_the_row_are_for_its_optimizer(files, tmp_path, rows):
    recipe, args, _ = choose(files, tmp_path, recipe="auto", optimizer="adamw")
    assert args.learning_rate is recipe.embedding_learning_rate is args.weight_decay is None


def test_what_a_run_cannot_have_is_left_out_or_refused(files, tmp_path, rows):
    (tmp_path / "llama.json").write_text(json.dumps(LLAMA))
    llama = {"model": tmp_path / "llama.json", "model_overrides": "{}", "eval_strategy": "no"}
    recipe, args, choice = choose(files, tmp_path, **llama)
    assert recipe.dropout is None and not recipe.early_decay_patience and not args.load_best_model_at_end
    assert len(choice.notes) == 3 and "without dropout: LlamaConfig has no dropout" in choice.notes[0]
    for field, complaint in (
        ({"dropout": 0.1}, "--dropout: LlamaConfig has no dropout after layers"),
        ({"early_decay_patience": 2}, "--early_decay_patience: validation decides in a run that evaluates"),
        ({"load_best_model_at_end": "true", "eval_strategy": "steps", "save_strategy": "no"}, "save"),
    ):
        with pytest.raises(InputError, match=complaint):
            choose(files, tmp_path, **{**llama, **field})
    with pytest.raises(InputError, match="only the schedule wsd has a decay"):
        choose(files, tmp_path, schedule="cosine", early_decay_patience=2)
    with pytest.raises(InputError, match="choose auto or standard"):
        choose(files, tmp_path, recipe="best")
    with pytest.raises(InputError, match="say the same"):
        choose(files, tmp_path, dropout=0.1, model_overrides='{"hidden_dropout": 0.2}')


def test_evaluations_that_decide_belong_to_the_identity_of_a_run(files, tmp_path):
    identities = []
    for changes in ({}, {"eval_steps": 4}, {"early_decay_patience": 0}, {"early_decay_patience": 0, "eval_steps": 4}):
        recipe, args, _ = choose(files, tmp_path, recipe="auto", **changes)
        identities.append(pretraining_identity(recipe, args))
    assert identities[0] != identities[1] and identities[2] == identities[3]
    assert "recipe" not in identities[0]  # a name for the fields, which decide


@pytest.mark.parametrize("masked", [False, True])
def test_a_run_reports_its_regime_and_recipe(files, tmp_path, capsys, masked):
    script, style = (pretrain_mlm, "encoder") if masked else (pretrain_clm, "decoder")
    assert script.main(arguments(files, tmp_path / "run", style, **{**OPEN, "max_steps": 2})) == 0
    output = capsys.readouterr().out
    assert " passes over " in output and "recipe     auto: " in output and "early_decay_patience 2" in output
    assert ("masking_rates" in output) == masked
    record = json.loads((tmp_path / "run" / "run_record.json").read_text())
    assert record["recipe"]["name"] == "auto" and record["recipe"]["decay"] == 0.5
    assert record["regime"]["parameters"] == record["model"]["parameters"]
