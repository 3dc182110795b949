"""Adapters: small folders that load on their base and merge with equal outputs, tied matrices included."""

import json
from pathlib import Path

import finetune_classification
import finetune_instruct
import finetune_preference
import pretrain_clm
import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import build
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

import hf_tfm
from hf_tfm.apps.cli import main as cli
from hf_tfm.artifacts.open import open_model
from hf_tfm.convert import merge
from hf_tfm.core.errors import InputError
from hf_tfm.data.chat import ChatEncoder
from hf_tfm.data.chat_rows import ConversationCollator, encode_conversations
from hf_tfm.data.forms.form import Reading
from hf_tfm.data.forms.reader import read_rows
from hf_tfm.data.tokenizer import train_tokenizer
from hf_tfm.train.adapters import add_adapter, merge_adapter
from hf_tfm.train.recipe import FinetuningRecipe


IDS = torch.arange(30, 46)[None]


def recipe(**fields) -> FinetuningRecipe:
    return FinetuningRecipe(model="x", train_file="y", lora=True, lora_rank=2, lora_alpha=4, **fields)


def trained(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model as if trained: weights that are zero at first would hide a merge that does nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def logits(model: torch.nn.Module, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    ids = dict(initializer_range=0.05, pad_token_id=0, bos_token_id=2, eos_token_id=3)
    model, tokenizer = build("TfmDecoderForCausalLM", **ids).train(), train_tokenizer(kind="bytes")
    # An adapter can only change what the frozen weights already know: here, to repeat a word.
    words = ["cat", "hen", "cow", "pig", "dog", "bee"]
    chats = [{"prompt": f"say {word}", "response": word} for word in words]
    rows = encode_conversations(ChatEncoder(tokenizer), read_rows(chats, Reading("chat")), 64).rows
    batch, optimizer = ConversationCollator(0)(rows), torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory) -> Path:
    """Return an output folder of `finetune_instruct.py --lora`, trained with a new token and default target modules."""
    root = tmp_path_factory.mktemp("adapter")
    records = [
        {"prompt": f"call {name}", "response": f"<|spare_3|>{name}<|tool|>"} for name in ("cat", "hen", "cow") * 8
    ]
    (root / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    argv = [
        "--model", base, "--train_file", root / "train.jsonl", "--validation_fraction", 0.3, "--lora",
        "--lora_rank", 4, "--new_tokens", "<|tool|>", "<|spare_3|>", "--learning_rate", 3e-2, "--bf16", "false",
        "--output_dir", root / "run",
        "--max_length", 64, "--num_train_epochs", 30, "--per_device_train_batch_size", 4, "--answers", 3,
        "--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false",
    ]  # fmt: skip
    assert finetune_instruct.main([str(part) for part in argv]) == 0
    return root / "run"


def test_the_folder_of_an_adapter_is_small_and_loads_on_its_base(adapter, base):
    weights = load_file(adapter / "adapter_model.safetensors")
    whole = load_file(base / "model.safetensors")
    assert sum(t.numel() for t in weights.values()) < 0.5 * sum(t.numel() for t in whole.values())
    assert not any("embed_tokens" in name and tensor.shape[0] > 2 for name, tensor in weights.items())
    targets = json.loads((adapter / "adapter_config.json").read_text())["target_modules"]
    ends = {target.split(".")[-1] for target in targets}
    assert ends == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    code = (adapter / "README.md").read_text().split("```python\n")[1].split("```")[0]
    loaded = {}
    exec(code.replace('path = "."', f"path = {str(adapter)!r}"), loaded)
    assert loaded["model"].generation_config.eos_token_id == 3 and "lora" in (adapter / "README.md").read_text()


def test_new_tokens_are_learned_with_the_adapter(adapter, base):
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    new = tokenizer.convert_tokens_to_ids("<|tool|>")
    assert new == 281 and "<|tool|>" not in AutoTokenizer.from_pretrained(base).get_vocab()
    base_model = AutoModelForCausalLM.from_pretrained(base)
    embedding = base_model.get_input_embeddings().weight.detach().clone()
    merged = merge_adapter(PeftModel.from_pretrained(base_model, adapter))
    changed = (merged.get_input_embeddings().weight - embedding).abs().amax(1) > 1e-3
    assert changed.nonzero().flatten().tolist() == sorted([new, tokenizer.convert_tokens_to_ids("<|spare_3|>")])


NEW_TOKENS = ["<new_0>", "<new_1>", "<new_2>"]
# Ways for an adapter to have embeddings of tokens that were added to its base.
EMBEDDINGS = {
    "resized alone": {},
    "single tokens": {"trainable_token_indices": True},
    "single tokens, unsaved": {"trainable_token_indices": True},
    "trained as a whole": {"modules_to_save": True},
    "adapted": {"target_modules": True},
}


def resized_adapter(folder: Path, kind: str, tied: bool, save: bool | str = "auto") -> torch.Tensor:
    """Write PEFT's adapter of a base with added tokens to `folder/adapter`; return its logits for the new tokens."""
    build("TfmDecoderForCausalLM", vocab_size=281, tie_word_embeddings=tied).save_pretrained(folder / "base")
    tokenizer = train_tokenizer(kind="bytes")
    assert tokenizer.add_tokens(NEW_TOKENS) == 3 and len(tokenizer) == 284
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    model.resize_token_embeddings(len(tokenizer))
    ends = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    fields = {"target_modules": ["q_proj"]}
    for name in EMBEDDINGS[kind]:
        value = {end: [7, 281, 282, 283] for end in ends} if name == "trainable_token_indices" else ends
        fields[name] = [*fields.get(name, ()), *value] if isinstance(value, list) else value
    model = trained(get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, **fields)))
    model.save_pretrained(folder / "adapter", save_embedding_layers=save)
    tokenizer.save_pretrained(folder / "adapter")
    return logits(model, torch.tensor([[7, 281, 30, 283, 282, 9]]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_an_adapter_trained_after_tokens_were_added(tmp_path, kind, tied):
    expected = resized_adapter(tmp_path, kind, tied, save="auto" if "unsaved" not in kind else False)
    ids = torch.tensor([[7, 281, 30, 283, 282, 9]])
    model, tokenizer = open_model(str(tmp_path / "adapter"))
    assert torch.equal(logits(model, ids), expected)
    if "unsaved" not in kind or tied:
        assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter"), ids), expected)
    one_end = tied and kind in ("trained as a whole", "adapted")
    assert cli(["merge", str(tmp_path / "adapter"), str(tmp_path / "merged"), *(["--untie"] if one_end else [])]) == 0
    merged, again = open_model(str(tmp_path / "merged"))
    assert (logits(merged, ids) - expected).abs().max() < 1e-4
    assert merged.config.vocab_size == len(again) == 284
    assert again.convert_tokens_to_ids(NEW_TOKENS) == tokenizer.convert_tokens_to_ids(NEW_TOKENS) == [281, 282, 283]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["adapted", "single tokens"])
def test_an_adapter_without_the_embeddings_of_new_tokens_is_refused(tmp_path, kind, capsys):
    resized_adapter(tmp_path, kind, False, save=False)
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    if kind == "single tokens":
        weights = load_file(tmp_path / "adapter/adapter_model.safetensors")
        names = [name for name in weights if "trainable_tokens_delta" in name]
        weights |= {name: weights[name][[0, 1, 3]].clone() for name in names}
        save_file(weights, tmp_path / "adapter/adapter_model.safetensors")
        config["trainable_token_indices"] = {name: [7, 281, 283] for name in config["trainable_token_indices"]}
        path.write_text(json.dumps(config))
    assert cli(["merge", str(tmp_path / "adapter"), str(tmp_path / "merged")]) == 2
    error = capsys.readouterr().err
    lost = {"adapted": "3 of them (row 281", "single tokens": "1 of them (row 282"}[kind]
    assert f"{path.parent}: tokens were added to its base model" in error and lost in error
    assert not (tmp_path / "merged").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("trained", ["list", "dict"])
def test_new_rows_of_an_output_layer_that_the_adapter_lacks_are_refused(tmp_path, trained):
    """The tokens' embeddings are trained, those of the untied output layer are not, and were not saved."""
    build("TfmDecoderForCausalLM", vocab_size=281, tie_word_embeddings=False).save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(283)
    indices = [281, 282] if trained == "list" else {"embed_tokens": [281, 282]}
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], trainable_token_indices=indices)
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    train_tokenizer(kind="bytes").save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="lacks lm_head of 2 of them"):
        open_model(str(tmp_path / "adapter"))


