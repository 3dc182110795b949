"""Each figure of a card comes from its record, its metadata is valid, and its code runs."""

import copy
import json
import re
from pathlib import Path

import pytest
import tiny
import transformers
import yaml
from hub_server import complaints
from huggingface_hub import ModelCard, parse_eval_result_entries
from transformers import GPT2Config, GPT2LMHeadModel

from hf_tfm.apps.cli import main
from hf_tfm.artifacts.card import render_card, rewrite_card, write_card, write_results_card
from hf_tfm.artifacts.card_values import energy_text, native_families
from hf_tfm.artifacts.head_table import head_of_class
from hf_tfm.artifacts.measurements import hub_results, read_evaluation
from hf_tfm.artifacts.open import auto_class_of
from hf_tfm.artifacts.record import model_facts
from hf_tfm.convert.native import export_model


pytestmark = pytest.mark.quick


def estimate(value: float, n: int) -> dict:
    return {"value": value, "low": value - 0.0123, "high": value + 0.0131, "n": n}


RUN = {
    "job": "a job",
    "command": "python training/pretrain_clm.py --max_steps 321",
    "started": "2026-03-04T05:06:07Z",
    "seed": 4711,
    "commit": "8c11f0d5e2",
    "versions": {"python": "3.11.7", "hf-tfm": "0.1.0", "transformers": "5.23.0", "torch": "2.13.0+cpu"},
    "hardware": {"cpu": "Some CPU", "cpu_cores": 6, "threads": 3, "memory_gib": 23.5},
    "steps": 321,
    "seconds": 1234.5,
    "license": "apache-2.0",
}
PRETRAINED = {
    **RUN,
    "block_length": 48,
    "tokens": 737_283,
    "data": [
        {"name": "tales.jsonl, hub:someone/stories:small:train", "split": "train", "sha256": "aa11", "documents": 1396},
        {"name": "hub:someone/stories:small:validation", "split": "validation", "bytes": 570_097, "tokens": 164_098},
    ],
    "results": {"loss": 4.642982993, "bits_per_byte": 1.93542534, "predicted_tokens": 52_726},
    "samples": ["Once upon a time there were 99 bears."],
}
FINETUNED = {
    **RUN,
    "base_model": "someone/encoder",
    "measured_on": "test",
    "data": [
        {"name": "bank/train.jsonl", "split": "train", "records": 9003, "sha256": "bb22", "license": "cc-by-4.0"},
        {"name": "bank/test.jsonl", "split": "test", "records": 3081, "sha256": "cc33", "license": "cc-by-4.0"},
    ],
    "overlap_with_train": {"validation": 0, "test": 7},
    "results": {"accuracy": estimate(0.9159, 3081), "macro_f1": estimate(0.9061, 3081)},
    "baselines": {"majority": {"accuracy": estimate(0.0229, 3081)}},
}
ADAPTER = {"type": "lora", "rank": 8, "alpha": 16, "parameters": 12_345, "share": 0.0817}
EVALUATION = {
    "model": {"name": "tales", "sha256": "dd44"},
    "command": "python training/evaluate_model.py --model tales",
    "finished": "2026-03-05T05:06:07Z",
    "tasks": [
        {
            "task": "minimal pairs",
            "data": "hub:someone/pairs",
            "settings": {},
            "results": {"accuracy by PLL": estimate(0.7113, 670)},
        },
        {
            "task": "text",
            "data": "text/test.jsonl.gz",
            "settings": {},
            "results": {"bits_per_byte": estimate(1.8765, 52), "bits_per_byte, tales": estimate(1.7654, 11)},
            "samples": ["There were 77 more bears."],
        },
    ],
}
CASES = {
    "decoder": ("TfmDecoderForCausalLM", {}, PRETRAINED),
    "chat": ("TfmDecoderForCausalLM", {}, {**FINETUNED, "chat": "Who is there?"}),
    "gpt2": ("TfmDecoderForCausalLM", {"shape": "gpt2"}, PRETRAINED),
    "vaswani2017": ("TfmDecoderForCausalLM", {"shape": "vaswani2017"}, PRETRAINED),
    "encoder": ("TfmEncoderForMaskedLM", {}, PRETRAINED),
    "base": ("TfmEncoderModel", {}, {}),
    "classifier": ("TfmEncoderForSequenceClassification", {}, FINETUNED),
    "tagger": ("TfmEncoderForTokenClassification", {}, FINETUNED),
    "questions": ("TfmEncoderForQuestionAnswering", {}, FINETUNED),
    "choices": ("TfmEncoderForMultipleChoice", {}, {**FINETUNED, "measured_on": "validation"}),
    "adapter": ("TfmEncoderForSequenceClassification", {}, {**FINETUNED, "adapter": ADAPTER}),
    "merged": ("TfmEncoderForSequenceClassification", {}, {**FINETUNED, "adapter": {**ADAPTER, "merged": True}}),
    "embeddings": ("TfmEncoderModel", {}, {**FINETUNED, "library": "sentence-transformers"}),
}


