"""Trainers of TRL and sentence-transformers that are set up without a fault."""

import json
from pathlib import Path
from typing import Any

import torch
from audit_helpers import SENTENCES, chats, train_shortly
from chat_tokenizers import FAMILIES, Family, trl_family, trl_templates
from datasets import Dataset, IterableDataset
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaForSequenceClassification


LORA = dict(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
RUN = dict(per_device_train_batch_size=4, max_steps=4, use_cpu=True, report_to=[], save_strategy="no", bf16=False)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Returns the weather of a town.",
        "parameters": {"type": "object", "properties": {"town": {"type": "string", "description": "Name of the town."}},
                       "required": ["town"]},
    },
}  # fmt: skip


def completions(count: int = 8) -> list[dict[str, Any]]:
    """Returns prompts with completions as plain texts."""
    return [
        {
            "prompt": f"{number}: Tell me of {SENTENCES[number % 8]}.\nAnswer:",
            "completion": f" {SENTENCES[-number % 8]}",
        }
        for number in range(count)
    ]


def conversational_completions(count: int = 8, system: bool = True) -> list[dict[str, Any]]:
    """Returns prompts with completions as messages."""
    records = [record["messages"] for record in chats(count, system)]
    return [{"prompt": messages[:-1], "completion": messages[-1:]} for messages in records]


def tool_chats(count: int = 8) -> list[dict[str, Any]]:
    """Returns chats in which the assistant calls a tool, reads what it returns, and answers."""
    records = []
    for number in range(count):
        town = SENTENCES[number % 8].split()[-1].title()
        call = {"type": "function", "function": {"name": "weather", "arguments": {"town": town}}}
        messages = [
            {"role": "user", "content": f"{number}: what is the weather in {town}?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": "weather", "content": f"{number} degrees"},
            {"role": "assistant", "content": f"It is {number} degrees in {town}."},
        ]
        records.append({"messages": messages, "tools": json.dumps([WEATHER])})
    return records


def pairs(count: int = 8) -> list[dict[str, Any]]:
    """Returns prompts with a better and a worse answer, as messages."""
    return [
        {
            "prompt": record["prompt"],
            "chosen": record["completion"],
            "rejected": [{"role": "assistant", "content": "No rain. " * (1 + number % 3)}],
        }
        for number, record in enumerate(conversational_completions(count))
    ]


def _family(family: str | Family) -> Family:
    return FAMILIES[family] if isinstance(family, str) else family


def sft(folder: Path, family: str | Family, records: Any = None, *, template: str | None = None, marked: bool = False,
        trained: bool = False, tokens: dict | None = None, model: Any = None, lora: dict | None = None,
        sizes: dict | None = None, **options: Any) -> Any:  # fmt: skip
    """
    Returns an SFTTrainer.

    Args:
        family: Its tokenizer and its chat template, and where generation stops.
        records: Chats by default, with a system message if the template takes one.
        template: Another chat template.
        marked: Whether the template marks answers.
        trained: Whether the model looks trained.
        tokens: Attributes of the tokenizer that are set before the run.
        lora: Options of `LoraConfig`.
        sizes: Options of the model's configuration.
        options: Settings of `SFTConfig`.
    """
    family = _family(family)
    tokenizer = family.tokenizer(template, marked)
    for name, value in (tokens or {}).items():
        setattr(tokenizer, name, value)
    model = model(tokenizer) if model else family.model(tokenizer, **{"max_position_embeddings": 2048} | (sizes or {}))
    if trained:
        train_shortly(model)
    adapter = None if lora is None else _adapter(True, **lora)
    if records is None:
        records = chats(8, family.takes_system)
    from trl import SFTConfig, SFTTrainer

    dataset = Dataset.from_list(records) if isinstance(records, list) else records
    args = SFTConfig(str(folder), **RUN | {"max_length": 2048} | options)
    return SFTTrainer(
        model, args=args, train_dataset=dataset, eval_dataset=dataset if args.eval_strategy != "no" else None,
        processing_class=tokenizer, peft_config=adapter,
    )  # fmt: skip


def sft_of_trl_template(folder: Path, name: str, records: Any = None, **options: Any) -> Any:
    """Returns an SFTTrainer with a chat template that TRL ships; those for training mark the answers."""
    text = trl_templates()[name]
    if records is None:
        system = trl_family(name).takes_system
        records = chats(8, system, 2)
    marked = "{% generation %}" in text or "{%- generation" in text
    return sft(folder, trl_family(name), records, template=text, assistant_only_loss=marked, **options)


def streamed_chats() -> IterableDataset:
    """Returns chats that are read as a stream."""
    return Dataset.from_list(chats(16, True)).to_iterable_dataset()


def generated_chats() -> IterableDataset:
    """Returns chats of a generator."""
    return IterableDataset.from_generator(lambda: iter(chats(16, True)))