def test_an_adapter_whose_tokenizer_has_tokens_without_embeddings_is_refused(tmp_path):
    build("TfmDecoderForCausalLM", vocab_size=281).save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).save_pretrained(
        tmp_path / "adapter"
    )
    tokenizer = train_tokenizer(kind="bytes")
    tokenizer.add_tokens(NEW_TOKENS)
    tokenizer.save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="lacks model.embed_tokens of 3 of them"):
        open_model(str(tmp_path / "adapter"))


def classifier_adapter(folder: Path, base_head: str, **fields) -> torch.Tensor:
    """Write a stock classifier adapter on a base with another head or none; return its logits."""
    build(f"TfmEncoder{base_head}", num_labels=5).save_pretrained(folder / "base")
    train_tokenizer(kind="bytes", style="encoder").save_pretrained(folder / "base")
    model = AutoModelForSequenceClassification.from_pretrained(
        folder / "base", num_labels=2, ignore_mismatched_sizes=True
    )
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"], **fields)
    model = trained(get_peft_model(model, config))
    model.save_pretrained(folder / "adapter")
    train_tokenizer(kind="bytes", style="encoder").save_pretrained(folder / "adapter")
    return logits(model)


@pytest.mark.filterwarnings("ignore")
def test_a_head_that_neither_base_nor_adapter_has_is_refused(tmp_path, capsys):
    """PEFT saves the classifier alone; the dense layer and the norm before it were drawn before the training."""
    classifier_adapter(tmp_path, "Model")
    lost = "neither the adapter nor its base model has head.dense.weight"
    with pytest.raises(InputError, match=lost):
        open_model(str(tmp_path / "adapter"))
    assert cli(["merge", str(tmp_path / "adapter"), str(tmp_path / "merged")]) == 2
    error = capsys.readouterr().err
    assert lost in error and "modules_to_save=['head.dense', …]" in error and "Traceback" not in error
    assert not (tmp_path / "merged").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("base_head", "fields"),
    [("ForSequenceClassification", {}), ("Model", {"modules_to_save": ["head", "classifier"]})],
)
def test_a_classifier_adapter_with_its_whole_head_loads_and_merges(tmp_path, base_head, fields):
    expected = classifier_adapter(tmp_path, base_head, **fields)
    config_path = tmp_path / "adapter" / "adapter_config.json"
    assert json.loads(config_path.read_text())["task_type"] == "SEQ_CLS"
    torch.testing.assert_close(logits(open_model(str(tmp_path / "adapter"))[0]), expected)
    assert cli(["merge", str(tmp_path / "adapter"), str(tmp_path / "merged")]) == 0
    torch.testing.assert_close(logits(open_model(str(tmp_path / "merged"))[0]), expected, atol=1e-4, rtol=1e-4)