def record_of(case: str) -> dict:
    name, shape, rest = CASES[case]
    return copy.deepcopy({**rest, "model": model_facts(tiny.build(name, **shape))})


NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?%?(?!\w)")
# Numbers of the template: 95 % intervals, the watts of Green Algorithms, the usual tokens for each parameter.
FIXED = {"95", "12", "0.3725", "20"}


def figures_of(card: str) -> set[str]:
    """Return the numbers of a card outside its metadata, code and samples."""
    stated = re.sub(r"\A---\n.*?\n---\n|```.*?```", "", card, flags=re.DOTALL)
    return {number.rstrip(",") for number in NUMBER.findall(stated)}


def ways_to_write(value) -> set[str]:
    if isinstance(value, bool) or value is None:
        return set()
    if isinstance(value, str):
        return set(NUMBER.findall(value))
    ways = {f"{value}", f"{value:,}", f"{value:.3f}"}
    if isinstance(value, float):
        ways |= {f"{value:.4g}", f"{value:.2%}", *([f"{value:,.0f}"] if value >= 1000 else [])}
    return ways


def written(value) -> set[str]:
    """Return all forms in which a card may write the values of a record."""
    if isinstance(value, dict):
        return set().union(*map(written, value.values()))
    if isinstance(value, list):
        return set().union(*map(written, value))
    return ways_to_write(value)


def derived(record: dict) -> set[str]:
    """Return the numbers that a card computes from its record."""
    numbers = {str(len(record["model"]["config"].get("id2label") or {}))}
    if "seconds" in record:
        hardware = record["hardware"]
        watt_hours = (12 * hardware["threads"] + 0.3725 * hardware["memory_gib"]) * record["seconds"] / 3600
        numbers |= {f"{record['seconds'] / 60:.1f}", f"{watt_hours:.4g}"}
    if "tokens" in record:
        numbers.add(f"{record['tokens'] / record['model']['parameters']:.4g}")
    return numbers


def without_source(card: str, record: dict, evaluation: dict | None) -> set[str]:
    return figures_of(card) - written(record) - written(evaluation or {}) - derived(record) - FIXED


@pytest.mark.parametrize("evaluation", [None, EVALUATION], ids=["", "evaluated"])
@pytest.mark.parametrize("case", CASES)
def test_every_figure_is_in_the_record(case, evaluation):
    record = record_of(case)
    card = render_card(record, True, evaluation)
    assert not without_source(card, record, evaluation)
    for figure in ("4.643", "0.916 [0.904, 0.929]", "0.711 [0.699, 0.724]", "737,283"):
        if figure in card:
            assert without_source(card.replace(figure, "0.9876"), record, evaluation) == {"0.9876"}


def leaves(value, path=()):
    if isinstance(value, dict):
        for key, one in value.items():
            yield from leaves(one, (*path, key))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from leaves(one, (*path, number))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path, value


@pytest.mark.parametrize("case", ["decoder", "classifier", "adapter"])
def test_every_figure_of_a_record_is_on_the_card(case):
    """Every figure of the run, changed in the record, changes the card."""
    record = record_of(case)
    before, silent = render_card(record, True, None), set()
    for path, value in leaves({name: part for name, part in record.items() if name != "model"}):
        changed = copy.deepcopy(record)
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value * 2 + 1
        if render_card(changed, True, None) == before:
            silent.add(path)
    assert silent == set(), silent


