"""Trainings by TRL, PEFT and sentence-transformers that are unusual and right."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import sentence_transformers as st
import torch
from audit_helpers import SENTENCES, chats, train_shortly
from chat_tokenizers import FAMILIES
from datasets import Dataset
from sentence_transformers.sentence_transformer import losses
from sound_plain import TEXTS, bert_base
from sound_trl import RUN, completions, conversational_completions, embeddings, pairs, sft, tool_chats


ODD: dict[str, Callable[[Path], Any]] = {}


def odd(build: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Register a run under the name of its function."""
    ODD[build.__name__.replace("_", "-")] = build
    return build


def _run(folder: Path, family: str, rows: list[Any], trained: bool = True, adapter: Any = None, args: Any = None,
         tokenizer: Any = None, model: Any = None, **options: Any) -> Any:  # fmt: skip
    """Returns an SFTTrainer; `args` are settings of SFTConfig, `options` arguments of the trainer."""
    from trl import SFTConfig, SFTTrainer

    tokenizer = tokenizer or FAMILIES[family].tokenizer()
    model = model or FAMILIES[family].model(tokenizer)
    if trained:
        train_shortly(model)
    config = SFTConfig(str(folder), **RUN | {"max_length": 512} | (args or {}))
    return SFTTrainer(
        model, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=adapter, **options
    )


@odd
def formatted_texts(folder: Path) -> Any:
    rows = [{"question": f"Who reads {number}?", "answer": text} for number, text in enumerate(SENTENCES)]
    return _run(folder, "llama2", rows, formatting_func=lambda row: f"Q: {row['question']}\nA: {row['answer']}</s>")


@odd
def rows_that_are_tokens_already(folder: Path) -> Any:
    tokenizer = FAMILIES["qwen2"].tokenizer(marked=True)
    rows = []
    for record in chats(8, True):
        encoded = tokenizer.apply_chat_template(record["messages"], return_dict=True, return_assistant_tokens_mask=True)
        labels = [token if mask else -100 for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"])]
        rows.append({"input_ids": encoded["input_ids"], "labels": labels})
    args = dict(dataset_kwargs={"skip_prepare_dataset": True})
    return _run(folder, "qwen2", rows, args=args, tokenizer=tokenizer)


@odd
def chats_of_sharegpt(folder: Path) -> Any:
    rows = [
        {"conversations": [{"from": one["role"], "value": one["content"]} for one in record["messages"]]}
        for record in chats(8, True, 2)
    ]
    return _run(folder, "qwen2", rows)


@odd
def other_languages(folder: Path) -> Any:
    texts = ["Der Kessel pfeift, wenn es überkocht.", "Кошка сидела на ковре.", "猫坐在垫子上。", "القطة على السجادة",
             "def f(x):\n    return x ** 2\n", "🙂🎉 ok"]  # fmt: skip
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}]}
        for text in texts
    ]
    return _run(folder, "llama3", rows)


@odd
def blanks_around_messages(folder: Path) -> Any:
    rows = chats(8, True)
    for record in rows:
        for message in record["messages"]:
            message["content"] = f" {message['content']}\n"
    return _run(folder, "llama3", rows)


@odd
def several_answers_in_a_row(folder: Path) -> Any:
    rows = chats(8)
    for record in rows:
        record["messages"].append({"role": "assistant", "content": "And that is all."})
    return _run(folder, "qwen2", rows)


@odd
def an_assistant_that_speaks_first(folder: Path) -> Any:
    rows = chats(8)
    for record in rows:
        record["messages"].insert(0, {"role": "assistant", "content": "Hello, ask me."})
    return _run(folder, "phi4", rows)


@odd
def system_messages_in_the_middle(folder: Path) -> Any:
    rows = chats(8, turns=2)
    for record in rows:
        record["messages"].insert(2, {"role": "system", "content": "Now be brief."})
    return _run(folder, "qwen2", rows)


@odd
def reasoning_before_answers(folder: Path) -> Any:
    rows = chats(8)
    for record in rows:
        record["messages"][-1]["reasoning_content"] = "The roof, then the rain."
    return _run(folder, "qwen3", rows)


