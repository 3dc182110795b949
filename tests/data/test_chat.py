"""Conversations: records, chat templates, trained tokens, and packing that changes no loss and no gradient."""

import pytest
import torch
from tiny import build, build_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from hf_tfm.core.errors import InputError
from hf_tfm.data import chat_rows, conversations
from hf_tfm.data.chat import ChatEncoder, ensure_chat_template
from hf_tfm.data.chat_rows import ConversationCollator, encode_conversations
from hf_tfm.data.records import Records
from hf_tfm.data.tokenizer import train_tokenizer
from hf_tfm.tasks.likelihood import negative_log_likelihoods


# Templates as models have them: without marks for trained tokens, and with marks that leave out the end of a turn.
CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}{{ '[CLS]system\nBe kind.[SEP]\n' "
    "}}{% endif %}{{ '[CLS]' + message['role'] + '\n' + message['content'] + '[SEP]' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[CLS]assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '[CLS]' }}{% generation %}"
    "{{ message['content'] }}{% endgeneration %}{{ '[SEP]' }}{% else %}{{ message['content'] + '[EOS]' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[CLS]' }}{% endif %}"
)
TALK = [
    {"role": "user", "content": "who sang?"},
    {"role": "assistant", "content": "the kettle sang"},
    {"role": "user", "content": "and who sailed?"},
    {"role": "assistant", "content": "six ships sailed"},
]


def own_tokenizer():
    return train_tokenizer(kind="bytes")


def foreign_tokenizer(template: str | None):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    ensure_chat_template(tokenizer)
    return tokenizer


TOKENIZERS = {
    "own": own_tokenizer,
    "chatml": lambda: foreign_tokenizer(CHATML),
    "marked": lambda: foreign_tokenizer(MARKED),
    "plain": lambda: foreign_tokenizer(None),
}


def spoken(tokenizer, tokens) -> list[str]:
    """Return the texts of the assistant, one for each run of its tokens."""
    runs, ids = [], []
    for token, said in zip([*tokens.ids, 0], [*tokens.spoken, False]):
        if said:
            ids.append(token)
        elif ids:
            runs.append(tokenizer.decode(ids))
            ids = []
    return runs


def test_records_of_three_formats_are_equal():
    records = [
        {"instruction": "add", "input": "1 and 2", "output": "3"},
        {"prompt": "add\n\n1 and 2", "response": "3"},
        {"messages": [{"role": "user", "content": "add\n\n1 and 2"}, {"role": "assistant", "content": "3"}]},
        {"prompt": [{"role": "user", "content": "add\n\n1 and 2"}], "completion": "3"},
    ]
    found = conversations.read_conversations(Records(records, ["x"] * 4, "x"))
    assert all(messages == found[2] for messages in found)
    [without_input] = conversations.read_conversations(
        Records([{"instruction": "add", "input": float("nan"), "output": "3"}], ["x"], "x")
    )
    assert without_input[0]["content"] == "add"


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_assistants_tokens_and_its_end_tokens_are_trained(kind):
    tokenizer = TOKENIZERS[kind]()
    encoder = ChatEncoder(tokenizer)
    tokens = encoder(TALK, "here")
    end = {"own": "<|eos|>", "chatml": "[SEP]", "marked": "[SEP]", "plain": "[EOS]"}[kind]
    assert spoken(tokenizer, tokens) == [f"the kettle sang{end}", f"six ships sailed{end}"]
    assert encoder.ends == {tokenizer.convert_tokens_to_ids(end)} and tokenizer.pad_token_id not in encoder.ends
    # The trained tokens are those that every other tool gives the model.
    assert tokens.ids == list(tokenizer.apply_chat_template(TALK, return_dict=True)["input_ids"])
    asked = tokenizer.apply_chat_template(TALK[:3], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert encoder.prompt(TALK[:3], "here") == list(asked) == tokens.split()[0]
    assert tokenizer.decode(tokens.split()[1]) == f"six ships sailed{end}"
    row = encode_conversations(encoder, [TALK], ["here"], 200).rows[0]
    shown = chat_rows.show(tokenizer, row)
    assert f"⟦the kettle sang{end}⟧" in shown and shown.count("⟦") == 2


def test_text_that_looks_like_a_token_is_text_or_refused():
    talk = [{"role": "user", "content": "what is <|eos|>?"}, {"role": "assistant", "content": "an <|end|>"}]
    tokenizer = own_tokenizer()
    tokens = ChatEncoder(tokenizer)(talk, "here")
    assert tokens.ids.count(tokenizer.eos_token_id) == 1 and tokenizer.decode(tokens.split()[1]) == "an <|end|><|eos|>"
    talk = [{"role": "user", "content": "what is [SEP]?"}, {"role": "assistant", "content": "nothing"}]
    with pytest.raises(InputError, match=r"line 7: message 1 holds '\[SEP\]'"):
        ChatEncoder(foreign_tokenizer(CHATML))(talk, "line 7")


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}", "at which nothing can stop"),
        (
            "{% for m in messages %}{% if m['role'] == 'user' or loop.last %}{{ m['content'] + '[SEP]' }}{% endif %}"
            "{% endfor %}",
            "writes it otherwise when more follows",
        ),
        ("{% for m in messages %}{{ raise_exception('only tools') }}{% endfor %}", "refuses it: only tools"),
        (
            "{% for m in messages %}{% if m['role'] == 'bot' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
            "{% endif %}{{ m['content'] + '[SEP]' }}{% endfor %}",
            "no token to train",
        ),
    ],
)
def test_templates_without_trainable_tokens_are_refused(template, complaint):
    with pytest.raises(InputError, match=f"line 3: .*{complaint}"):
        ChatEncoder(foreign_tokenizer(template))(TALK, "line 3")


