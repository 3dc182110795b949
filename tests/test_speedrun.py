"""The speedrun's runner: its loss is the plain one, and each wrong entry is refused with its reason."""

import json
import math
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import normalizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from hf_tfm.core.errors import InputError
from hf_tfm.data.tokenizer import train_tokenizer


SPEEDRUN = Path(__file__).parents[1] / "training/benchmarks/speedrun"
TEXTS = ["The cat sat on the mat; then the moon rose over it. " * 4, "Rain fell on 7 roofs …\n\nand on an 8th one."]
SIZE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.3)


@pytest.fixture(autouse=True)
def speedrun_path(monkeypatch):
    """Makes the runner importable by name."""
    monkeypatch.syspath_prepend(str(SPEEDRUN))
    monkeypatch.syspath_prepend(str(SPEEDRUN.parent))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, vocab_size=300, num_spare_tokens=0)


def save_llama(tokenizer, folder: Path, seed: int = 0, **fields) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **{**SIZE, **fields})).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def refusal(folder: Path, kind: str = "causal") -> str:
    """Returns the reason why `measure.py` refuses a folder."""
    import measure

    with pytest.raises(SystemExit) as end:
        measure.measure(folder, kind, TEXTS)
    return str(end.value)


def test_bits_per_byte_are_those_of_each_document_alone(tokenizer, tmp_path):
    import measure

    model = save_llama(tokenizer, tmp_path)
    nats, tokens = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            nats += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    result = measure.measure(tmp_path, "causal", TEXTS)
    assert result["loss"] == pytest.approx(nats / num_bytes / math.log(2), rel=1e-5)
    assert (result["tokens"], result["bytes"]) == (tokens, num_bytes)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 40])
def test_windows_predict_each_token_once_from_half_a_window_at_least(length, monkeypatch):
    import measure

    monkeypatch.setattr(measure, "STRIDE", 4)
    predicted = []
    for start, first, end in measure.windows(length, 8):
        assert 0 <= start < first < end <= length and end - 1 - start <= 8
        assert start == 0 or first - start >= 8 - 4
        predicted += range(first, end)
    assert predicted == list(range(1, length))


def test_a_model_of_few_positions_is_measured_in_shorter_windows(tokenizer, tmp_path):
    import measure

    save_llama(tokenizer, tmp_path, max_position_embeddings=16)
    assert math.isfinite(measure.measure(tmp_path, "causal", TEXTS)["loss"])


def test_a_model_that_sees_the_future_is_refused(tokenizer, tmp_path):
    torch.manual_seed(0)
    BertLMHeadModel(BertConfig(vocab_size=len(tokenizer), **SIZE)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert "sees the future" in refusal(tmp_path)


def test_a_tokenizer_that_loses_bytes_is_refused(tokenizer, tmp_path):
    save_llama(tokenizer, tmp_path)
    lossy = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    lossy.backend_tokenizer.normalizer = normalizers.Lowercase()
    lossy.save_pretrained(tmp_path)
    assert "loses bytes: document 0" in refusal(tmp_path)


def test_a_diverged_model_is_refused(tokenizer, tmp_path):
    model = save_llama(tokenizer, tmp_path)
    torch.nn.init.constant_(model.model.norm.weight, torch.nan)
    model.save_pretrained(tmp_path)
    assert "its loss is nan" in refusal(tmp_path)


def test_remote_code_and_pickled_weights_are_refused(tokenizer, tmp_path):
    model = save_llama(tokenizer, tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert "does not load with AutoModelForCausalLM" in refusal(tmp_path)
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "custom code" in refusal(tmp_path)


def test_the_masked_loss_is_that_of_the_shared_tokenizer_and_masks(tmp_path):
    import measure
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(measure.MASKED_TOKENIZER)
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **SIZE)).eval()
    model.save_pretrained(tmp_path)  # without a tokenizer of its own
    result = measure.measure(tmp_path, "masked", TEXTS)
    assert 0 < result["tokens"] < 0.4 * sum(map(len, tokenizer(TEXTS)["input_ids"]))
    assert measure.measure(tmp_path, "masked", TEXTS) == result

    torch.nn.init.zeros_(model.cls.predictions.decoder.weight)  # the probabilities are those of the bias
    torch.nn.init.zeros_(model.cls.predictions.bias)
    model.save_pretrained(tmp_path)
    assert measure.measure(tmp_path, "masked", TEXTS)["loss"] == pytest.approx(math.log(len(tokenizer)))


