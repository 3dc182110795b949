"""Runs without a fault, as people set them up: the preflight finds no error and at most one warning in them."""

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sound_plain as plain
from audit_helpers import chats, find_nothing_wrong
from chat_tokenizers import FAMILIES, Family, trl_templates
from small_runs import build_inputs, script_runs

from hf_tfm.data.chat import PLAIN_TEMPLATE
from hf_tfm.data.tokenizer import CHAT_TEMPLATE
from hf_tfm.train.trainer import RunMixin


pytest.importorskip("trl")
pytest.importorskip("sentence_transformers")
import sound_trl as trl  # noqa: E402


Build = Callable[[Path], Any]
# These templates write pictures, and of a message only parts in a list.
_PICTURES = ("idefics3", "llava_next", "smolvlm")
_OWN = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")


def _template_runs() -> dict[str, Build]:
    """Each family with its own template: all tokens trained, and answers only."""
    runs: dict[str, Build] = {}
    for name, family in FAMILIES.items():
        if family.template is None:
            continue
        two_turns = chats(8, family.takes_system, 2)
        runs[f"family-{name}-all"] = partial(trl.sft, family=name, records=two_turns)
        if name in ("glm4", "nemotron"):
            # The token that ends an answer begins the next turn, so that it is no part of the answer.
            continue
        runs[f"family-{name}-answers"] = partial(
            trl.sft, family=name, records=two_turns, marked=True, assistant_only_loss=True
        )
        runs[f"family-{name}-completions"] = partial(
            trl.sft, family=name, records=trl.conversational_completions(8, family.takes_system)
        )
    return runs


def _trl_runs() -> dict[str, Build]:
    """Each template for text that TRL ships."""
    names = [name for name in trl_templates() if not name.startswith(_PICTURES)]
    return {f"trl-{name}": partial(trl.sft_of_trl_template, name=name) for name in names}


def _sft_runs() -> dict[str, Build]:
    """Other data and settings of the SFTTrainer."""
    runs: dict[str, Build] = {
        f"texts-{family}": partial(trl.sft, family=family, records=[{"text": text} for text in plain.TEXTS])
        for family in ("gpt2", "llama2", "llama3_base", "qwen2_base", "gemma", "mistral_v3", "deepseek3", "falcon")
    }
    runs |= {
        f"completions-{family}": partial(trl.sft, family=family, records=trl.completions())
        for family in ("gpt2", "llama2", "llama3_base", "qwen2_base", "gemma", "phi3")
    }
    runs |= {
        f"tools-{name}": partial(trl.sft_of_trl_template, name=name, records=trl.tool_chats())
        for name in ("qwen2_5", "qwen2_5_training", "qwen3", "qwen3_training", "llama3_1", "glm4moe_training")
    }
    settings: dict[str, dict[str, Any]] = {
        "packing-bfd": dict(packing=True, max_length=256),
        "packing-bfd-answers": dict(packing=True, max_length=256, marked=True, assistant_only_loss=True),
        "packing-wrapped": dict(packing=True, packing_strategy="wrapped", max_length=256),
        "padding-free": dict(padding_free=True, max_length=None),
        "padding-to-64": dict(pad_to_multiple_of=64),
        "checkpointing": dict(gradient_checkpointing=True),
        "no-checkpointing": dict(gradient_checkpointing=False),
        "bf16-weights": dict(sizes=dict(dtype="bfloat16")),
        "accumulation": dict(gradient_accumulation_steps=4, per_device_train_batch_size=2),
        "smoothing": dict(label_smoothing_factor=0.1),
        "lora": dict(lora={}, trained=True),
        "dora": dict(lora=dict(use_dora=True), trained=True),
        "rslora-checkpointing": dict(lora=dict(use_rslora=True), gradient_checkpointing=True),
        "lora-new-tokens": dict(lora=dict(modules_to_save=["embed_tokens", "lm_head"]), trained=True),
        "lora-packing": dict(lora={}, packing=True, max_length=256),
        "eval": dict(eval_strategy="steps", eval_steps=2),
        "workers": dict(dataloader_num_workers=2),
        "trained": dict(trained=True),
        "batch-of-one": dict(per_device_train_batch_size=1),
        "left-padding": dict(tokens=dict(padding_side="left")),
        "dft-loss": dict(loss_type="dft"),
        "chunked-loss": dict(loss_type="chunked_nll"),
        "tied": dict(sizes=dict(tie_word_embeddings=True)),
    }
    for name, options in settings.items():
        runs[f"sft-settings-{name}"] = partial(trl.sft, family="qwen2", **options)
    runs["sft-stream"] = lambda folder: trl.sft(folder, "qwen2", trl.streamed_chats())
    runs["sft-generator"] = lambda folder: trl.sft(folder, "llama3", trl.generated_chats())
    runs["sft-no-system"] = partial(trl.sft, family="qwen2", records=chats(8))
    runs["sft-own-template"] = lambda folder: trl.sft(folder, _own_family(CHAT_TEMPLATE), assistant_only_loss=True)
    runs["sft-own-plain-template"] = partial(trl.sft, family="gpt2", template=PLAIN_TEMPLATE, assistant_only_loss=True)
    runs["sft-gpt2"] = partial(trl.sft, family="alpaca_gpt2", model=trl.gpt2, max_length=400)
    return runs


