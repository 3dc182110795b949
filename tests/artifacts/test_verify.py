"""`hf-tfm verify` passes sound models with every head and catches planted faults."""

import json

import pytest
import torch
import transformers
from tiny import BOS, MODELS, PAD, build, build_tokenizer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from hf_tfm import TfmEncoderDecoderModel
from hf_tfm.apps import cli
from hf_tfm.artifacts import verify, verify_checks
from hf_tfm.artifacts.verify_checks import CHECKS
from hf_tfm.artifacts.verify_subject import Broken, Subject, largest_difference
from hf_tfm.models import modeling_tfm_decoder


IN_PROCESS = [name for name in CHECKS if name != "clean process"]


def subject_of(name: str = "TfmDecoderForCausalLM", **switches) -> Subject:
    return Subject("planted", MODELS[name], build(name, **switches), build_tokenizer(), trust_remote_code=False)


def outcomes(subject: Subject, *only: str) -> dict[str, str]:
    return {v.check: v.outcome for v in verify.verify("planted", list(only) or IN_PROCESS, subject=subject)}


@pytest.mark.parametrize("name", MODELS)
def test_sound_models_pass(name):
    verdicts = verify.verify("planted", IN_PROCESS, subject=subject_of(name))
    assert not [v for v in verdicts if v.outcome == "failed"]
    assert {"loading", "saving", "batches", "padding", "bf16", "LoRA"} <= {
        v.check for v in verdicts if v.outcome == "passed"
    }


def test_models_of_other_packages_are_checked_too():
    config = LlamaConfig(vocab_size=70, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, pad_token_id=0)  # fmt: skip
    torch.manual_seed(0)
    subject = subject_of()
    subject.model = LlamaForCausalLM(config).eval()
    found = outcomes(subject)
    assert {name for name, outcome in found.items() if outcome != "passed"} == {"reference"}, found