def test_a_masked_model_with_too_few_embeddings_is_refused(tmp_path):
    BertForMaskedLM(BertConfig(vocab_size=100, **SIZE)).save_pretrained(tmp_path)
    assert "fewer embeddings" in refusal(tmp_path, "masked")


def write_entry(folder: Path, script: str, **facts) -> Path:
    """Writes an entry with a shell script and returns its folder."""
    folder.mkdir(parents=True)
    (folder / "run.sh").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "entry.json").write_text(json.dumps({"author": "a", "license": "mit", "new": "b", **facts}))
    return folder


def test_entries_that_are_none_are_refused(tmp_path):
    from entry import Entry

    held_out = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    folder = write_entry(tmp_path / "mine", "true")
    first = Entry(folder, held_out)
    assert first.name == "mine" and first.program == folder / "run.sh"
    (folder / "notes.md").write_text("Here: One, two, three four five six seven eight nine ten eleven twelve thirteen")
    with pytest.raises(InputError, match="13 words in a row of the held-out text"):
        Entry(folder, held_out)
    (folder / "notes.md").write_text("x" * 100_000)
    with pytest.raises(InputError, match="more than 100000 bytes"):
        Entry(folder, held_out)
    (folder / "notes.md").write_text("one two three four five six seven eight nine ten eleven twelve")
    assert Entry(folder, held_out).hash != first.hash
    (folder / "entry.json").write_text("{}")
    with pytest.raises(InputError, match="must have the fields author, license, new"):
        Entry(folder, held_out)
    (folder / "run.sh").chmod(0o644)
    with pytest.raises(InputError, match="chmod"):
        Entry(folder, held_out)


def test_other_text_is_refused(tmp_path, monkeypatch, capsys):
    import run
    import tracks

    other = tmp_path / "texts"
    other.mkdir()
    for name in ("train.jsonl.gz", "test.jsonl.gz"):
        (other / name).write_bytes((tracks.TEXTS / name).read_bytes())
    (other / "train.jsonl.gz").write_bytes((other / "test.jsonl.gz").read_bytes())
    monkeypatch.setattr(tracks, "TEXTS", other)
    entry = str(write_entry(tmp_path / "mine", "true"))
    assert run.main(["verify", entry, "--track", "test", "--output", str(tmp_path / "out")]) == 2
    assert "is not the file of the rules" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """A runner that takes the loss from the file `model` of a run."""
    import run
    import tracks
    from tracks import Track

    monkeypatch.setitem(tracks.TRACKS, "test", Track("causal", minutes=1, target=2.0, train_bytes=100_000))
    monkeypatch.setattr(run.Runner, "measure", lambda self, model, name: {"loss": float(model.read_text())})
    return run.Runner("test", "cpu", tmp_path / "out")


def run_script(runner, tmp_path: Path, script: str, seed: int = 0) -> dict[str, float]:
    from entry import Entry

    folder = tmp_path / "mine"
    folder = folder if folder.exists() else write_entry(folder, script)
    runner.run(Entry(folder, "held out"), seed)
    return runner.runs["mine"][-1]


