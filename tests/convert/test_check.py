"""What exports are compared by: padding leaves no trace, generation settings have no say, wrong weights are refused."""

import json

import pytest
import torch
from tiny import BOS, EOS, VOCAB_SIZE, build, random_ids
from torch.testing import assert_close

from hf_tfm.artifacts.compare import outputs_of
from hf_tfm.artifacts.record import model_facts
from hf_tfm.convert import native as convert
from hf_tfm.convert.check import REPORT_FILE, TorchRunner, check_export, comparison_rows, pad_rows, split_by_row
from hf_tfm.convert.export import FORMATS, export
from hf_tfm.convert.native import export_folder
from hf_tfm.core.errors import InputError


ROWS = [random_ids(1, length, seed=length)[0].tolist() for length in (11, 6, 2)]
DECODER = "TfmDecoderForCausalLM"


@pytest.fixture
def decoder(tmp_path, tokenizer):
    build(DECODER, eos_token_id=None).save_pretrained(tmp_path / "decoder")
    tokenizer.save_pretrained(tmp_path / "decoder")
    return tmp_path / "decoder"


@pytest.mark.parametrize(
    "name, shape",
    [
        (DECODER, "qwen3"),
        (DECODER, "gpt2"),
        ("TfmDecoderForSequenceClassification", "llama"),
        ("TfmEncoderModel", "bert"),
        ("TfmEncoderForQuestionAnswering", "modernbert"),
        ("TfmEncoderForPreTraining", "bert"),
        ("TfmEncoderForMultipleChoice", "bert"),
    ],
)
def test_split_outputs_of_a_padded_batch_equal_single_rows(name, shape):
    model = build(name, shape)
    together = split_by_row(outputs_of(model, **pad_rows(ROWS, name, model.config)), ROWS, left="Decoder" in name)
    alone = TorchRunner(model).outputs(ROWS)
    for row, a, b in zip(ROWS, alone, together, strict=True):
        assert a.keys() == b.keys() and a
        for key in a:
            assert_close(a[key], b[key], atol=1e-5, rtol=1e-5)
            if key in ("logits", "last_hidden_state") and a[key].ndim == 2:
                assert len(a[key]) == len(row)


def test_greedy_runs_without_end_and_penalty():
    model = build(DECODER)
    expected, cache, new = [], None, torch.tensor([ROWS[0]])
    with torch.no_grad():
        for _ in range(8):
            outputs = model(new, past_key_values=cache, use_cache=True)
            new, cache = outputs.logits[:, -1:].argmax(-1), outputs.past_key_values
            expected.append(new.item())
    settings = model.generation_config
    settings.eos_token_id, settings.repetition_penalty = expected[2], 5.0
    assert TorchRunner(model).greedy(ROWS[0], 8) == expected
    assert model.generation_config is settings


@pytest.mark.parametrize("relative", [None, 0.1])
def test_a_changed_weight_is_refused(relative):
    model, other = build(DECODER), build(DECODER)
    check = check_export(model, TorchRunner(other, "twin"), ROWS, relative)
    assert (check.max_difference, check.same_choice, check.greedy_same) == (0, 1, check.greedy_tokens)
    weight = other.model.layers[1].mlp.up_proj.weight.data
    weight.copy_(weight.flip(0))
    with pytest.raises(
        InputError, match="twin gives other outputs than TfmDecoderForCausalLM, by .* nothing was written"
    ):
        check_export(model, TorchRunner(other, "twin"), ROWS, relative)
    weight.fill_(float("nan"))
    with pytest.raises(InputError, match="nan at most"):
        check_export(model, TorchRunner(other, "twin"), ROWS, relative)


def test_comparison_rows_are_texts_if_there_is_a_tokenizer(tmp_path, tokenizer):
    config = build(DECODER).config
    drawn = comparison_rows(config, tmp_path)
    assert [len(row) for row in drawn] == [32, 20, 5] and drawn == comparison_rows(config, tmp_path)
    assert all(0 <= token < VOCAB_SIZE and token != config.pad_token_id for row in drawn for token in row)
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer.decode(comparison_rows(config, tmp_path)[1]).startswith("[CLS]Water")
    config.vocab_size = 100  # a tokenizer that is not the model's
    assert max(token for row in comparison_rows(config, tmp_path) for token in row) < 100


def test_a_native_export_has_a_report(decoder, tmp_path):
    conversion = export_folder(decoder, tmp_path / "native", "qwen3")
    report = json.loads((tmp_path / "native" / REPORT_FILE).read_text())
    assert (report["format"], report["weights"], report["source_class"]) == ("qwen3", "float32", DECODER)
    assert report["source_bytes"] == (decoder / "model.safetensors").stat().st_size
    assert report["export_bytes"] == (tmp_path / "native/model.safetensors").stat().st_size
    (check,) = report["checks"]
    assert check["runtime"] == "transformers, Qwen3ForCausalLM"
    assert check["max_difference"] == conversion.max_error == 0
    assert check["greedy_same"] == check["greedy_tokens"] == 3 * 24
    assert check["tokens_per_second"] > 0 < check["source_tokens_per_second"]
    shown = str(conversion.report)
    assert "same greedy tokens 72 of 72" in shown and "within 0.0e+00" in shown
    # It says nothing of what a later import makes of the folder.
    convert.convert_folder(tmp_path / "native", tmp_path / "again")
    assert not (tmp_path / "again" / REPORT_FILE).exists()