@odd
def short_answers(folder: Path) -> Any:
    rows = chats(8)
    for number, record in enumerate(rows):
        record["messages"][-1]["content"] = "AB"[number % 2]
    return sft(folder, "qwen2", rows, marked=True, assistant_only_loss=True)


@odd
def long_prompts_with_short_answers(folder: Path) -> Any:
    rows = [{"prompt": f"{text} " * 30 + "\nAnswer:", "completion": " yes"} for text in SENTENCES]
    return sft(folder, "llama2", rows)


@odd
def one_record(folder: Path) -> Any:
    return _run(folder, "qwen2", chats(1, True))


@odd
def equal_records(folder: Path) -> Any:
    return _run(folder, "qwen2", chats(1, True) * 8)


@odd
def a_few_long_texts_are_cut(folder: Path) -> Any:
    return _run(folder, "llama2", [{"text": text * (30 if n == 3 else 1)} for n, text in enumerate(TEXTS)])


@odd
def a_base_model_that_learns_to_chat(folder: Path) -> Any:
    """Its end token becomes that of the turns."""
    return sft(folder, "qwen2_base", eos_token="<|im_end|>", trained=True)


@odd
def chat_tokens_for_a_base_model(folder: Path) -> Any:
    family = FAMILIES["gpt2"]
    tokenizer = family.tokenizer(FAMILIES["qwen2"].tokenizer().chat_template)
    model = train_shortly(family.model(tokenizer))
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|pad|>"})
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>"]})
    model.resize_token_embeddings(len(tokenizer))
    return _run(folder, "gpt2", chats(8, True), trained=False, tokenizer=tokenizer, model=model)


@odd
def chat_tokens_with_an_adapter(folder: Path) -> Any:
    family = FAMILIES["gpt2"]
    tokenizer = family.tokenizer(FAMILIES["qwen2"].tokenizer().chat_template)
    model = train_shortly(family.model(tokenizer))
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|pad|>"})
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>"]})
    model.resize_token_embeddings(len(tokenizer))
    adapter = peft.LoraConfig(target_modules="all-linear", modules_to_save=["embed_tokens", "lm_head"], r=4)
    return _run(folder, "gpt2", chats(8, True), trained=False, tokenizer=tokenizer, model=model, adapter=adapter)


@odd
def tools_that_are_not_called(folder: Path) -> Any:
    from chat_tokenizers import trl_templates

    rows = [chat | {"tools": tool["tools"]} for chat, tool in zip(chats(8), tool_chats(8))]
    return sft(folder, "qwen2", rows, template=trl_templates()["qwen2_5"])


@odd
def completions_with_all_tokens_trained(folder: Path) -> Any:
    return sft(folder, "llama2", completions(), completion_only_loss=False)


@odd
def completions_and_answers_only(folder: Path) -> Any:
    return sft(folder, "qwen2", conversational_completions(), marked=True, assistant_only_loss=True)


@odd
def completions_of_several_turns(folder: Path) -> Any:
    rows = [record["messages"] for record in chats(8, True, 2)]
    return sft(folder, "qwen2", [{"prompt": one[:2], "completion": one[2:]} for one in rows])


@odd
def the_end_of_long_texts(folder: Path) -> Any:
    return sft(folder, "llama2", [{"text": text} for text in TEXTS], max_length=48, truncation_mode="keep_end")


@odd
def a_loss_of_ones_own(folder: Path) -> Any:
    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        total = torch.nn.functional.cross_entropy(logits.float(), targets, ignore_index=-100, reduction="sum")
        return total / (num_items_in_batch if num_items_in_batch is not None else (targets != -100).sum())

    return _run(folder, "qwen2", chats(8), compute_loss_func=loss)


def _adapted(folder: Path, adapter: Any, **args: Any) -> Any:
    return _run(folder, "qwen2", chats(8, True), adapter=adapter, args=args)