@pytest.mark.parametrize("case", CASES)
def test_metadata_is_valid_and_holds_the_exact_figures(case):
    record = record_of(case)
    card = render_card(record, True, EVALUATION)
    assert complaints(card) == []
    data = ModelCard(card).data
    assert data.license == record.get("license") and "hf_tfm" in data.tags
    found = {(result.dataset_name, result.metric_type): result.metric_value for result in data.eval_results}
    split = record.get("measured_on", "validation")
    source = next((source["name"] for source in record.get("data", []) if source["split"] == split), split)
    for name, figure in record.get("results", {}).items():
        if name != "predicted_tokens":
            assert found[source, name] == (figure["value"] if isinstance(figure, dict) else figure)
    assert found["hub:someone/pairs", "accuracy"] == 0.7113
    if "adapter" in record:
        relation = "finetune" if record["adapter"].get("merged") else "adapter"
        assert (data.base_model, data.base_model_relation) == ("someone/encoder", relation)
        assert data.library_name == ("peft" if relation == "adapter" else "transformers")
    if case == "decoder":
        assert data.datasets == ["someone/stories"]


@pytest.mark.parametrize("case", CASES)
def test_values_without_source_are_left_out(case):
    """A model without a record gets a card with its architecture and the code that loads it."""
    card = render_card({"model": record_of(case)["model"]})
    for words in ("nformation", "None", "null", "[]", "{}", "| |", "## Results", "Run:", "## Data", "Wh", "\n\n\n"):
        assert words not in card, words
    assert "```python" in card and complaints(card) == []


def test_cards_are_short():
    for case in CASES:
        assert render_card(record_of(case), True, EVALUATION).count("\n") <= 100, case


def test_local_attention_is_named():
    record = record_of("decoder")
    assert "a window of" not in render_card(record)
    record["model"]["config"] |= {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}
    assert "a window of 3 tokens in 1 of 2 blocks\n" in render_card(record)


def test_switches_without_native_family_are_named():
    record = record_of("decoder")
    assert "No native family has" not in render_card(record)
    record["model"]["config"] |= {"attention_gate": True, "value_residual": True}
    assert "- No native family has: a gate on each attention head, embeddings added to the values" in render_card(
        record
    )


def test_all_commands_that_made_the_weights_are_named():
    record = record_of("decoder") | {"weights": "bfloat16, rounded after the run"}
    assert "hf-tfm merge" not in render_card(record) and "hf-tfm export MODEL ROUNDED --to bf16" in render_card(record)
    record["adapter"] = {"type": "lora", "rank": 4, "alpha": 8, "parameters": 10, "share": 0.1, "merged": True}
    merge, export = (render_card(record).index(command) for command in ("hf-tfm merge", "hf-tfm export MODEL"))
    assert merge < export


def test_figures_on_different_numbers_of_records_have_their_counts():
    record = record_of("chat")
    record["results"]["stops_by_itself"] = estimate(0.83, 100)
    card = render_card(record)
    assert "n 3,081" in card and "n 100 |" in card and "On 3,081" not in card


def test_energy_names_its_source_or_is_left_out():
    record = record_of("decoder")
    watt_hours = (3 * 12 + 23.5 * 0.3725) * 1234.5 / 3600
    assert energy_text(record).startswith(f"{watt_hours:.4g} Wh, estimated with the defaults of Green Algorithms")
    measured = {**record, "joules": {"cpu": 54_321.0, "memory": 4321.0}, "joules_by": "codecarbon 3.3.2"}
    text = "16.29 Wh of the whole machine: cpu 54,321 J, memory 4,321 J; by codecarbon 3.3.2"
    card = render_card(measured)
    assert energy_text(measured) == text and f"- Energy: {text}\n" in card and "Green" not in card
    stated = energy_text({**measured, "watts": 65.0})
    assert stated.startswith(f"{65 * 1234.5 / 3600:.4g} Wh") and "65 W as stated" in stated
    record["hardware"] |= {"gpu": "Some GPU", "gpus": 2}  # its power is unknown
    assert energy_text(record) is None and "Energy" not in render_card(record)
    assert energy_text({}) is None


