"""Cards say what their records say, to people and to machines, and nothing else; their code runs."""

import copy
import json
import re
from pathlib import Path

import pytest
import tiny
import yaml
from hub_server import complaints
from huggingface_hub import ModelCard, parse_eval_result_entries
from transformers import GPT2Config, GPT2LMHeadModel

from hf_tfm.apps.cli import main
from hf_tfm.artifacts import card_text
from hf_tfm.artifacts.card import (
    hub_results,
    read_evaluation,
    render_card,
    rewrite_card,
    write_card,
    write_results_card,
)
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


# Figures

NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?%?(?!\w)")
# Of the words around them: the intervals, Green Algorithms' watts, the tokens for each parameter that are usual.
SAID = {"95", "12", "0.3725", "20"}


def figures_of(card: str) -> set[str]:
    """The numbers that a card states: those in its code and samples are quoted, not stated."""
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
    """All the ways in which a card may write what is in a record."""
    if isinstance(value, dict):
        return set().union(*map(written, value.values()))
    if isinstance(value, list):
        return set().union(*map(written, value))
    return ways_to_write(value)


def derived(record: dict) -> set[str]:
    """What a card computes from its record."""
    found = {str(len(record["model"]["config"].get("id2label") or {}))}
    if "seconds" in record:
        hardware = record["hardware"]
        watt_hours = (12 * hardware["threads"] + 0.3725 * hardware["memory_gib"]) * record["seconds"] / 3600
        found |= {f"{record['seconds'] / 60:.1f}", f"{watt_hours:.4g}"}
    if "tokens" in record:
        found.add(f"{record['tokens'] / record['model']['parameters']:.4g}")
    return found


def without_source(card: str, record: dict, evaluation: dict | None) -> set[str]:
    return figures_of(card) - written(record) - written(evaluation or {}) - derived(record) - SAID


@pytest.mark.parametrize("evaluation", [None, EVALUATION], ids=["", "evaluated"])
@pytest.mark.parametrize("case", CASES)
def test_every_figure_is_its_records(case, evaluation):
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
def test_a_card_follows_its_record(case):
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
def test_what_has_no_source_is_left_out(case):
    """A model without a record has a card all the same, about its shape and how to load it."""
    card = render_card({"model": record_of(case)["model"]})
    for words in ("nformation", "None", "null", "[]", "{}", "| |", "## Results", "## Training", "## Data", "Wh"):
        assert words not in card, words
    assert "## How to load it" in card and complaints(card) == []


def test_local_attention_is_said():
    record = record_of("decoder")
    assert "attention windows" not in render_card(record)
    record["model"]["config"] |= {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}
    assert "| attention windows | 3 tokens, in 1 of 2 blocks |" in render_card(record)


def test_what_no_native_family_has_is_said():
    record = record_of("decoder")
    assert "beside native shapes" not in render_card(record)
    record["model"]["config"] |= {"attention_gate": True, "value_residual": True}
    assert "| beside native shapes | a gate on each head, embeddings in the values |" in render_card(record)


def test_every_command_on_the_way_to_the_weights_is_named():
    record = record_of("decoder") | {"weights": "bfloat16, rounded after the run"}
    assert "hf-tfm merge" not in render_card(record) and "hf-tfm export MODEL ROUNDED --to bf16" in render_card(record)
    record["adapter"] = {"type": "lora", "rank": 4, "alpha": 8, "parameters": 10, "share": 0.1, "merged": True}
    merge, export = (render_card(record).index(command) for command in ("hf-tfm merge", "hf-tfm export MODEL"))
    assert merge < export


def test_figures_on_different_numbers_of_records_say_so():
    record = record_of("chat")
    record["results"]["stops_by_itself"] = estimate(0.83, 100)
    card = render_card(record)
    assert "n 3,081" in card and "n 100 |" in card and "On 3,081" not in card


def test_energy_says_where_it_comes_from_or_is_not_there():
    record = record_of("decoder")
    watt_hours, kind, source = card_text.energy(record)
    assert watt_hours == pytest.approx((3 * 12 + 23.5 * 0.3725) * 1234.5 / 3600)
    assert kind == "an estimate" and "Green Algorithms" in source
    counted = {**record, "joules": {"package-0": 54_321.0, "dram of package-0": 4321.0}}
    watt_hours, kind, source = card_text.energy(counted)
    assert watt_hours == pytest.approx(58_642 / 3600) and kind == "measured" and "RAPL" in source
    card = render_card(counted)
    assert (
        "| energy (measured) | 16.29 Wh: package-0 54,321 J" in card and "Green" not in card and "estimate" not in card
    )
    watt_hours, kind, source = card_text.energy({**counted, "watts": 65.0})
    assert watt_hours == pytest.approx(65 * 1234.5 / 3600) and "65 W, as stated" in source
    counted["hardware"]["gpu"] = "Some GPU"  # which no counter of the processor sees
    assert card_text.energy(counted) is None and "energy" not in render_card(counted)


def test_results_on_data_sets_of_the_hub_go_into_files_it_reads():
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


def test_samples_do_not_leave_their_block():
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


# Code