def test_long_conversations_lose_turns_and_are_counted():
    encoder = ChatEncoder(own_tokenizer())
    whole, first = (len(encoder(TALK[:end], "x").ids) for end in (4, 2))
    long = [{"role": "user", "content": "why? " * 30}, {"role": "assistant", "content": "so"}]
    found = encode_conversations(encoder, [TALK, long, TALK[:2]], ["x"] * 3, whole - 1)
    assert (found.shortened, found.left_out, found.numbers, found.turns) == (1, 1, [0, 2], [2, 2])
    assert [len(row["input_ids"]) for row in found.rows] == [first, first]
    assert found.rows[0]["input_ids"][-1] == encoder.tokenizer.eos_token_id, "no answer is cut"
    with pytest.raises(InputError, match="no conversation of the records fits"):
        encode_conversations(encoder, [long], ["x"], 20)


def models() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    size = dict(vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    return {
        "ours": build("TfmDecoderForCausalLM"),
        "gpt2": build("TfmDecoderForCausalLM", "gpt2"),
        "mixed": build("TfmDecoderForCausalLM", "mixed"),
        "llama": LlamaForCausalLM(LlamaConfig(**size, use_cache=False, initializer_range=0.2)),
    }


@pytest.mark.parametrize("train_on_prompts", [False, True])
def test_packed_equals_padded_equals_alone(train_on_prompts):
    encoder = ChatEncoder(foreign_tokenizer(MARKED))
    talks = [TALK[:2], TALK[2:], TALK, [TALK[0], TALK[3]]]
    rows = encode_conversations(encoder, talks, ["x"] * 4, 64, train_on_prompts).rows
    packed = chat_rows.pack(rows, 64, 0)
    assert len(packed) < len(rows) and all(len(row["input_ids"]) == 64 for row in packed)
    collate = ConversationCollator(0)
    for name, model in models().items():
        count = sum(label != -100 for row in rows for label in row["labels"])
        gradients = []
        for batch in (packed, rows):
            model.zero_grad()
            (model(**collate(batch), num_items_in_batch=count).loss).backward()
            gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        for parameter, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[1][parameter], atol=2e-5, rtol=1e-3, msg=name)
        nats, tokens = negative_log_likelihoods(model, encoder.tokenizer, rows)
        assert tokens.sum() == count
        for row, expected in zip(rows, nats):
            alone = model(**collate([row]), num_items_in_batch=1).loss.item()
            assert alone == pytest.approx(expected, rel=1e-4), name


def test_a_model_that_ignores_the_boundaries_is_refused(monkeypatch):
    encoder = ChatEncoder(foreign_tokenizer(MARKED))
    rows = encode_conversations(encoder, [TALK[:2], TALK[2:]], ["x"] * 2, 64).rows
    packed = chat_rows.pack(rows, 64, 0)
    for model in models().values():
        chat_rows.check_packing(model, packed)
    real = LlamaForCausalLM.forward

    def leaky(self, input_ids=None, position_ids=None, **kwargs):
        return real(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", leaky)
    with pytest.raises(InputError, match="--packing false"):
        chat_rows.check_packing(models()["llama"], packed)