def test_results_on_datasets_of_the_hub_are_written_for_it():
    files = hub_results(record_of("decoder"), EVALUATION)
    assert set(files) == {"someone--stories.yaml", "someone--pairs.yaml"}
    (story,) = parse_eval_result_entries(yaml.safe_load(files["someone--stories.yaml"]))
    assert (story.dataset_id, story.task_id, story.value) == ("someone/stories", "small", 1.93542534)
    assert story.notes == "bits_per_byte, split validation"
    (pairs,) = parse_eval_result_entries(yaml.safe_load(files["someone--pairs.yaml"]))
    assert (pairs.value, pairs.task_id, pairs.date) == (0.7113, "default", "2026-03-05T05:06:07Z")
    assert "n 670" in pairs.notes
    assert hub_results(record_of("classifier"), None) == {}
    here = record_of("decoder")
    here["data"][1]["name"] = "hub:/data/stories"  # read like one, but a folder
    assert hub_results(here, None) == {} and ModelCard(render_card(here)).data.datasets == ["someone/stories"]


def test_samples_stay_in_their_block():
    record = {**record_of("decoder"), "samples": ["```\n# A title of its own\n````"]}
    assert "`````text\n```\n# A title of its own\n````\n`````" in render_card(record)


@pytest.mark.parametrize("name", ["run_record.json", "evaluation.json"])
@pytest.mark.parametrize("text", ["{", "[1]", "{}"])
def test_damaged_files_are_named_in_one_line(folder, name, text, capsys):
    before = (folder / "run_record.json").read_text()
    (folder / name).write_text(text)
    assert main(["card", str(folder), "--name", "Tales"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{name}: " in error
    assert not (folder / "README.md").exists()
    assert (folder / "run_record.json").read_text() == (text if name == "run_record.json" else before)


@pytest.mark.parametrize("case", ["decoder", "chat", "encoder", "base", "classifier", "tagger", "questions", "choices"])
def test_every_way_to_load_it_runs(case, tmp_path, tokenizer, capsys):
    """The card's code loads the model; with this package installed it needs no `trust_remote_code`."""
    record = record_of(case)
    model = tiny.build(CASES[case][0], **CASES[case][1])
    model.save_pretrained(tmp_path)
    if case == "chat":
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "run_record.json").write_text(json.dumps(record))
    write_card(tmp_path)
    card = (tmp_path / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert "trust_remote_code=True" in block
    namespace = {}
    code = re.sub(r"max_new_tokens=\d+", "max_new_tokens=4", block.replace('path = "."', f"path = {str(tmp_path)!r}"))
    exec(code.replace(", trust_remote_code=True", ""), namespace)
    has_pipeline = "run" in namespace
    assert type(namespace["run"].model if has_pipeline else namespace["model"]) is type(model)
    assert has_pipeline == (case not in ("questions", "choices"))
    if has_pipeline:
        assert capsys.readouterr().out.strip()
        call = re.search(r"call `(.*?)`\.", card)[1].replace(", trust_remote_code=True", "")
        auto_class = call.partition(".")[0]
        assert type(eval(call, {auto_class: getattr(transformers, auto_class), **namespace})) is type(model)


FAMILIES = {
    "decoder": ["qwen3"],
    "gpt2": ["gpt2"],
    "vaswani2017": [],
    "encoder": ["modernbert"],
    "base": ["modernbert"],
}


@pytest.mark.parametrize("case", FAMILIES)
def test_native_families_on_a_card_accept_the_model(case):
    record = record_of(case)
    assert list(native_families(record)) == FAMILIES[case]
    card = render_card(record)
    for family in FAMILIES[case]:
        assert f"--to {family}" in card
        native = export_model(tiny.build(CASES[case][0], **CASES[case][1]), family)
        native_card = render_card({**record, "model": model_facts(native)})
        assert "trust_remote_code" not in native_card and f"transformers' own `{type(native).__name__}`" in native_card
    assert ("--to" in card) == bool(FAMILIES[case])


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "CTRLLMHeadModel", "XLMWithLMHeadModel", "OPTForCausalLM"])
def test_causal_models_of_any_class_name_generate_text(name, tmp_path):
    assert head_of_class(name)[:2] == ("AutoModelForCausalLM", "text-generation")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": [name]}))
    assert auto_class_of(str(tmp_path)) == "AutoModelForCausalLM"
    assert head_of_class("GPT2DoubleHeadsModel").auto_class == head_of_class("GPT2Model").auto_class == "AutoModel"