def _own_family(template: str) -> Family:
    """Returns the tokenizer that this package trains, with one of its templates."""
    named = {"pad": "<|pad|>", "unk": "<|unk|>", "bos": "<|bos|>", "eos": "<|eos|>"}
    return Family("byte_level", named, _OWN, adds="<|bos|> $A", spare=16, options={"chat_template": template})


def _plain_runs() -> dict[str, Build]:
    """Trainer of transformers, for each kind of model."""
    runs: dict[str, Build] = {f"causal-{name}": partial(plain.causal, name=name) for name in plain.ARCHITECTURES}
    runs |= {
        f"masked-{name}": partial(plain.masked, name=name)
        for name in ("Bert", "Roberta", "DistilBert", "ModernBert", "Albert", "Electra", "XLMRoberta")
    }
    runs |= {
        "causal-accumulation": partial(plain.causal, name="Llama", gradient_accumulation_steps=4),
        "causal-eval": partial(plain.causal, name="Qwen2", family="qwen2", eval_strategy="epoch"),
        "causal-checkpointing": partial(plain.causal, name="Llama", gradient_checkpointing=True),
        "causal-bf16": partial(plain.causal, name="Llama", bf16=True),
        "causal-pad-eos": plain.causal_labels,
        "causal-pad-eos-gpt2": partial(plain.causal_labels, family="gpt2"),
        "causal-gemma-left": partial(plain.causal, name="Gemma", family="gemma_base_eos"),
        "answers": plain.answers,
        "answers-smoothing": partial(plain.answers, label_smoothing_factor=0.1),
        "answers-flattening": partial(plain.answers, collator="flattening"),
        "blocks": plain.blocks,
        "blocks-llama": partial(plain.blocks, family="llama2", model="Llama"),
        "blocks-stream": partial(plain.blocks, dataset="stream"),
        "blocks-generator": partial(plain.blocks, dataset="generator"),
        "blocks-torch": partial(plain.blocks, dataset="torch"),
        "blocks-workers": partial(plain.blocks, dataloader_num_workers=2),
        "transformed": plain.transformed,
        "after-a-real-training": plain.train_a_little,
        "masked-whole-words": partial(plain.masked, whole_words=True),
        "masked-40-percent": partial(plain.masked, name="ModernBert", probability=0.4),
        "masked-accumulation": partial(plain.masked, gradient_accumulation_steps=4),
        "own-decoder": partial(plain.own_model, masked_model=False),
        "own-encoder": partial(plain.own_model, masked_model=True),
        "tags": plain.tags,
        "questions": plain.questions,
        "choices": plain.choices,
        "seq2seq-t5": plain.sequences,
        "seq2seq-bart": partial(plain.sequences, name="Bart"),
        "seq2seq-smoothing": partial(plain.sequences, label_smoothing_factor=0.1),
        "seq2seq-accumulation": partial(plain.sequences, gradient_accumulation_steps=2),
    }  # fmt: skip
    runs |= {f"classification-{name}": partial(plain.classification, name=name)
             for name in ("Bert", "DistilBert", "GPT2", "Llama", "Mistral")}  # fmt: skip
    runs["classification-regression"] = partial(plain.classification, problem="regression")
    runs["classification-labels"] = partial(plain.classification, problem="labels")
    runs["classification-trained"] = partial(plain.classification, trained=True)
    return runs