_CAUSAL = dict(task_type="CAUSAL_LM")
_TWO = dict(target_modules=["q_proj", "v_proj"], **_CAUSAL)
for _name, _adapter in {
    "two-projections": peft.LoraConfig(**_TWO, r=4, lora_dropout=0.1),
    "bias": peft.LoraConfig(**_TWO, r=4, bias="lora_only"),
    "gaussian": peft.LoraConfig(**_TWO, r=4, init_lora_weights="gaussian"),
    "pissa": peft.LoraConfig(**_TWO, r=4, init_lora_weights="pissa"),
    "olora": peft.LoraConfig(**_TWO, r=4, init_lora_weights="olora"),
    "one-layer": peft.LoraConfig(**_TWO, r=4, layers_to_transform=[1]),
    "rank-pattern": peft.LoraConfig(**_TWO, r=4, rank_pattern={"q_proj": 8}),
    "embeddings": peft.LoraConfig(target_modules=["q_proj", "embed_tokens"], r=4, **_CAUSAL),
    "saved-norms": peft.LoraConfig(**_TWO, r=4, modules_to_save=["norm"]),
    "token-indices": peft.LoraConfig(**_TWO, r=4, trainable_token_indices=[331, 332, 340]),
    "loha": peft.LoHaConfig(**_TWO, r=4),
    "lokr": peft.LoKrConfig(**_TWO, r=4),
    "ia3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], **_CAUSAL),
    "vera": peft.VeraConfig(target_modules=["q_proj"], r=4, **_CAUSAL),
    "oft": peft.OFTConfig(**_TWO, oft_block_size=8, r=0),
    "norms": peft.LNTuningConfig(**_CAUSAL),
    "adalora": peft.AdaLoraConfig(**_TWO, init_r=4, target_r=2, total_step=100, tinit=5, tfinal=10),
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=4, **_CAUSAL),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=4, **_CAUSAL),
    "p-tuning": peft.PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=16, **_CAUSAL),
}.items():  # fmt: skip
    # The keys of a learned prefix do not fit layers that are computed twice.
    ODD[f"adapter-{_name}"] = partial(_adapted, adapter=_adapter, gradient_checkpointing=_name != "prefix")
for _name, _args in {
    "neftune": dict(neftune_noise_alpha=5.0), "rate-of-adapters": dict(learning_rate=2e-4),
    "no-shuffling": dict(shuffle_dataset=False), "bf16": dict(bf16=True), "liger-off": dict(use_liger_kernel=False),
    "assistant-and-packing-of-two": dict(packing=True, max_length=128), "epochs": dict(max_steps=-1),
}.items():  # fmt: skip
    ODD[f"sft-{_name}"] = partial(_adapted, adapter=None, **_args)


@odd
def an_adapter_that_is_put_on_before(folder: Path) -> Any:
    tokenizer = FAMILIES["qwen2"].tokenizer()
    model = train_shortly(FAMILIES["qwen2"].model(tokenizer))
    model = peft.get_peft_model(model, peft.LoraConfig(**_TWO, r=4))
    return _run(folder, "qwen2", chats(8), trained=False, tokenizer=tokenizer, model=model)


@odd
def an_adapter_that_learns_on(folder: Path) -> Any:
    tokenizer = FAMILIES["qwen2"].tokenizer()
    model = train_shortly(FAMILIES["qwen2"].model(tokenizer))
    first = train_shortly(peft.get_peft_model(model, peft.LoraConfig(**_TWO, r=4)))
    first.save_pretrained(folder / "adapter")
    model = peft.PeftModel.from_pretrained(first.unload(), folder / "adapter", is_trainable=True)
    return _run(folder, "qwen2", chats(8), trained=False, tokenizer=tokenizer, model=model)


@odd
def an_adapter_on_bfloat16(folder: Path) -> Any:
    tokenizer = FAMILIES["qwen2"].tokenizer()
    model = train_shortly(FAMILIES["qwen2"].model(tokenizer)).to(torch.bfloat16)
    adapter = peft.LoraConfig(**_TWO, r=4)
    return _run(folder, "qwen2", chats(8), trained=False, tokenizer=tokenizer, model=model, adapter=adapter)