SHAPE = {"vocab_size": 70, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "pad_token_id": 0,
         "num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.3}  # fmt: skip
OTHERS = {  # Auto class, what differs from SHAPE, outcomes of packing and accumulation
    "opt": (AutoModelForCausalLM, {"ffn_dim": 48, "word_embed_proj_dim": 32}, ("passed", "passed")),
    "gpt2": (AutoModelForCausalLM, {}, ("passed", "passed")),
    "mamba": (AutoModelForCausalLM, {}, ("skipped", "passed")),
    "bert": (AutoModelForMaskedLM, {}, ("passed", "passed")),
    "electra": (AutoModelForMaskedLM, {"embedding_size": 16}, ("passed", "passed")),
}


def other(name: str) -> Subject:
    auto_class, changes, _ = OTHERS[name]
    torch.manual_seed(0)
    model = auto_class.from_config(AutoConfig.for_model(name, **{**SHAPE, **changes})).eval()
    return Subject("other", auto_class.__name__, model, build_tokenizer(), trust_remote_code=False)


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_are_checked_as_the_scripts_train_them(name):
    """With the masks, positions and weights of the loss that the scripts use."""
    expected = dict(zip(("packing", "accumulation"), OTHERS[name][2], strict=True))
    assert outcomes(other(name), *expected) == expected


def test_a_wrong_loss_of_another_package_is_caught(monkeypatch):
    subject = other("electra")
    forward = type(subject.model).forward

    def mean_over_rows(self, input_ids, labels=None, **kwargs):
        outputs = forward(self, input_ids, **kwargs)
        if labels is not None:
            rows = zip(outputs.logits, labels, strict=True)
            outputs.loss = torch.stack([nn.functional.cross_entropy(*row) for row in rows]).mean()
        return outputs

    assert outcomes(subject, "accumulation") == {"accumulation": "passed"}
    monkeypatch.setattr(type(subject.model), "forward", mean_over_rows)
    assert outcomes(subject, "accumulation") == {"accumulation": "failed"}


def test_heads_whose_loss_the_scripts_replace_are_skipped():
    subject = other("bert")
    subject.model = AutoModelForSequenceClassification.from_config(subject.model.config).eval()
    subject.auto_class = "AutoModelForSequenceClassification"
    (verdict,) = verify.verify("other", ["accumulation"], subject=subject)
    assert verdict.outcome == "skipped" and "mean over the batch" in verdict.found


def test_encoder_decoder_models_pass():
    subject = subject_of()
    decoder = build("TfmDecoderForCausalLM", add_cross_attention=True)
    subject.model = TfmEncoderDecoderModel(encoder=build("TfmEncoderModel"), decoder=decoder).eval()
    subject.model.config.decoder_start_token_id, subject.model.config.pad_token_id = BOS, PAD
    subject.auto_class = "AutoModelForSeq2SeqLM"
    verdicts = verify.verify("planted", IN_PROCESS, subject=subject)
    assert not [v for v in verdicts if v.outcome == "failed"], verdicts
    passed = {v.check for v in verdicts if v.outcome == "passed"}
    assert {"loading", "saving", "tied weights", "batches", "padding", "gradients", "bf16", "LoRA"} <= passed
    subject.model.decoder.lm_head.weight = nn.Parameter(subject.model.decoder.lm_head.weight.detach().clone())
    assert outcomes(subject, "tied weights") == {"tied weights": "failed"}


def test_missing_outputs_are_a_fault():
    logits = {"logits": torch.ones(1, 2)}
    assert largest_difference(logits, logits, "here") == 0
    for found, expected in (({}, {}), ({}, logits), ({"loss": torch.ones(1)}, logits)):
        with pytest.raises(Broken, match="there is no (output|logits) to compare here"):
            largest_difference(found, expected, "here")


def test_an_error_without_message_is_reported(monkeypatch):
    def silent(subject):
        raise NotImplementedError

    monkeypatch.setitem(verify.CHECKS, "loading", silent)
    (verdict,) = verify.verify("planted", ["loading"], subject=subject_of())
    assert (verdict.outcome, verdict.found) == ("failed", "NotImplementedError: no reason given")


def leaking_pack(subject, monkeypatch):
    monkeypatch.setattr(modeling_tfm_decoder, "packing_arguments", lambda *args: ({}, {}))


def ignored_mask(subject, monkeypatch):
    forward = type(subject.model.model).forward

    def without_mask(self, *args, attention_mask=None, **kwargs):
        return forward(self, *args, attention_mask=None, **kwargs)

    monkeypatch.setattr(type(subject.model.model), "forward", without_mask)


def looks_at_the_batch(subject, monkeypatch):
    norm = subject.model.model.norm
    norm.register_forward_hook(lambda module, args, output: output + output.mean(0, keepdim=True) * (len(output) > 1))


def unset_buffer(subject, monkeypatch):
    subject.model.model.rotary_emb.inv_freq.fill_(0.5)


def not_a_number(subject, monkeypatch):
    with torch.no_grad():
        subject.model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")


def mean_of_means(subject, monkeypatch):
    def loss(logits, labels, vocab_size, num_items_in_batch=None, **kwargs):
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    monkeypatch.setattr(type(subject.model), "loss_function", staticmethod(loss))


def cut_gradient(subject, monkeypatch):
    mlp = type(subject.model.model.layers[1].mlp)
    forward = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda self, states: forward(self, states).detach())


def untied(subject, monkeypatch):
    subject.model.lm_head.weight = nn.Parameter(subject.model.lm_head.weight.detach().clone())


def forgetful_cache(subject, monkeypatch):
    from transformers.cache_utils import DynamicLayer

    update = DynamicLayer.update

    def forget(self, key, value, *args, **kwargs):
        keys, values = update(self, key, value, *args, **kwargs)
        return (keys * 0.9, values) if key.shape[2] == 1 else (keys, values)

    monkeypatch.setattr(DynamicLayer, "update", forget)


def ignored_cache(subject, monkeypatch):
    """As happened when transformers renamed the argument: the cache is lost, every step starts anew."""
    forward = type(subject.model.model).forward

    def without_cache(self, *args, cache=None, **kwargs):
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(subject.model.model), "forward", without_cache)


def late_cache(subject, monkeypatch):
    """The newest cached token becomes visible one step late."""
    from transformers.cache_utils import DynamicLayer

    update = DynamicLayer.update

    def late(self, key, value, *args, **kwargs):
        keys, values = update(self, key, value, *args, **kwargs)
        if key.shape[2] > 1:
            return keys, values
        keys, values = keys.clone(), values.clone()
        keys[:, :, -2], values[:, :, -2] = keys[:, :, -3], values[:, :, -3]
        return keys, values

    monkeypatch.setattr(DynamicLayer, "update", late)


