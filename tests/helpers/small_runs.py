"""A small valid run of every `hf-tfm` command and of every script in `training/`."""

import json
from pathlib import Path

import torch
import yaml
from finetune_checks import arguments, write
from peft import LoraConfig, get_peft_model
from tiny import CORPUS, build, build_tokenizer

from hf_tfm.artifacts.record import RECORD_FILE, RunRecord, model_facts
from hf_tfm.data.tokenizer import train_tokenizer


TRAINING = Path(__file__).parents[2] / "training"

WORDS = ["cat", "moon", "rain", "ship", "book", "roof", "page", "hen"]
ANSWERS = {"text": ["cat"], "answer_start": [4]}
RECORDS = {
    "text": [{"text": f"{text} {number}"} for number, text in enumerate(CORPUS)],
    "labels": [{"text": f"the {word} {n}", "label": "ab"[n % 2]} for n in range(4) for word in WORDS],
    "pairs": [{"text": f"the {word}", "text_pair": f"a {word} {n}"} for n in range(4) for word in WORDS],
    "chats": [{"prompt": f"say {word}", "response": f"{word}!"} for word in WORDS],
    "preferences": [{"prompt": f"say {word}", "chosen": f"{word}!", "rejected": "no"} for word in WORDS],
    "sums": [{"prompt": f"say {n}", "answer": "[a-f]"} for n in range(8)],
    "choices": [{"question": f"{word}?", "options": [word, f"no {n}"], "answer": "AB"[n % 2]}
                for n in range(4) for word in WORDS],
    "questions": [{"question": f"who sat on {word}?", "context": f"the cat sat on the {word}", "answers": ANSWERS}
                  for word in WORDS],
    "tags": [{"tokens": ["the", word, "sat"], "ner_tags": ["O", "B-X", "O"]} for n in range(4) for word in WORDS],
    "translations": [{"translation": {"en": f"the {word}", "fr": f"le {word}"}} for n in range(4) for word in WORDS],
}  # fmt: skip

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}