@odd
def an_adapter_on_tied_embeddings(folder: Path) -> Any:
    tokenizer = FAMILIES["qwen2"].tokenizer()
    model = train_shortly(FAMILIES["qwen2"].model(tokenizer, tie_word_embeddings=True))
    adapter = peft.LoraConfig(target_modules="all-linear", r=4, **_CAUSAL)
    return _run(folder, "qwen2", chats(8), trained=False, tokenizer=tokenizer, model=model, adapter=adapter)


def _preference(folder: Path, rows: list[Any], trainer: str = "DPO", adapter: Any = None, **args: Any) -> Any:
    import trl
    from sound_trl import _policy

    model, tokenizer = _policy(folder, "qwen2")
    config = getattr(trl, f"{trainer}Config")(str(folder), **RUN | args)
    data = Dataset.from_list(rows)
    kind = getattr(trl, f"{trainer}Trainer")
    return kind(model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=adapter)


@odd
def preferences_with_the_prompt_in_both(folder: Path) -> Any:
    rows = [{name: row["prompt"] + row[name] for name in ("chosen", "rejected")} for row in pairs()]
    return _preference(folder, rows)


@odd
def preferences_for_tools(folder: Path) -> Any:
    return _preference(folder, [row | {"tools": tool["tools"]} for row, tool in zip(pairs(), tool_chats())])


@odd
def preferences_that_begin_alike(folder: Path) -> Any:
    rows = pairs()
    for row in rows:
        row["rejected"] = [{"role": "assistant", "content": row["chosen"][0]["content"] + " No."}]
    return _preference(folder, rows)


for _name, _args in {
    "hinge": dict(loss_type="hinge"), "several": dict(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.5]),
    "precomputed": dict(precompute_ref_log_probs=True), "beta": dict(beta=0.5), "apo": dict(loss_type="apo_zero"),
    "checkpointing": dict(gradient_checkpointing=True), "smoothing": dict(label_smoothing=0.1),
    "length-desensitized": dict(ld_alpha=0.5), "low-rate": dict(learning_rate=5e-7),
}.items():  # fmt: skip
    ODD[f"dpo-{_name}"] = partial(_preference, rows=pairs(), **_args)
ODD["dpo-prompt-tuning"] = partial(
    _preference, rows=pairs(), adapter=peft.LoraConfig(**_TWO, modules_to_save=["lm_head"]), learning_rate=1e-5
)
ODD["grpo-strings"] = lambda folder: _online(folder, [{"prompt": f"Say {text}"} for text in SENTENCES])
ODD["grpo-reference"] = lambda folder: _online(folder, [{"prompt": text} for text in SENTENCES], beta=0.04)
ODD["grpo-accumulation"] = lambda folder: _online(
    folder, [{"prompt": text} for text in SENTENCES], gradient_accumulation_steps=2, num_generations=4
)


def _online(folder: Path, rows: list[Any], **args: Any) -> Any:
    import trl
    from sound_trl import _policy

    model, tokenizer = _policy(folder, "qwen2")
    settings = RUN | dict(num_generations=2, max_completion_length=8) | args
    rewards = [lambda completions, **_: [float(len(one)) for one in completions]] * 2
    config = trl.GRPOConfig(str(folder), **settings)
    data = Dataset.from_list(rows)
    return trl.GRPOTrainer(model, rewards, config, train_dataset=data, processing_class=tokenizer)


def _embedded(folder: Path, loss: Callable[[Any], Any], rows: Any, **options: Any) -> Any:
    model = embeddings(folder).model
    args = st.SentenceTransformerTrainingArguments(str(folder), **RUN | options)
    dataset = Dataset.from_list(rows) if isinstance(rows, list) else rows
    made: Any = loss(model)
    return st.SentenceTransformerTrainer(model, args, dataset, loss=made)