def test_a_run_gets_its_options_the_text_and_two_cores(runner, tmp_path):
    script = 'echo "$@" "$OMP_NUM_THREADS" $(nproc) > seen; wc -c < "$4" > size; echo 1.5 > "$6"; pwd > place'
    figures = run_script(runner, tmp_path, script)
    options = (tmp_path / "mine/seen").read_text().split()
    assert options[:2] == ["--track", "test"] and options[6:] == ["--seed", "0", "2", "2"]
    assert 90_000 < int((tmp_path / "mine/size").read_text()) < 110_000
    assert figures["loss"] == 1.5 and 0 < figures["minutes"] < 1
    assert not (tmp_path / "out/mine-0").exists(), "a later seed could read this one's model"


@pytest.mark.parametrize("end", ["wait", 'echo 1.5 > "$6"'])
@pytest.mark.parametrize("isolated", [True, False])
def test_processes_end_with_their_run_and_a_run_with_its_time(runner, tmp_path, isolated, end):
    runner.track = replace(runner.track, minutes=0.5 / 60)
    if not isolated:  # as on systems without namespaces
        runner.limits = runner.limits[:3]
    with pytest.raises(InputError, match="mine, seed 0: stopped because") if end == "wait" else nullcontext():
        run_script(runner, tmp_path, f"(sleep 1.2; touch late) & {end}")
    time.sleep(1)
    assert not (tmp_path / "mine/late").exists()


def test_a_failed_run_is_refused_with_its_last_line(runner, tmp_path):
    with pytest.raises(InputError, match="exit code 3: no such luck"):
        run_script(runner, tmp_path, "echo no such luck; exit 3")


def test_seeds_with_one_result_are_refused(runner, tmp_path):
    script = 'echo 1.5 > "$6"'
    run_script(runner, tmp_path, script)
    with pytest.raises(InputError, match="seed 1: the same loss as with another seed"):
        run_script(runner, tmp_path, script, seed=1)


def test_a_run_sees_no_held_out_text_and_no_network(runner, tmp_path):
    if not runner.isolated:
        pytest.skip("this system does not let users make namespaces")
    script = f"wc -c < {runner.held_out} > held_out; grep -c : /proc/net/dev > devices; echo 1 > $6"
    run_script(runner, tmp_path, script)
    assert (tmp_path / "mine/held_out").read_text().strip() == "0"
    assert (tmp_path / "mine/devices").read_text().strip() == "1"  # the loopback alone
    assert runner.held_out.stat().st_size > 0


def runs(losses, minutes=(5.0, 5.1, 5.2)):
    return [{"loss": loss, "minutes": time} for loss, time in zip(losses, minutes)]


def test_the_mean_loss_must_be_below_the_target_beyond_chance():
    from judge import judge
    from tracks import Track

    track = Track("causal", 20, target=2.0)
    verdict = judge(track, {"runs": runs([1.97, 1.975, 1.98]), "record": None})
    assert verdict.p_target == pytest.approx((1 - 75**0.5 / 77**0.5) / 2)  # t² = 75, 2 degrees of freedom
    assert verdict.loss == pytest.approx(1.975) and verdict.minutes == pytest.approx(5.1)
    with pytest.raises(InputError, match=r"mean loss 1.9900 is not below 2.0 with p < 0.01"):
        judge(track, {"runs": runs([1.98, 1.99, 2.0]), "record": None})


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_lowest_target_is_where_the_test_begins_to_pass(seeds):
    from judge import judge
    from tracks import Track

    result = {"runs": runs([1.97, 1.975, 1.98, 1.96, 1.981][:seeds], minutes=[5.0] * seeds), "record": None}
    lowest = judge(Track("causal", 20), result).lowest_target
    assert judge(Track("causal", 20, target=lowest + 1e-4), result).p_target < 0.01
    with pytest.raises(InputError, match="is not below"):
        judge(Track("causal", 20, target=lowest - 1e-4), result)