def test_missing_outputs_of_an_export_are_refused():
    model = build("TfmEncoderForPreTraining", "bert")

    class Less(TorchRunner):
        def outputs(self, rows):
            return [{"prediction_logits": row["prediction_logits"]} for row in super().outputs(rows)]

    with pytest.raises(InputError, match="gives no seq_relationship_logits"):
        check_export(model, Less(model), ROWS)


def test_a_different_export_leaves_no_files(decoder, tmp_path, monkeypatch):
    def spoiled(*args):
        native = to_native(*args)
        norm = native.model.layers[0].input_layernorm
        norm.weight = torch.nn.Parameter(norm.weight.detach().flip(0))  # a new tensor: these are the source's own
        return native

    to_native = convert._to_native
    monkeypatch.setattr(convert, "_to_native", spoiled)
    with pytest.raises(InputError, match="Qwen3ForCausalLM gives other outputs"):
        export_folder(decoder, tmp_path / "out/native", "qwen3")
    assert {path.name for path in tmp_path.iterdir()} == {"decoder"}


@pytest.mark.parametrize("name", [DECODER, "TfmEncoderForMaskedLM", "TfmEncoderForSequenceClassification"])
def test_int8_folders_load_as_their_class(name, tmp_path, tokenizer):
    pytest.importorskip("torchao")
    build(name, bos_token_id=BOS, eos_token_id=EOS).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for file in ("run_record.json", "evaluation.json"):
        (tmp_path / "model" / file).write_text("{}")
    (tmp_path / "model/README.md").write_text("accuracy 0.99")
    report = export(tmp_path / "model", tmp_path / "int8", "int8")
    assert 0 < report.checks[0].relative_difference < 0.05 and report.export_bytes < report.source_bytes
    loaded = convert.load_tfm(tmp_path / "int8")
    assert "Int8" in type(loaded.model.layers[0].mlp.up_proj.weight).__name__
    assert (tmp_path / "int8/tokenizer.json").is_file() and (tmp_path / "int8/modeling_tfm.py").is_file()
    # What the source was measured with is no figure of this one.
    assert not {"run_record.json", "evaluation.json"} & {path.name for path in (tmp_path / "int8").iterdir()}
    card = (tmp_path / "int8/README.md").read_text()
    assert "0.99" not in card and str(report) in card
    with pytest.raises(InputError, match="quantization_config: its weights are quantized already"):
        export(tmp_path / "int8", tmp_path / "out", "gguf")


@pytest.mark.parametrize("name", [DECODER, "TfmEncoderForMaskedLM", "TfmEncoderForSequenceClassification"])
def test_rounded_folders_name_the_rounding(name, tmp_path, tokenizer):
    model = build(name, bos_token_id=BOS, eos_token_id=EOS)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    record = {"job": "a run", "data": [], "model": model_facts(model), "results": {"loss": 1.5}}
    (tmp_path / "model/run_record.json").write_text(json.dumps(record))
    (tmp_path / "model/evaluation.json").write_text("{}")
    report = export(tmp_path / "model", tmp_path / "half", "bf16")
    assert 0 < report.checks[0].relative_difference < 0.05 and report.export_bytes < 0.6 * report.source_bytes
    half, whole = convert.load_tfm(tmp_path / "half"), convert.load_tfm(tmp_path / "model")
    assert type(half) is type(whole) and half.dtype == torch.bfloat16
    for one, other in zip(half.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other.bfloat16())
    assert not (tmp_path / "half/evaluation.json").exists()
    card = (tmp_path / "half/README.md").read_text()
    assert "bfloat16, rounded after the run" in card and f"{report.checks[0].relative_difference:.1e}" in card
    with pytest.raises(InputError, match="are bf16 already"):
        export(tmp_path / "half", tmp_path / "again", "bf16")


def test_greedy_text_of_int8_follows_its_logits(tmp_path):
    pytest.importorskip("torchao")
    build(DECODER).save_pretrained(tmp_path / "model")
    export(tmp_path / "model", tmp_path / "int8", "int8")
    model = convert.load_tfm(tmp_path / "int8").eval()
    tokens = list(ROWS[0])
    with torch.no_grad():
        for _ in range(8):
            tokens.append(model(torch.tensor([tokens])).logits[0, -1].argmax().item())
    assert TorchRunner(model).greedy(ROWS[0], 8) == tokens[len(ROWS[0]) :]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(to="yeti"), f"choose one of {', '.join(FORMATS)}"),
        (dict(to="qwen3", dtype="f16"), "dtype is for gguf only; qwen3 keeps"),
        (dict(to="onnx", untie=True), "untie is for native families and gguf, not for onnx"),
    ],
)
def test_impossible_exports_are_refused(decoder, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        export(decoder, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
