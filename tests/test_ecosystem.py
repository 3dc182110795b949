"""The models in other libraries: PEFT, TRL, sentence-transformers, torchao, accelerate, Trainer."""

import re
import subprocess
import sys

import pytest
import torch
from tiny import MODELS, build, inputs_for, random_ids
from torch.testing import assert_close
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    LlamaConfig,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

import hf_tfm


TEXTS = ["the cat sat on the mat", "rain", "seven ships sailed south and six of them came home", "a small model"]
FOR_CAUSAL_LM, FOR_MASKED_LM = "TfmDecoderForCausalLM", "TfmEncoderForMaskedLM"
CLOSE = dict(atol=2e-5, rtol=1e-4)


def arguments(output_dir, **settings) -> TrainingArguments:
    defaults = dict(
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        save_strategy="no",
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
    )
    return TrainingArguments(output_dir=output_dir, **{**defaults, **settings})


def rows_for(name: str, count: int = 16) -> list[dict[str, torch.Tensor]]:
    rows = inputs_for(name, batch=count)
    return [{key: value[row] for key, value in rows.items()} for row in range(count)]


# Importing


def test_importing_the_package_is_light_and_peft_knows_it_in_any_order():
    """Nothing but transformers is imported; PEFT, imported after the model was built, has default target modules."""
    script = (
        "import sys\n"
        "from transformers import AutoModel, GenerationMixin, PreTrainedModel\n"
        "before = set(sys.modules)\n"
        "import hf_tfm\n"
        "heavy = {'peft', 'datasets', 'trl', 'matplotlib', 'sklearn', 'evaluate', 'sentence_transformers', 'pandas'}\n"
        "print(sorted(heavy & (sys.modules.keys() - before)))\n"
        "model = hf_tfm.TfmDecoderForCausalLM(hf_tfm.TfmDecoderConfig.preset('nano'))\n"
        "from peft import LoraConfig, get_peft_model\n"
        "print(sorted(get_peft_model(model, LoraConfig()).peft_config['default'].target_modules))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert run.stdout.splitlines() == ["[]", "['q_proj', 'v_proj']"], run.stderr[-2000:]


# transformers


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("name", ["llama", FOR_CAUSAL_LM])
def test_label_smoothing_of_a_plain_trainer_teaches_the_next_token(name, adapter, tmp_path):
    """Trainer shifts the labels of those classes only that its table of causal LMs names."""
    ids = torch.arange(40).add(torch.arange(4)[:, None] * 7) % 13 + 5  # each token has one successor
    llama = LlamaConfig(vocab_size=99, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    model = AutoModelForCausalLM.from_config(llama) if name == "llama" else build(name)
    if adapter:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(target_modules="all-linear", modules_to_save=["lm_head"]))
    rows = [{"input_ids": row, "labels": row} for row in ids]
    args = arguments(tmp_path, max_steps=60, learning_rate=2e-2, label_smoothing_factor=0.1, label_names=["labels"])
    Trainer(model, args, train_dataset=rows, data_collator=default_data_collator).train()
    with torch.no_grad():
        predicted = model.eval()(input_ids=ids).logits.argmax(-1)
    right = (predicted[:, :-1] == ids[:, 1:]).float().mean()
    assert right > 0.95 and (predicted == ids).float().mean() < 0.1


@pytest.mark.parametrize("name", [name for name in MODELS if "For" in name])
def test_tables_of_transformers_name_our_classes(name):
    """Pipelines and `transformers serve` accept the classes of these tables."""
    from transformers.models.auto import modeling_auto

    model = build(name)
    tables = [
        table for key, table in vars(modeling_auto).items() if key.endswith("_MAPPING_NAMES") and name in table.values()
    ]
    assert len(tables) == 1 and tables[0][model.config.model_type] == name
    head = "For" + name.partition("For")[2]
    assert f"Bert{head}" in tables[0].values() or f"Llama{head}" in tables[0].values()


# PEFT


def test_tables_of_peft_name_our_models_wherever_they_name_qwen3():
    from peft.utils import constants

    build(FOR_CAUSAL_LM)
    tables = {name: table for name, table in vars(constants).items() if isinstance(table, dict) and "qwen3" in table}
    assert len(tables) > 10
    for name, table in tables.items():
        for model_type in ("tfm_decoder", "tfm_encoder", "tfm_encoder_decoder"):
            assert table[model_type] == table["qwen3"], name


@pytest.mark.parametrize("method", ["IA3Config", "AdaLoraConfig", "LoHaConfig", "OFTConfig", "VeraConfig"])
def test_other_methods_of_peft_need_no_target_modules(method):
    import peft

    options = {"total_step": 10} if method == "AdaLoraConfig" else {}
    for name in (FOR_CAUSAL_LM, FOR_MASKED_LM):
        adapted = peft.get_peft_model(build(name), getattr(peft, method)(**options))
        adapted(**inputs_for(name)).loss.backward()
        assert any(p.grad is not None for p in adapted.parameters() if p.requires_grad)


def test_peft_has_default_target_modules_for_both_families():
    from peft import LoraConfig, get_peft_model

    for name in (FOR_CAUSAL_LM, FOR_MASKED_LM):
        adapted = get_peft_model(build(name), LoraConfig(r=2))
        modules = {
            re.sub(r".*layers\.\d\.|\.lora_.*", "", key) for key, _ in adapted.named_parameters() if "lora" in key
        }
        assert modules == {"self_attn.q_proj", "self_attn.v_proj"}


TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}