def test_a_record_beats_the_one_before_it_beyond_chance():
    from judge import judge
    from tracks import Track

    def against(track, ours, theirs):
        return judge(track, {"runs": ours, "record": {"runs": theirs}}).p_record

    low, lower = [1.95, 1.952, 1.951], [1.90, 1.903, 1.901]
    race, contest = Track("causal", 20, target=2.0), Track("causal", 60, race=False)
    assert against(race, runs(low, [4, 4.1, 4.05]), runs(low)) < 0.01
    with pytest.raises(InputError, match="verified, but no record: minutes 5.05 against 5.1"):
        against(race, runs(lower, [5, 5.1, 5.05]), runs(low))
    assert against(contest, runs(lower), runs(low)) < 0.01
    with pytest.raises(InputError, match="no record: loss"):
        against(contest, runs(low), runs(lower))


@pytest.fixture
def board(tmp_path, monkeypatch):
    """A folder with a verified record, and its entry."""
    import entry
    import tracks

    monkeypatch.setitem(tracks.TRACKS, "causal", tracks.Track("causal", minutes=20, target=2.0))
    mine = write_entry(tmp_path / "entries/mine", "true")
    record = {
        "track": "causal", "device": "cpu", "date": "2026-12-01T10:00", "entry": "mine", "author": "a", "new": "b",
        "runs": runs([1.5, 1.51, 1.52]), "record": None, "machine": {"gpu": None, "processor": "abacus", "amx": True},
        "sha256": {**tracks.HASHES, "entry": entry.hash_entry(mine)},
    }  # fmt: skip
    (tmp_path / "records").mkdir()
    (tmp_path / "records/causal.json").write_text(json.dumps(record))
    (tmp_path / "README.md").write_text((SPEEDRUN / "README.md").read_text())
    return tmp_path


def test_the_table_is_that_of_the_records(board):
    from table import update_table

    update_table(check=False, folder=board)
    readme = (board / "README.md").read_text()
    assert "| 2026-12-01 | [mine](entries/mine) | a | 5.10 |  | 1.5100 | 3 | 7e-05 | abacus, AMX | b |" in readme
    assert readme.startswith("# Speedrun") and "minutes to 2.0 bits per byte" in readme and "## Rules" in readme
    update_table(check=True, folder=board)
    (board / "README.md").write_text(readme.replace("5.10", "4.10"))
    with pytest.raises(InputError, match="not the table of the records"):
        update_table(check=True, folder=board)


@pytest.mark.parametrize(
    ("change", "reason"),
    [("entry", "changed since"), ("text", "another text or tokenizer"), ("loss", "is not below 2.0")],
)
def test_a_record_of_other_code_text_or_loss_is_refused(board, change, reason):
    from table import update_table

    file = board / "records/causal.json"
    record = json.loads(file.read_text())
    if change == "entry":
        (board / "entries/mine/run.sh").write_text("#!/bin/sh\nfalse\n")
    elif change == "text":
        record["sha256"]["train.jsonl.gz"] = "0" * 64
    else:
        record["runs"][0]["loss"] = 2.5
    file.write_text(json.dumps(record))
    with pytest.raises(InputError, match=reason):
        update_table(check=False, folder=board)


def test_the_published_table_is_current():
    import run

    assert run.main(["table", "--check"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain_transformers", "hf_tfm"])
@pytest.mark.parametrize("track", ["test", "test_masked"])
def test_the_first_entries_are_verified(name, track, tmp_path, capsys):
    import run

    code = run.main(["verify", str(SPEEDRUN / "entries" / name), "--track", track, "--output", str(tmp_path / "out")])
    assert code == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert (
        len(result["runs"]) == 3
        and result["entry"] == name
        and all(math.isfinite(run["loss"]) for run in result["runs"])
    )


@pytest.mark.slow
def test_a_folder_that_needs_this_package_is_refused(tmp_path):
    import run
    from tiny import build, build_tokenizer

    build("TfmDecoderForCausalLM").save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="seed 0: does not load with AutoModelForCausalLM and no remote code"):
        run.Runner("test", "cpu", tmp_path / "out").measure(tmp_path / "model", "mine, seed 0")