_PAIRS = [{"anchor": text.split()[-1], "positive": text} for text in SENTENCES]
_SCORES = [
    {"sentence1": text, "sentence2": SENTENCES[number // 2], "score": number / 8}
    for number, text in enumerate(SENTENCES)
]
_CLASSES = [
    {"sentence1": row["sentence1"], "sentence2": row["sentence2"], "label": n % 2} for n, row in enumerate(_SCORES)
]
for _name, _loss, _rows in [
    ("matryoshka", lambda m: losses.MatryoshkaLoss(m, losses.MultipleNegativesRankingLoss(m), [32, 16]), _PAIRS),
    ("cached", lambda m: losses.CachedMultipleNegativesRankingLoss(m, mini_batch_size=2), _PAIRS),
    ("symmetric", losses.MultipleNegativesSymmetricRankingLoss, _PAIRS),
    ("cosent", losses.CoSENTLoss, _SCORES),
    ("angle", losses.AnglELoss, _SCORES),
    ("contrastive", losses.ContrastiveLoss, _CLASSES),
    ("softmax", lambda m: losses.SoftmaxLoss(m, 32, 2), _CLASSES),
    ("batch-triplets", losses.BatchAllTripletLoss, [{"text": t, "label": n % 2} for n, t in enumerate(SENTENCES)]),
]:
    ODD[f"embeddings-{_name}"] = partial(_embedded, loss=_loss, rows=_rows)
ODD["embeddings-no-duplicates"] = partial(
    _embedded, loss=losses.MultipleNegativesRankingLoss, rows=_PAIRS, batch_sampler="no_duplicates"
)
ODD["embeddings-prompts"] = partial(
    _embedded,
    loss=losses.MultipleNegativesRankingLoss,
    rows=_PAIRS,
    prompts={"anchor": "query: ", "positive": "text: "},
)


@odd
def embeddings_of_two_datasets(folder: Path) -> Any:
    model = embeddings(folder).model
    args = st.SentenceTransformerTrainingArguments(str(folder), **RUN)
    data = {"pairs": Dataset.from_list(_PAIRS), "scores": Dataset.from_list(_SCORES)}
    made = {"pairs": losses.MultipleNegativesRankingLoss(model), "scores": losses.CoSENTLoss(model)}
    return st.SentenceTransformerTrainer(model, args, data, loss=made)


@odd
def embeddings_without_a_transformer(folder: Path) -> Any:
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    tokenizer = FAMILIES["bert"].tokenizer().backend_tokenizer
    model = st.SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu")
    args = st.SentenceTransformerTrainingArguments(str(folder), **RUN)
    loss = losses.MultipleNegativesRankingLoss(model)
    return st.SentenceTransformerTrainer(model, args, Dataset.from_list(_PAIRS), loss=loss)


@odd
def embeddings_of_a_decoder(folder: Path) -> Any:
    from sentence_transformers.models import Normalize, Pooling, Transformer

    family = FAMILIES["qwen3"]
    tokenizer = family.tokenizer()
    train_shortly(family.model(tokenizer)).model.save_pretrained(folder / "decoder")
    tokenizer.save_pretrained(folder / "decoder")
    words = Transformer(str(folder / "decoder"))
    model = st.SentenceTransformer(modules=[words, Pooling(32, pooling_mode="lasttoken"), Normalize()], device="cpu")
    args = st.SentenceTransformerTrainingArguments(str(folder), **RUN)
    loss = losses.MultipleNegativesRankingLoss(model)
    return st.SentenceTransformerTrainer(model, args, Dataset.from_list(_PAIRS), loss=loss)


@odd
def a_ranker_of_lists(folder: Path) -> Any:
    from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import LambdaLoss

    tokenizer = FAMILIES["bert"].tokenizer()
    bert_base(tokenizer, labels=1).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    model = CrossEncoder(str(folder / "bert"), num_labels=1, device="cpu")
    rows = [{"query": text.split()[-1], "docs": [text, SENTENCES[0], SENTENCES[-1]], "labels": [1, 0, 0]}
            for text in SENTENCES[1:-1]]  # fmt: skip
    args = CrossEncoderTrainingArguments(str(folder), **RUN)
    return CrossEncoderTrainer(model, args, Dataset.from_list(rows), loss=LambdaLoss(model))