def _other_runs() -> dict[str, Build]:
    """Preferences, rewards, online learning, embeddings."""
    return {
        "dpo": trl.dpo,
        "dpo-llama3": partial(trl.dpo, family="llama3"),
        "dpo-gemma": partial(trl.dpo, family="mistral_v3"),
        "dpo-lora": partial(trl.dpo, lora=True),
        "dpo-reference": partial(trl.dpo, reference=True),
        "dpo-accumulation": partial(trl.dpo, gradient_accumulation_steps=2),
        "dpo-padding-free": partial(trl.dpo, padding_free=True),
        "dpo-ipo": partial(trl.dpo, loss_type="ipo"),
        "dpo-texts": trl.dpo_of_texts,
        "kto": trl.kto,
        "kto-lora": partial(trl.kto, lora=True),
        "orpo": trl.orpo,
        "cpo": trl.cpo,
        "reward": trl.reward,
        "reward-llama3": partial(trl.reward, family="llama3.1"),
        "reward-lora": partial(trl.reward, lora=True),
        "grpo": trl.grpo,
        "grpo-lora": partial(trl.grpo, lora=True),
        "rloo": partial(trl.grpo, trainer="RLOO"),
        "embeddings-mnrl": trl.embeddings,
        "embeddings-new": partial(trl.embeddings, trained=False),
        "embeddings-cosine": partial(trl.embeddings, loss="CosineSimilarityLoss"),
        "embeddings-triplet": partial(trl.embeddings, loss="TripletLoss"),
        "cross-encoder": trl.cross_encoder,
    }


SCRIPTS = [
    "distill", "finetune_classification", "finetune_embeddings", "finetune_instruct", "finetune_multiple_choice",
    "finetune_preference", "finetune_qa", "finetune_rlvr", "finetune_tokens", "finetune_translation", "pretrain_clm",
    "pretrain_mlm",
]  # fmt: skip
RUNS = _template_runs() | _trl_runs() | _sft_runs() | _plain_runs() | _other_runs()


# Architectures of the ordinary run: tied, with experts, without attention, with windows, with ALiBi.
_ARCHITECTURES = ("Bloom", "DeepseekV3", "GPT2", "Gemma2", "Lfm2", "Llama", "Mamba", "Mixtral")


def _in_the_ordinary_run(name: str) -> bool:
    """Whether a run is not slow: one of each family, and every third template of TRL that marks answers."""
    start, _, rest = name.partition("-")
    if start == "family":
        family, _, part = rest.partition("-")
        return part == ("all", "completions", "answers")[list(FAMILIES).index(family) % 3]
    if start == "trl":
        marked = [template for template in trl_templates() if template.endswith("_training")]
        return rest in marked[::3]
    return start != "causal" or rest not in plain.ARCHITECTURES or rest in _ARCHITECTURES


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if _in_the_ordinary_run(name) else pytest.mark.slow) for name in RUNS]
)
def test_finds_nothing_wrong_in_a_sound_run(name: str, tmp_path: Path):
    find_nothing_wrong(RUNS[name](tmp_path))


class _Reached(BaseException):
    """A script has come to its training."""


def reach_training(script: str, arguments: list[str]) -> Any:
    """Returns the trainer that a script of `training/` has built when it would train."""

    def stop(trainer: Any, *_: Any) -> None:
        raise _Reached(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunMixin, "train_or_resume", stop)
        with pytest.raises(_Reached) as reached:
            importlib.import_module(script).main(arguments)
    return reached.value.args[0]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Arguments of a small run of each script."""
    root = tmp_path_factory.mktemp("scripts")
    build_inputs(root)
    return script_runs(root)


@pytest.mark.parametrize("script", SCRIPTS)
def test_finds_nothing_wrong_in_the_runs_of_our_scripts(script: str, scripts: dict[str, list[str]]):
    find_nothing_wrong(reach_training(script, scripts[script]))