def test_merging_is_compared_with_a_second_loading(adapter, base, tmp_path, monkeypatch, capsys):
    """A loading that draws weights at random would agree with what was merged from itself."""
    real = merge.open_model

    def draws_weights(path, *args, **kwargs):
        model, tokenizer = real(path, *args, **kwargs)
        if Path(path) == adapter:
            model.get_base_model().model.norm.weight.data.normal_()
        return model, tokenizer

    monkeypatch.setattr(merge, "open_model", draws_weights)
    assert cli(["merge", str(adapter), str(tmp_path / "merged"), "--base", str(base)]) == 2
    assert "loaded twice, it computes different outputs" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("script", [finetune_classification, finetune_instruct, finetune_preference, pretrain_clm])
def test_scripts_say_how_to_merge_an_adapter_given_as_model(script, adapter, base, tmp_path, capsys):
    records = [{"text": "a b", "label": f"{n % 2}", "prompt": "a", "response": "b"} for n in range(8)]
    records = [{**record, "chosen": "b", "rejected": "c"} for record in records]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    data = ["--data", "--tokenizer", base] if script is pretrain_clm else ["--validation_file", "--train_file"]
    argv = [
        *data[:1],
        tmp_path / "data.jsonl",
        *data[1:],
        *([] if script is pretrain_clm else [tmp_path / "data.jsonl"]),
    ]
    argv += ["--model", adapter, "--output_dir", tmp_path / "out"]
    assert script.main([str(part) for part in argv]) == 2
    assert f"is an adapter: merge it first with `hf-tfm merge {adapter} MERGED`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["export {} x --to qwen3", "convert {} x", "verify {}", "serve {}"])