def test_cards_read_fields_under_the_names_of_other_families():
    config = GPT2Config(n_layer=3, n_embd=24, n_head=4, n_positions=48, vocab_size=70)
    card = render_card({**PRETRAINED, "model": model_facts(GPT2LMHeadModel(config))})
    assert "- Size: 3 blocks, 24 hidden units, 70 tokens in the vocabulary, 48 tokens of context\n" in card
    assert "- Attention: 4 query heads, 4 key-value heads\n" in card
    assert "it continues text." in card and "AutoModelForCausalLM.from_pretrained(path)" in card
    assert 'pipeline("text-generation"' in card and "may be false" in card


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "run_record.json").write_text(json.dumps(record_of("decoder")))
    (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION))
    return tmp_path


def test_the_card_command_adds_facts(folder, capsys):
    argv = ["card", str(folder), "--name", "Tales", "--language", "en", "--data-license", "mit", "--watts", "65"]
    assert main([*argv, "--base-model", "me/base"]) == 0
    card = (folder / "README.md").read_text()
    assert "# Tales" in card and "| mit |" in card and "from 65 W" in card and "0.711 [" in card
    data = ModelCard(card).data
    assert data.language == ["en"] and data.base_model == "me/base" and complaints(card) == []
    assert (folder / ".eval_results" / "someone--pairs.yaml").is_file()
    assert json.loads((folder / "run_record.json").read_text())["name"] == "Tales"
    assert main(["card", str(folder)]) == 0
    assert (folder / "README.md").read_text() == card
    capsys.readouterr()
    assert main(["card", str(folder / ".eval_results")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_rewriting_a_card_keeps_the_target_of_a_link(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "README.md"
    other.write_text("not mine")
    (folder / "README.md").symlink_to(other)
    rewrite_card(folder)
    assert other.read_text() == "not mine" and "TfmDecoderForCausalLM" in (folder / "README.md").read_text()


def test_results_become_a_dataset(folder):
    (folder / "run_record.json").unlink()
    write_results_card(folder)
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [row["value"] for row in rows] == [0.7113, 1.8765, 1.7654]
    assert {tuple(row) for row in rows} == {("model", "task", "data", "metric", "value", "low", "high", "n")}
    card = (folder / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["configs"] == [
        {"config_name": "default", "data_files": "results.jsonl"}
    ]
    assert "0.711 [0.699, 0.724]" in card


CARDS = sorted((Path(__file__).parents[2] / "model_cards").glob("*/README.md"))


@pytest.mark.parametrize("card", CARDS, ids=[card.parent.name for card in CARDS])
def test_released_cards_agree_with_their_records(card):
    record = json.loads((card.parent / "run_record.json").read_text())
    evaluation = read_evaluation(card.parent)
    assert card.read_text() == render_card(record, (card.parent / "loss_curve.png").exists(), evaluation)
    assert not without_source(card.read_text(), record, evaluation) and complaints(card.read_text()) == []
    assert card.read_text().count("\n") <= 100


@pytest.mark.parametrize(
    "case, window, tools",
    [("decoder", None, "vLLM, llama.cpp"), ("decoder", 4, "vLLM"), ("encoder", None, "TEI, vLLM")],
)
def test_a_card_names_tools_that_run_the_model(case, window, tools):
    """llama.cpp would read windows as full attention and generate other text."""
    record = record_of(case)
    if window is not None:
        config, layers = record["model"]["config"], record["model"]["config"]["num_hidden_layers"]
        config |= {"sliding_window": window, "layer_types": ["sliding_attention"] * (layers - 1) + ["full_attention"]}
    assert f"do not run remote code ({tools}, …)" in render_card(record)
