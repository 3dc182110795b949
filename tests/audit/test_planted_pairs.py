"""
Faults of trainings on pairs and of embeddings that people reported, planted in runs as they wrote them.

Each run is also checked without its fault.
"""

import pytest
import torch
from audit_helpers import SENTENCES, byte_tokenizer, tiny_bert, tiny_llama, train_shortly
from datasets import Dataset
from planted import assert_found, assert_sound, planted
from transformers import BertModel, LlamaConfig, LlamaForSequenceClassification


trl = pytest.importorskip("trl")
st = pytest.importorskip("sentence_transformers")
peft = pytest.importorskip("peft")
losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
modules = pytest.importorskip("sentence_transformers.models")

RUN = dict(per_device_train_batch_size=4, max_steps=2, use_cpu=True, report_to=[], bf16=False)


def preference_trainer(folder, records, tokenizer=None, **options):
    tokenizer = tokenizer or byte_tokenizer()
    return trl.DPOTrainer(
        model=tiny_llama(tokenizer),
        ref_model=tiny_llama(tokenizer),
        args=trl.DPOConfig(str(folder), **RUN | options),
        train_dataset=Dataset.from_list(records),
        processing_class=tokenizer,
    )


def texts_of_pairs():
    """Chosen and rejected texts that differ in their ends."""
    return [
        {
            "prompt": f"{number}: go on",
            "chosen": f" {SENTENCES[number % 8]}, and that is right",
            "rejected": f" {SENTENCES[number % 8]}, and nobody cares",
        }
        for number in range(12)
    ]


def chats_of_pairs(system=False, equal=False):
    first = [{"role": "system", "content": "Be short."}] if system else []
    return [
        {
            "prompt": [*first, {"role": "user", "content": f"{number}: say {one}"}],
            "chosen": [{"role": "assistant", "content": one.upper()}],
            "rejected": [{"role": "assistant", "content": one.upper() if equal else "no"}],
        }
        for number, one in enumerate(SENTENCES)
    ]


def equal_behind_the_cut(folder, fault):
    """Chosen and rejected answers differ in their ends, which are cut away: the loss stays at 0.6931."""
    return preference_trainer(folder, texts_of_pairs(), max_length=24 if fault else 256)


def equal_answers(folder, fault):
    return preference_trainer(folder, chats_of_pairs(equal=fault), max_length=256)


def system_dropped_from_pairs(folder, fault):
    template = (
        "{% for message in messages %}{% if message.role != 'system' or "
        + ("false" if fault else "true")
        + " %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return preference_trainer(folder, chats_of_pairs(system=True), byte_tokenizer(chat_template=template))


def reward_trainer(folder, model, tokenizer, **options):
    return trl.RewardTrainer(
        model=model,
        args=trl.RewardConfig(str(folder), **RUN | options),
        train_dataset=Dataset.from_list(chats_of_pairs()),
        processing_class=tokenizer,
    )


def reward_model(tokenizer):
    torch.manual_seed(0)
    return LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=tokenizer.pad_token_id,
            num_labels=1,
        )
    )


def new_head_of_a_reward_model_frozen(folder, fault):
    """The adapter's task is not given, so that the new head is no part of it."""
    tokenizer = byte_tokenizer()
    task = {} if fault else {"task_type": "SEQ_CLS"}
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **task)
    return reward_trainer(folder, peft.get_peft_model(reward_model(tokenizer), config), tokenizer)


def embedding_trainer(folder, records, loss, optimizer=None):
    tokenizer = byte_tokenizer(chat_template=None)
    path = folder / "bert"
    BertModel(train_shortly(tiny_bert(tokenizer)).config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    words = modules.Transformer(str(path))
    model = st.SentenceTransformer(modules=[words, modules.Pooling(32)], device="cpu")
    args = st.SentenceTransformerTrainingArguments(str(folder), **RUN)
    made = loss(model)
    optimizers = (optimizer(model, made), None) if optimizer else (None, None)
    return st.SentenceTransformerTrainer(model, args, Dataset.from_list(records), loss=made, optimizers=optimizers)


def scores_of_sts(folder, fault):
    """Scores from 0 to 5, as STS has them, which no cosine can be."""
    records = [
        {"sentence1": one, "sentence2": SENTENCES[number // 2], "score": float(number % 6) / (1 if fault else 5)}
        for number, one in enumerate(SENTENCES * 2)
    ]
    return embedding_trainer(folder, records[:8], losses.CosineSimilarityLoss)


def negatives_are_positives(folder, fault):
    """The column of negatives was filled with the positives."""
    records = [
        {"anchor": one.split()[-1], "positive": one, "negative": one if fault else SENTENCES[number - 1]}
        for number, one in enumerate(SENTENCES)
    ]
    return embedding_trainer(folder, records, losses.TripletLoss)


def loss_has_weights_of_its_own(folder, fault):
    """The optimizer of the script holds the model's weights, and not those of the loss."""
    records = [
        {"sentence1": one, "sentence2": SENTENCES[(number + 1) % 8], "label": number % 3}
        for number, one in enumerate(SENTENCES * 2)
    ]

    def optimizer(model, loss):
        weights = model.parameters() if fault else loss.parameters()
        return torch.optim.AdamW(list(weights), lr=1e-4)

    def softmax(model):
        return losses.SoftmaxLoss(model, embedding_dimension=32, num_labels=3)

    return embedding_trainer(folder, records, softmax, optimizer)


FAULTS = [
    planted("huggingface/trl#3382", equal_behind_the_cut, "P113", "P114"),
    planted("Yifan-Song793/ETO#14", equal_answers, "P113"),
    planted("unslothai/unsloth#989", system_dropped_from_pairs, "P004"),
    planted("huggingface/peft#876", new_head_of_a_reward_model_frozen, "P402"),
    planted("huggingface/sentence-transformers#1095", scores_of_sts, "P112"),
    planted("huggingface/sentence-transformers#2954", negatives_are_positives, "P113"),
    planted("huggingface/sentence-transformers#2872", loss_has_weights_of_its_own, "P407"),
]


@pytest.mark.parametrize(("build", "codes"), FAULTS)
def test_finds_the_reported_fault(build, codes, tmp_path):
    assert_found(build(tmp_path, True), codes)


@pytest.mark.parametrize(("build", "codes"), FAULTS)
def test_is_silent_without_the_fault(build, codes, tmp_path):
    assert_sound(build(tmp_path, False))