def test_commands_say_how_to_merge_an_adapter(command, adapter, capsys):
    assert cli(command.format(adapter).split()) == 2
    error = capsys.readouterr().err
    assert "is an adapter: " in error and "hf-tfm merge" in error


def test_an_adapter_opens_with_the_head_that_it_was_trained_with(adapter):
    with pytest.raises(InputError, match="is an adapter for AutoModelForCausalLM, not for AutoModel: merge it first"):
        open_model(str(adapter), "AutoModel")


def test_an_adapter_exported_to_bf16_is_half_as_large(adapter, tmp_path, capsys):
    assert cli(["export", str(adapter), str(tmp_path / "half"), "--to", "bf16"]) == 0
    whole, half = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "half"))
    assert whole.keys() == half.keys() and all(torch.equal(half[name], whole[name].bfloat16()) for name in whole)
    copied = ("adapter_config.json", "generation_config.json", "tokenizer.json", "run_record.json")
    assert all((tmp_path / "half" / name).is_file() for name in copied)
    assert not (tmp_path / "half" / ".recipe.json").exists(), "the identity of the run is not exported"
    assert "bfloat16, rounded after the run" in (tmp_path / "half/README.md").read_text()
    assert cli(["export", str(tmp_path / "half"), str(tmp_path / "again"), "--to", "bf16"]) == 2
    assert "are bf16 already" in capsys.readouterr().err
    (tmp_path / "half" / "adapter_model.safetensors").write_bytes(b"broken")
    assert cli(["export", str(tmp_path / "half"), str(tmp_path / "again"), "--to", "bf16"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert cli(["export", str(adapter), str(tmp_path / "other"), "--to", "qwen3"]) == 2
    assert "merge it first with `hf-tfm merge" in capsys.readouterr().err


def test_an_adapter_merged_by_the_command_computes_the_same(adapter, base, tmp_path, capsys):
    assert cli(["merge", str(adapter), str(tmp_path / "merged"), "--base", str(base)]) == 0
    assert "wrote" in capsys.readouterr().out
    wrapped = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ids = torch.tensor([[2, 6, 40, 41, 281, 12, 42, 3]])
    torch.testing.assert_close(logits(merged, ids), logits(wrapped, ids), atol=1e-4, rtol=1e-4)
    assert merged.lm_head.weight is merged.get_input_embeddings().weight, "tied matrices stay tied"
    files = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        "modeling_tfm_decoder.py",
        "README.md",
        "loss_curve.png",
    } <= files
    assert not any(name.startswith("adapter") for name in files) and "checkpoint_complete.json" not in files
    assert GenerationConfig.from_pretrained(tmp_path / "merged").eos_token_id == 3
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "PeftModel" not in card and "merged" in card
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    chat = [{"role": "user", "content": "call hen"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    answer = merged.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(answer).endswith("<|tool|><|eos|>")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["{base}", "{out}"], "no adapter_config.json, so no adapter to merge"),
        (["{adapter}", "{base}"], "is not an empty folder"),
        (["{adapter}", "{out}", "--base", "{out}/nowhere"], "nowhere"),
    ],
)
def test_the_merge_command_reports_mistakes(adapter, base, tmp_path, capsys, arguments, complaint):
    places = dict(base=base, adapter=adapter, out=tmp_path / "out")
    assert cli(["merge", *(argument.format(**places) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and complaint in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("variant", ["lora", "dora", "rslora"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_variant_merges(variant, tied, tmp_path):
    model = build("TfmDecoderForCausalLM", tie_word_embeddings=tied)
    wrapped = trained(add_adapter(model, recipe(lora_variant=variant), "CAUSAL_LM"))
    plain = logits(build("TfmDecoderForCausalLM", tie_word_embeddings=tied))
    expected = logits(wrapped)
    assert (expected - plain).abs().max() > 0.1
    merge_adapter(wrapped).save_pretrained(tmp_path)
    again = hf_tfm.TfmDecoderForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(again), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_on_a_tied_matrix_is_untied_or_refused(target, tmp_path):
    def adapted() -> torch.nn.Module:
        model = build("TfmDecoderForCausalLM", tie_word_embeddings=True)
        return trained(add_adapter(model, recipe(lora_target_modules=[target, "q_proj"]), "CAUSAL_LM"))

    with pytest.raises(InputError, match="share one matrix"):
        merge_adapter(adapted())
    expected = logits(adapted())
    merge_adapter(adapted(), untie=True).save_pretrained(tmp_path)
    again = hf_tfm.TfmDecoderForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config.tie_word_embeddings is False
    torch.testing.assert_close(logits(again), expected, atol=1e-4, rtol=1e-4)


def test_tokens_of_an_untied_model_are_trained_at_both_ends(tmp_path):
    model = build("TfmDecoderForCausalLM", "llama")
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    wrapped = trained(add_adapter(model, recipe(), "CAUSAL_LM", new_tokens=[300, 301]))
    names = [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad and "lora" not in name]
    assert any("embed_tokens" in name for name in names) and any("lm_head" in name for name in names)
    ids = torch.tensor([[8, 300, 9, 301, 10]])
    expected = logits(wrapped, ids)
    torch.testing.assert_close(logits(merge_adapter(wrapped), ids), expected, atol=1e-4, rtol=1e-4)


def test_unknown_target_modules_are_reported_with_the_existing_ones():
    with pytest.raises(InputError, match="lora_target_modules .*query.*linear modules are .*q_proj"):
        add_adapter(build("TfmDecoderForCausalLM"), recipe(lora_target_modules=["query"]), "CAUSAL_LM")


def test_an_adapter_on_an_8_bit_base_merges_into_full_weights(base, tmp_path):
    pytest.importorskip("torchao")
    records = [{"prompt": f"call {name}", "response": f"{name}{name}"} for name in ("cat", "hen", "cow") * 4]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    argv = [
        "--model", base, "--train_file", tmp_path / "train.jsonl", "--validation_file", tmp_path / "train.jsonl",
        "--output_dir", tmp_path / "run", "--lora", "--lora_int8", "--learning_rate", 3e-2, "--bf16", "false",
        "--max_length", 64, "--num_train_epochs", 20, "--per_device_train_batch_size", 4, "--answers", 0,
    ]  # fmt: skip
    assert finetune_instruct.main([str(part) for part in argv]) == 0
    record = json.loads((tmp_path / "run" / "run_record.json").read_text())
    loss = record["results"]["loss"]["value"]
    assert loss < 0.5 * record["baselines"]["before"]["loss"]["value"]
    assert cli(["merge", str(tmp_path / "run"), str(tmp_path / "merged"), "--base", str(base)]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