def build_inputs(root: Path) -> None:
    """Writes the models, records and recipes that all runs below read."""
    for name, records in RECORDS.items():
        write(root / f"{name}.jsonl", records)
    models = {
        "decoder": build("TfmDecoderForCausalLM"),
        "encoder": build("TfmEncoderForMaskedLM"),
        "base": build("TfmEncoderModel"),
        "classifier": build("TfmEncoderForSequenceClassification", id2label={0: "a", 1: "b"}),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
        build_tokenizer().save_pretrained(root / name)
    adapter = get_peft_model(models["decoder"], LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    adapter.peft_config["default"].base_model_name_or_path = str(root / "decoder")
    adapter.save_pretrained(root / "adapter")
    build_tokenizer().save_pretrained(root / "adapter")

    chat_tokenizer = train_tokenizer(CORPUS, vocab_size=300, num_spare_tokens=0)
    ids = {f"{name}_token_id": getattr(chat_tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    build("TfmDecoderForCausalLM", max_position_embeddings=512, **ids).save_pretrained(root / "chat")
    chat_tokenizer.save_pretrained(root / "chat")

    trained = RunRecord("pretrain_clm", 0)
    trained["model"] = model_facts(models["decoder"])
    models["decoder"].save_pretrained(root / "trained")
    build_tokenizer().save_pretrained(root / "trained")
    trained.write(root / "trained")

    base = {
        "data": [str(root / "text.jsonl")], "validation_data": [str(root / "text.jsonl")], "model": "nano",
        "tokenizer": str(root / "decoder"), "model_overrides": SMALL, "block_length": 32, "max_steps": 4,
        "per_device_train_batch_size": 4, "save_steps": 2, "eval_steps": 2, "logging_steps": 1, "bf16": False,
        "compile": "off", "cache_dir": str(root / "cache"),
    }  # fmt: skip
    grid = {
        "title": "Positions", "base": {**base, "tokenizer": {"kind": "bpe", "vocab_size": 320, "num_spare_tokens": 0}},
        "grid": {"positions": {"RoPE": {}}}, "seeds": [0], "output_dir": str(root / "out_ablate"),
    }  # fmt: skip
    (root / "pretrain.yaml").write_text(yaml.safe_dump(base))
    (root / "grid.yaml").write_text(yaml.safe_dump(grid))

    # A quickstart with every step finished; each step is a separate command.
    for finished in (
        "tokenizer-decoder/tokenizer.json", f"decoder/{RECORD_FILE}", "tokenizer-encoder/tokenizer.json",
        f"encoder/{RECORD_FILE}", f"classifier/{RECORD_FILE}", "decoder-qwen3/config.json",
        "encoder-modernbert/config.json",
    ):  # fmt: skip
        (root / "quickstart" / finished).parent.mkdir(parents=True, exist_ok=True)
        (root / "quickstart" / finished).touch()
    torch.manual_seed(0)


def command_runs(root: Path) -> dict[str, list[str]]:
    """
    Returns the arguments of each command that terminates, in an order in which they can run. A suffix of a name marks
    another way of running the same command.
    """
    lines = {
        "convert": "convert {root}/exported {root}/converted",
        "export": "export {root}/decoder {root}/exported --to qwen3",
        "export.gguf": "export {root}/chat {root}/gguf --to gguf",
        "export.int8": "export {root}/decoder {root}/int8 --to int8",
        "export.onnx": "export {root}/encoder {root}/onnx --to onnx",
        "merge": "merge {root}/adapter {root}/merged",
        "trim-vocab": "trim-vocab {root}/encoder {root}/text.jsonl {root}/trimmed",
        "generate": "generate {root}/decoder cat --max-new-tokens 4",
        "generate.adapter": "generate {root}/adapter cat --max-new-tokens 4 --temperature 0.5 --top-k 5",
        "generate.beams": "generate {root}/decoder cat --max-new-tokens 4 --beams 2",
        "generate.compare": "generate {root}/decoder cat --max-new-tokens 4 --compare",
        "chat": "chat {root}/chat --max-new-tokens 4",
        "demo": "demo {root}/classifier --space {root}/space",
        "inspect": "inspect {root}/encoder",
        "inspect.picture": "inspect {root}/encoder --picture {root}/pictures",
        "fill-mask": "fill-mask {root}/encoder [MASK]",
        "predict": "predict {root}/classifier {root}/labels.jsonl --out {root}/predicted.jsonl",
        "predict.embeddings": "predict {root}/base {root}/text.jsonl --out {root}/embedded.jsonl",
        "index": "index {root}/text.jsonl {root}/index --encoder {root}/base --passage-length 24",
        "ask": "ask {root}/index who? --decoder {root}/chat --max-new-tokens 4 --passages 1",
        "verify": "verify {root}/encoder --only loading padding",
        "verify.everything": "verify {root}/decoder",
        "refresh": "refresh {root}/decoder --dry-run",
        "push": "push {root}/decoder me/decoder --dry-run",
        "push.adapter": "push {root}/adapter me/adapter --base {root}/decoder --base-model me/decoder --dry-run",
        "card": "card {root}/trained",
        "plan": "plan tiny --gpu t4",
        "formats": "formats chat",
        "preflight": "preflight {root}/chats.jsonl --tokenizer {root}/chat",
    }
    order = ["export", *(name for name in lines if name != "export")]  # `convert` reads what it writes
    return {name: [part.format(root=root) for part in lines[name].split()] for name in order}


def script_runs(root: Path) -> dict[str, list[str]]:
    """Arguments of each script in `training/`; a suffix of a name marks another way of running the same script."""

    def finetuning(script: str, model: str | Path | None, records: str, **fields: object) -> list[str]:
        file = root / f"{records}.jsonl"
        more = {"validation_file": file, "max_steps": 2, "num_train_epochs": 1, **fields}
        return arguments(model, file, root / f"out_{script}", **more)

    translation = {"model_overrides": json.dumps(SMALL), "vocab_size": 300, "max_length": 24}
    ours = {"baselines": None}  # a field that the other scripts have
    return {
        "ablate": [str(root / "grid.yaml"), "--cores", "1"],
        "compare_representations": [
            "--model", f"{root}/encoder", "--train_file", f"{root}/labels.jsonl", "--test_file",
            f"{root}/labels.jsonl", "--output_dir", f"{root}/out_compare",
        ],
        "distill": finetuning(
            "distill", None, "labels", teacher=root / "classifier", keep_layers=1, unlabelled=root / "text.jsonl",
            cache_dir=root / "cache",
        ),
        "distill.causal_lm": [
            f"{root}/pretrain.yaml", "--teacher", f"{root}/decoder", "--top_k", "4",
            "--output_dir", f"{root}/out_distilled",
        ],
        "evaluate_infilling": [
            "--model", f"{root}/encoder", "--text", f"{root}/text.jsonl", "--words", "8", "--gaps", "1",
            "--longest_gap", "2", "--passages", "4", "--output_dir", f"{root}/out_infilling",
        ],
        "evaluate_model": [
            "--model", f"{root}/decoder", "--text", f"{root}/text.jsonl", "--window", "16", "--prompts", "the cat",
            "--max_new_tokens", "4", "--output_dir", f"{root}/out_evaluation",
        ],
        "evaluate_retrieval": [
            "--questions", f"{root}/questions.jsonl", "--encoder", f"{root}/base", "--decoder", f"{root}/chat",
            "--sample", "2", "--passage_length", "24", "--max_new_tokens", "2", "--recall_at", "1", "--passages", "1",
            "--output_dir", f"{root}/out_retrieval",
        ],
        "finetune_classification": finetuning(
            "classification", root / "encoder", "labels", lora="true", dataloader_num_workers=1
        ),
        "finetune_embeddings": finetuning(
            "embeddings", root / "encoder", "pairs", text_field="text", text_pair_field="text_pair", **ours
        ),
        "finetune_instruct": finetuning(
            "instruct", root / "chat", "chats", answers=1, max_new_tokens=4, lora="true", **ours
        ),
        "finetune_multiple_choice": finetuning("multiple_choice", root / "encoder", "choices"),
        "finetune_preference": finetuning("preference", root / "chat", "preferences", lora="true", **ours),
        "finetune_qa": finetuning("qa", root / "encoder", "questions"),
        "finetune_rlvr": finetuning(
            "rlvr", root / "chat", "sums", reward="pattern", answers_per_prompt=4, max_new_tokens=4, lora="true", **ours
        ),
        "finetune_tokens": finetuning("tokens", root / "encoder", "tags"),
        "finetune_translation": finetuning(
            "translation", "nano", "translations", **translation, beams=2, test_file=root / "translations.jsonl", **ours
        ),
        "make_sums": ["--output", f"{root}/out_sums", "--digits", "1"],
        "pretrain_clm": [f"{root}/pretrain.yaml", "--output_dir", f"{root}/out_clm"],
        "pretrain_mlm": [
            f"{root}/pretrain.yaml", "--tokenizer", f"{root}/encoder", "--model_overrides", json.dumps(
                {name: value for name, value in SMALL.items() if name != "num_key_value_heads"}
            ), "--output_dir", f"{root}/out_mlm",
        ],
        "quickstart": ["--output_dir", f"{root}/quickstart"],
        "train_tokenizer": [
            "--data", f"{root}/text.jsonl", "--vocab-size", "300", "--output", f"{root}/out_tokenizer",
        ],
    }  # fmt: skip