def shared_cache(subject, monkeypatch):
    """Every row continues with the first row's past."""
    from transformers.cache_utils import DynamicLayer

    update = DynamicLayer.update

    def first_row(self, key, value, *args, **kwargs):
        keys, values = update(self, key, value, *args, **kwargs)
        if key.shape[2] > 1:
            return keys, values
        past = [torch.cat([x[:1, :, :-1].expand(len(x), -1, -1, -1), x[:, :, -1:]], dim=2) for x in (keys, values)]
        return past[0], past[1]

    monkeypatch.setattr(DynamicLayer, "update", first_row)


def stuck_beams(subject, monkeypatch):
    from transformers import DynamicCache

    monkeypatch.setattr(DynamicCache, "reorder_cache", lambda self, beams: None)


def short_static_cache(subject, monkeypatch):
    from transformers.cache_utils import StaticLayer

    update = StaticLayer.update

    def forget(self, key, value, *args, **kwargs):
        keys, values = update(self, key, value, *args, **kwargs)
        return (keys * 0.5, values) if key.shape[2] == 1 else (keys, values)

    monkeypatch.setattr(StaticLayer, "update", forget)


def uncropped_cache(subject, monkeypatch):
    from transformers import DynamicCache

    monkeypatch.setattr(DynamicCache, "crop", lambda self, length: None)


def overflow_in_bf16(subject, monkeypatch):
    head = subject.model.lm_head
    head.register_forward_hook(
        lambda module, args, output: output * float("inf") if output.dtype == torch.bfloat16 else output
    )


def changed_by_saving(subject, monkeypatch):
    save = type(subject.model).save_pretrained

    def halved(self, *args, **kwargs):
        state = {name: value * 0.5 for name, value in self.state_dict().items() if name != "lm_head.weight"}
        return save(self, *args, state_dict=state, **kwargs)

    monkeypatch.setattr(type(subject.model), "save_pretrained", halved)


def merged_twice(subject, monkeypatch):
    from peft.tuners.lora.layer import Linear

    delta = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, adapter: 2 * delta(self, adapter))


FAULTS = {
    leaking_pack: "packing",
    ignored_mask: "padding",
    looks_at_the_batch: "batches",
    unset_buffer: "loading",
    not_a_number: "loading",
    mean_of_means: "accumulation",
    cut_gradient: "gradients",
    untied: "tied weights",
    forgetful_cache: ["cache", "greedy"],
    ignored_cache: ["cache", "greedy"],
    late_cache: ["cache", "greedy"],
    shared_cache: ["cache", "greedy", "batched generation"],
    stuck_beams: "beams",
    short_static_cache: "static cache",
    uncropped_cache: "assisted",
    overflow_in_bf16: "bf16",
    changed_by_saving: "saving",
    merged_twice: "LoRA",
}


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_planted_faults_are_caught(plant, monkeypatch):
    subject = subject_of()
    plant(subject, monkeypatch)
    failing = FAULTS[plant] if isinstance(FAULTS[plant], list) else [FAULTS[plant]]
    verdicts = verify.verify("planted", failing, subject=subject)
    assert [v.outcome for v in verdicts] == ["failed"] * len(failing), verdicts
    assert all(len(verdict.found.splitlines()) == 1 for verdict in verdicts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify") / "model"
    build("TfmDecoderForCausalLM").save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def test_verify_command(folder, tmp_path, capsys):
    report = tmp_path / "checks.json"
    assert cli.main(["verify", str(folder), "--json", str(report)]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in CHECKS) and "FAILED" not in shown
    written = json.loads(report.read_text())
    assert written["failed"] == 0 and written["passed"] == len(CHECKS) - 1  # there is no reference
    assert f"transformers {transformers.__version__}" in shown.splitlines()[0]
    assert cli.main(["verify", str(folder), "--only", "colour"]) == 2
    assert "--only knows loading" in capsys.readouterr().err
    assert cli.main(["verify", str(tmp_path / "nothing")]) == 2


def test_a_folder_that_loads_only_with_this_package_fails(folder, capsys, monkeypatch):
    """The push of such a folder, with a real process, is tested in tests/hub/test_push.py."""

    def fail(*arguments):
        raise verify_checks.DoesNotLoad("no file modeling_tfm_decoder.py")

    monkeypatch.setattr(verify_checks, "outputs_for_a_stranger", fail)
    assert cli.main(["verify", str(folder), "--only", "clean process"]) == 1
    output = capsys.readouterr().out
    assert "FAILED" in output and "does not load without this package: no file modeling_tfm_decoder.py" in output