@pytest.mark.parametrize("name", [name for name in MODELS if name.endswith(("ForMaskedLM", *TASKS))])
def test_an_adapter_trains_saves_loads_and_merges(name, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    task = next((task for head, task in TASKS.items() if name.endswith(head)), None)
    inputs = inputs_for(name)
    inputs.pop("labels", None)
    before = build(name)
    # For these two tasks PEFT has to be told (also with BERT) that the head is trained without an adapter.
    exclude = ["score", "classifier", "qa_outputs"] if task in ("TOKEN_CLS", "QUESTION_ANS") else None
    config = LoraConfig(r=2, target_modules="all-linear", task_type=task, exclude_modules=exclude)
    adapted = get_peft_model(build(name), config)
    head = {"score", "classifier", "qa_outputs", "lm_head", "decoder"}
    targets = {target.rpartition(".")[2] for target in adapted.targeted_module_names}
    assert {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"} <= targets
    assert not targets & head

    Trainer(adapted, arguments(tmp_path), train_dataset=rows_for(name), data_collator=default_data_collator).train()
    adapted.eval()
    with torch.no_grad():
        trained = adapted(**inputs)[0]
        assert not torch.allclose(trained, before(**inputs)[0], atol=1e-2)
        adapted.save_pretrained(tmp_path / "adapter")
        loaded = PeftModel.from_pretrained(build(name), tmp_path / "adapter").eval()
        assert torch.equal(loaded(**inputs)[0], trained)

        merged = loaded.merge_and_unload()
        assert type(merged) is getattr(hf_tfm, name)
        assert_close(merged(**inputs)[0], trained, **CLOSE)
        output = merged.get_output_embeddings()
        assert output is None or output.weight is merged.get_input_embeddings().weight
        merged.save_pretrained(tmp_path / "merged")
        again = type(merged).from_pretrained(tmp_path / "merged")
        assert_close(again(**inputs)[0], trained, **CLOSE)


def test_adapting_tied_embeddings_merges_without_loss(tmp_path):
    """A tied matrix that is trained in both of its places, as for new tokens, stays tied and equal after merging."""
    from peft import LoraConfig, get_peft_model

    model = build(FOR_CAUSAL_LM)
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    adapted = get_peft_model(model, config)
    Trainer(
        adapted, arguments(tmp_path), train_dataset=rows_for(FOR_CAUSAL_LM), data_collator=default_data_collator
    ).train()
    adapted.eval()
    ids = random_ids(2, 8)
    with torch.no_grad():
        trained = adapted(ids).logits
        merged = adapted.merge_and_unload()
        assert_close(merged(ids).logits, trained, **CLOSE)
        merged.save_pretrained(tmp_path / "merged")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        assert_close(again(ids).logits, trained, **CLOSE)


def test_an_adapter_on_untied_embeddings_merges_without_loss():
    """Embeddings and output layer with separate adapters merge; tied, they would share one matrix."""
    from peft import LoraConfig, get_peft_model

    model = build(FOR_CAUSAL_LM, tie_word_embeddings=False)
    config = LoraConfig(r=2, target_modules=["q_proj", "embed_tokens", "lm_head"], init_lora_weights=False)
    adapted = get_peft_model(model, config).eval()
    ids = random_ids(2, 8)
    with torch.no_grad():
        expected = adapted(ids).logits
        assert_close(adapted.merge_and_unload()(ids).logits, expected, **CLOSE)


# TRL


def test_trl_trains_on_packed_texts_that_do_not_see_each_other(tokenizer, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    build(FOR_CAUSAL_LM).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    config = SFTConfig(
        output_dir=tmp_path / "run",
        max_steps=1,
        per_device_train_batch_size=2,
        packing=True,
        max_length=32,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        str(tmp_path / "model"),
        args=config,
        train_dataset=Dataset.from_dict({"text": TEXTS}),
        processing_class=tokenizer,
    )
    assert isinstance(trainer.model, hf_tfm.TfmDecoderForCausalLM)
    batch = next(iter(trainer.get_train_dataloader()))
    batch = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
    starts = [*(batch["position_ids"][0] == 0).nonzero().flatten().tolist(), batch["position_ids"].shape[1]]
    assert len(starts) > 2, "more than one text in the row"
    with torch.no_grad():
        packed = trainer.model(**batch).logits[0]
        for start, end in zip(starts, starts[1:]):
            alone = trainer.model(batch["input_ids"][:, start:end]).logits[0]
            assert_close(packed[start:end], alone, **CLOSE)
    before = trainer.model.model.layers[0].mlp.up_proj.weight.clone()
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0
    assert not torch.equal(trainer.model.model.layers[0].mlp.up_proj.weight, before)


# sentence-transformers


@pytest.mark.parametrize("name", ["TfmEncoderModel", FOR_MASKED_LM, "TfmDecoderModel", FOR_CAUSAL_LM])
def test_sentence_transformers_encode_any_folder(name, tokenizer, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = build(name)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    encoder = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    together = encoder.encode(TEXTS, batch_size=4)
    assert together.shape == (4, 32)
    for batch_size in (1, 3):
        assert_close(encoder.encode(TEXTS, batch_size=batch_size), together, **CLOSE)
    base = getattr(model, "model", model)
    ids = tokenizer(TEXTS[1], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = base(ids).last_hidden_state[0]
    # Last token for language models, mean for the others: sentence-transformers' own defaults.
    expected = states[-1] if name == FOR_CAUSAL_LM else states.mean(0)
    assert_close(torch.from_numpy(together[1]), expected, **CLOSE)
    encoder.save(str(tmp_path / "saved"))
    assert_close(SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(TEXTS), together, **CLOSE)


# torchao, accelerate


@pytest.mark.parametrize("name", [FOR_CAUSAL_LM, FOR_MASKED_LM])
def test_int8_weights_give_near_logits(name, tmp_path):
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    model = build(name)
    model.save_pretrained(tmp_path)
    quantized = type(model).from_pretrained(
        tmp_path, quantization_config=TorchAoConfig(Int8WeightOnlyConfig(version=2))
    )
    assert "Int8" in type(quantized.model.layers[0].mlp.up_proj.weight).__name__
    ids = random_ids(2, 12)
    with torch.no_grad():
        expected, got = model(ids).logits, quantized(ids).logits
    assert 0 < (got - expected).norm() / expected.norm() < 0.03


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
@pytest.mark.parametrize("name", [FOR_CAUSAL_LM, FOR_MASKED_LM])
def test_device_maps(name, device_map, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, device_map=device_map)
    ids = random_ids(2, 6)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", MODELS)
def test_parallel_plans_name_modules_that_exist(name):
    """Each entry of the tensor, pipeline and FSDP plans, for shapes with every optional part and with none."""
    for shape in ("qwen3", "gpt2") if "Decoder" in name else ("default", "bert", "none"):
        model = build(name, shape)
        modules = {re.sub(r"\.\d+", ".*", key): module for key, module in model.named_modules()}
        prefix = "" if name.endswith("Model") else "model."
        assert model.tp_plan and model.fsdp_plan
        for plan in (model.tp_plan, model.fsdp_plan, model.pp_plan or {}):
            assert [key for key in plan if key not in modules] == [], shape
        split = {key for key, how in model.tp_plan.items() if "wise" in how}
        linear = {
            key for key, module in modules.items() if ".layers." in f".{key}" and isinstance(module, torch.nn.Linear)
        }
        assert linear == {key for key in split if ".layers." in f".{key}"}, "every matrix of a block is split"
        for key, how in model.tp_plan.items():
            if key.endswith(("o_proj", "down_proj")):
                assert how == "rowwise"
        if "Decoder" in name:
            assert f"{prefix}layers" in model.pp_plan
        assert set(model._no_split_modules) == {type(model.get_submodule(f"{prefix}layers.0")).__name__}


# Trainer


# Every kind of labels: of tokens, of texts, of several options, and of two heads.
@pytest.mark.parametrize(
    "name",
    [FOR_CAUSAL_LM, "TfmDecoderForSequenceClassification", "TfmEncoderForMultipleChoice", "TfmEncoderForPreTraining"],
)
def test_a_stopped_run_resumes_to_the_same_bits(name, tmp_path, tokenizer):
    """Dropout makes the random state matter; the checkpoint is a complete model folder."""
    final = []
    for resume in (False, True):
        model = build(name, hidden_dropout=0.1, attention_dropout=0.1)
        trainer = Trainer(
            model,
            arguments(tmp_path / "run", max_steps=4, save_strategy="steps", save_steps=2),
            train_dataset=rows_for(name),
            data_collator=default_data_collator,
            processing_class=tokenizer,
        )
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2") if resume else None)
        assert trainer.state.global_step == 4
        final.append({key: value.clone() for key, value in model.state_dict().items()})
    assert all(torch.equal(value, final[0][key]) for key, value in final[1].items())

    checkpoint = tmp_path / "run" / "checkpoint-4"
    family = "decoder" if "Decoder" in name else "encoder"
    files = {path.name for path in checkpoint.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "configuration_tfm.py",
        "modeling_tfm.py",
        f"modeling_tfm_{family}.py",
    } <= files
    loaded = getattr(hf_tfm, name).from_pretrained(checkpoint)
    assert all(torch.equal(value, final[0][key]) for key, value in loaded.state_dict().items())


def test_a_trained_folder_opens_as_a_base_model(tmp_path):
    model = build(FOR_CAUSAL_LM)
    trainer = Trainer(
        model, arguments(tmp_path / "run"), train_dataset=rows_for(FOR_CAUSAL_LM), data_collator=default_data_collator
    )
    trainer.train()
    trainer.save_model(tmp_path / "model")
    ids = random_ids(1, 5)
    with torch.no_grad():
        base = AutoModel.from_pretrained(tmp_path / "model")
        assert torch.equal(base(ids).last_hidden_state, model.eval().model(ids).last_hidden_state)


def test_the_trainer_evaluates_every_head(tmp_path):
    """Predictions keep their rows' order and shapes, and the evaluation loss is the mean over the data."""
    for name in MODELS:
        if name.endswith("Model"):
            continue
        model, rows = build(name), rows_for(name, 6)
        trainer = Trainer(model, arguments(tmp_path, per_device_eval_batch_size=6), data_collator=default_data_collator)
        result = trainer.predict(rows)
        with torch.no_grad():
            expected = model(**default_data_collator(rows))
        assert result.metrics["test_loss"] == pytest.approx(expected.loss.item(), abs=1e-4), name
        predictions = result.predictions[0] if isinstance(result.predictions, tuple) else result.predictions
        assert_close(torch.from_numpy(predictions), expected[1], atol=1e-4, rtol=1e-4)