@pytest.mark.parametrize("case", ["decoder", "encoder", "base", "classifier", "tagger", "questions", "choices"])
def test_every_way_to_load_it_runs(case, tmp_path, tokenizer, capsys):
    """Each block of a card's code, and that the package makes `trust_remote_code` unnecessary as the card says."""
    record = record_of(case)
    model = tiny.build(CASES[case][0], **CASES[case][1])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "run_record.json").write_text(json.dumps(record))
    write_card(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == (1 if case in ("questions", "choices") else 2)
    for block in blocks:
        assert "trust_remote_code=True" in block
        shown = {}
        code = re.sub(r'path = "\."', f"path = {str(tmp_path)!r}", block).replace(
            "max_new_tokens=40", "max_new_tokens=4"
        )
        exec(code.replace(", trust_remote_code=True", ""), shown)
        assert type(shown["model"] if "model" in shown else shown["run"].model) is type(model)
    assert len(blocks) == 1 or capsys.readouterr().out.strip()


FAMILIES = {
    "decoder": ["qwen3"],
    "gpt2": ["gpt2"],
    "vaswani2017": [],
    "encoder": ["modernbert"],
    "base": ["modernbert"],
}


@pytest.mark.parametrize("case", FAMILIES)
def test_the_native_family_that_a_card_names_takes_the_model(case):
    record = record_of(case)
    assert list(card_text.native_families(record)) == FAMILIES[case]
    card = render_card(record)
    for family in FAMILIES[case]:
        assert f"--to {family}" in card
        native = export_model(tiny.build(CASES[case][0], **CASES[case][1]), family)
        native_card = render_card({**record, "model": model_facts(native)})
        assert "trust_remote_code" not in native_card and f"transformers' own `{type(native).__name__}`" in native_card
    assert ("--to" in card) == bool(FAMILIES[case])


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "CTRLLMHeadModel", "XLMWithLMHeadModel", "OPTForCausalLM"])
def test_causal_models_of_any_name_write_text(name, tmp_path):
    assert card_text.task_of(name) == ("AutoModelForCausalLM", "text-generation")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": [name]}))
    assert auto_class_of(str(tmp_path)) == "AutoModelForCausalLM"
    assert card_text.task_of("GPT2DoubleHeadsModel")[0] == card_text.task_of("GPT2Model")[0] == "AutoModel"


def test_a_card_knows_a_shape_by_the_names_that_its_family_has_for_it():
    config = GPT2Config(n_layer=3, n_embd=24, n_head=4, n_positions=48, vocab_size=70)
    card = render_card({**PRETRAINED, "model": model_facts(GPT2LMHeadModel(config))})
    rows = ("blocks | 3", "width | 24", "heads (query / key-value) | 4 / 4", "vocabulary | 70", "longest sequence | 48")
    assert all(f"| {row} |" in card for row in rows), card
    assert "it continues text." in card and "AutoModelForCausalLM.from_pretrained(path)" in card
    assert 'pipeline("text-generation"' in card and "not what is true" in card


# Folders


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "run_record.json").write_text(json.dumps(record_of("decoder")))
    (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION))
    return tmp_path


def test_the_command_writes_what_the_run_did_not_know(folder, capsys):
    argv = ["card", str(folder), "--name", "Tales", "--language", "en", "--data-license", "mit", "--watts", "65"]
    assert main([*argv, "--base-model", "me/base"]) == 0
    card = (folder / "README.md").read_text()
    assert "# Tales" in card and "| mit |" in card and "at 65 W" in card and "0.711 [" in card
    data = ModelCard(card).data
    assert data.language == ["en"] and data.base_model == "me/base" and complaints(card) == []
    assert (folder / ".eval_results" / "someone--pairs.yaml").is_file()
    assert json.loads((folder / "run_record.json").read_text())["name"] == "Tales"
    assert main(["card", str(folder)]) == 0
    assert (folder / "README.md").read_text() == card
    capsys.readouterr()
    assert main(["card", str(folder / ".eval_results")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_card_written_anew_leaves_what_a_link_leads_to(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "README.md"
    other.write_text("not mine")
    (folder / "README.md").symlink_to(other)
    rewrite_card(folder)
    assert other.read_text() == "not mine" and "TfmDecoderForCausalLM" in (folder / "README.md").read_text()


def test_results_become_a_data_set(folder):
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
def test_released_cards_are_what_their_records_say(card):
    record = json.loads((card.parent / "run_record.json").read_text())
    evaluation = read_evaluation(card.parent)
    assert card.read_text() == render_card(record, (card.parent / "loss_curve.png").exists(), evaluation)
    assert not without_source(card.read_text(), record, evaluation) and complaints(card.read_text()) == []


@pytest.mark.parametrize(
    "case, window, tools",
    [("decoder", None, "vLLM, llama.cpp"), ("decoder", 4, "vLLM"), ("encoder", None, "TEI, vLLM")],
)
def test_a_card_names_tools_that_run_the_model(case, window, tools):
    """llama.cpp would read windows as full attention and write something else."""
    record = record_of(case)
    if window is not None:
        config, layers = record["model"]["config"], record["model"]["config"]["num_hidden_layers"]
        config |= {"sliding_window": window, "layer_types": ["sliding_attention"] * (layers - 1) + ["full_attention"]}
    assert f"run no code of others ({tools}, …)" in render_card(record)