def gpt2(tokenizer: Any) -> Any:
    """Returns a new GPT-2: absolute positions, tied embeddings."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=512)
    config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    return GPT2LMHeadModel(config)


def _policy(folder: Path, family: str) -> tuple[Any, Any]:
    tokenizer = FAMILIES[family].tokenizer()
    train_shortly(FAMILIES[family].model(tokenizer)).save_pretrained(folder / "policy")
    # The trainers load the reference from where the model was loaded.
    return AutoModelForCausalLM.from_pretrained(folder / "policy"), tokenizer


def _adapter(lora: bool, **options: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**LORA | options) if lora else None


def dpo(folder: Path, family: str = "qwen2", lora: bool = False, reference: bool = False, **options: Any) -> Any:
    """Returns a DPOTrainer on pairs of answers."""
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = _policy(folder, family)
    return DPOTrainer(
        model, _policy(folder, family)[0] if reference else None, DPOConfig(str(folder), **RUN | options),
        train_dataset=Dataset.from_list(pairs()), processing_class=tokenizer, peft_config=_adapter(lora),
    )  # fmt: skip


def dpo_of_texts(folder: Path) -> Any:
    """Returns a DPOTrainer on prompts and answers as plain texts."""
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = _policy(folder, "llama2")
    records = [
        {"prompt": record["prompt"], "chosen": record["completion"], "rejected": " no, nothing at all"}
        for record in completions()
    ]
    args = DPOConfig(str(folder), **RUN)
    return DPOTrainer(model, None, args, train_dataset=Dataset.from_list(records), processing_class=tokenizer)


def kto(folder: Path, lora: bool = False) -> Any:
    """Returns a KTOTrainer on answers that are good or bad."""
    from trl import KTOConfig, KTOTrainer

    model, tokenizer = _policy(folder, "llama3")
    records = [
        {
            "prompt": pair["prompt"],
            "completion": pair["chosen" if number % 2 else "rejected"],
            "label": bool(number % 2),
        }
        for number, pair in enumerate(pairs())
    ]
    return KTOTrainer(
        model, args=KTOConfig(str(folder), **RUN), train_dataset=Dataset.from_list(records),
        processing_class=tokenizer, peft_config=_adapter(lora),
    )  # fmt: skip


def orpo(folder: Path) -> Any:
    """Returns an ORPOTrainer on pairs of answers."""
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    model, tokenizer = _policy(folder, "qwen2")
    args = ORPOConfig(str(folder), **RUN)
    return ORPOTrainer(model, args, train_dataset=Dataset.from_list(pairs()), processing_class=tokenizer)


def cpo(folder: Path) -> Any:
    """Returns a CPOTrainer on pairs of answers."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    model, tokenizer = _policy(folder, "llama3")
    args = CPOConfig(str(folder), **RUN)
    return CPOTrainer(model, args, train_dataset=Dataset.from_list(pairs()), processing_class=tokenizer)


def reward(folder: Path, family: str = "qwen2", lora: bool = False) -> Any:
    """Returns a RewardTrainer with a new head on a trained body."""
    from trl import RewardConfig, RewardTrainer

    policy, tokenizer = _policy(folder, family)
    torch.manual_seed(0)
    config = policy.config
    config.num_labels = 1
    model = LlamaForSequenceClassification(config)
    model.model.load_state_dict(policy.model.state_dict())
    return RewardTrainer(
        model, RewardConfig(str(folder), **RUN), train_dataset=Dataset.from_list(pairs()), processing_class=tokenizer,
        peft_config=_adapter(lora, task_type="SEQ_CLS", modules_to_save=["score"]),
    )  # fmt: skip


def grpo(folder: Path, trainer: str = "GRPO", lora: bool = False) -> Any:
    """Returns a GRPOTrainer or an RLOOTrainer whose reward is the length of an answer."""
    import trl

    model, tokenizer = _policy(folder, "qwen2")
    records = [{"prompt": record["prompt"]} for record in conversational_completions()]
    options = dict(num_generations=2, max_completion_length=8)
    return getattr(trl, f"{trainer}Trainer")(
        model, reward_funcs=lambda completions, **_: [float(len(one[0]["content"])) for one in completions],
        args=getattr(trl, f"{trainer}Config")(str(folder), **RUN | options), train_dataset=Dataset.from_list(records),
        processing_class=tokenizer, peft_config=_adapter(lora),
    )  # fmt: skip


def embeddings(folder: Path, loss: str = "MultipleNegativesRankingLoss", trained: bool = True) -> Any:
    """Returns a SentenceTransformerTrainer with a tiny BERT."""
    import sentence_transformers as st
    from sentence_transformers.models import Pooling, Transformer
    from sentence_transformers.sentence_transformer import losses
    from sound_plain import bert_base

    path, tokenizer = folder / "bert", FAMILIES["bert"].tokenizer()
    (train_shortly(bert_base(tokenizer)) if trained else bert_base(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    words = Transformer(str(path))
    model = st.SentenceTransformer(modules=[words, Pooling(32)], device="cpu")
    records = {
        "MultipleNegativesRankingLoss": [{"anchor": text.split()[-1], "positive": text} for text in SENTENCES],
        "CosineSimilarityLoss": [
            {"sentence1": text, "sentence2": SENTENCES[number // 2], "score": number / 8}
            for number, text in enumerate(SENTENCES)
        ],
        "TripletLoss": [
            {"anchor": text.split()[-1], "positive": text, "negative": SENTENCES[number - 1]}
            for number, text in enumerate(SENTENCES)
        ],
    }
    args = st.SentenceTransformerTrainingArguments(str(folder), **RUN)
    dataset = Dataset.from_list(records[loss])
    return st.SentenceTransformerTrainer(model, args, dataset, loss=getattr(losses, loss)(model))


def cross_encoder(folder: Path) -> Any:
    """Returns a CrossEncoderTrainer with a tiny BERT."""
    from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
    from sound_plain import bert_base

    path = folder / "bert"
    tokenizer = FAMILIES["bert"].tokenizer()
    bert_base(tokenizer, labels=1).save_pretrained(path)
    tokenizer.save_pretrained(path)
    model = CrossEncoder(str(path), num_labels=1, device="cpu")
    records = [
        {
            "query": text.split()[-1],
            "answer": SENTENCES[number if number % 2 else number - 1],
            "label": float(number % 2),
        }
        for number, text in enumerate(SENTENCES)
    ]
    args = CrossEncoderTrainingArguments(str(folder), **RUN)
    return CrossEncoderTrainer(model, args, Dataset.from_list(records), loss=BinaryCrossEntropyLoss(model))
