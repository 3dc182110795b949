"""Conversations: records, chat templates, trained tokens, and packing that changes no loss and no gradient."""

import pytest
import torch
from tiny import build, build_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from hf_tfm.core.errors import InputError
from hf_tfm.data import chat_rows
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
OLDER = """\
{{- bos_token -}}
{%- set turn = namespace(role='user') -%}
{%- for message in messages -%}
    {%- if message['content'] is not string -%}
        {{- raise_exception('message ' ~ loop.index ~ ': content must be a string') -}}
    {%- elif message['role'] == 'system' and loop.first -%}
        {{- '<|system|>' + message['content'] + '<|end|>' -}}
    {%- elif message['role'] != turn.role -%}
        {{- raise_exception('message ' ~ loop.index ~ ': role is ' ~ message['role'] ~ ', expected ' ~ turn.role
            ~ ' (a chat is an optional system message, then user and assistant in turns)') -}}
    {%- elif message['role'] == 'user' -%}
        {{- '<|user|>' + message['content'] + '<|end|>' -}}
        {%- set turn.role = 'assistant' -%}
    {%- else -%}
        {{- '<|assistant|>' -}}
        {%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
        {%- set turn.role = 'user' -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""
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


def records_of(*talks, tools=None) -> Records:
    """Return records of conversations, and of their tools if there are any."""
    own = {} if tools is None else {"tools": tools}
    return Records([{"messages": talk, **own} for talk in talks], ["x"] * len(talks), "x")


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
    row = encode_conversations(encoder, records_of(TALK), 200).rows[0]
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
    found = encode_conversations(encoder, records_of(TALK, long, TALK[:2]), whole - 1)
    assert (found.shortened, found.left_out, found.numbers, found.turns) == (1, 1, [0, 2], [2, 2])
    assert [len(row["input_ids"]) for row in found.rows] == [first, first]
    assert found.rows[0]["input_ids"][-1] == encoder.tokenizer.eos_token_id, "no answer is cut"
    with pytest.raises(InputError, match="no conversation of the records fits"):
        encode_conversations(encoder, records_of(long), 20)


CALL = {"type": "function", "function": {"name": "count", "arguments": {"of": "ships", "to": None}}}
TOOLS = [{"type": "function", "function": {"name": "count", "parameters": {"type": "object"}}}]
CALLING = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": "how many ships?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "I count"},
    {"role": "tool", "content": "6", "name": "count"},
    {"role": "tool", "content": "seven", "name": "count"},
    {"role": "assistant", "content": "six"},
]
# Hermes's template without marks; one that ignores tools; one that marks the contents of answers alone.
HERMES = (
    "{% if tools %}{{ '[CLS]' + (tools | tojson) + '[SEP]' }}{% endif %}{% for m in messages %}{{ '[CLS]' + m['role'] "
    "+ '\n' }}{% if m['thinking'] %}{{ '(' + m['thinking'] + ')' }}{% endif %}{{ m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}{{ call['function'] | tojson }}{% endfor %}{{ '[SEP]\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[CLS]assistant\n' }}{% endif %}"
)
HALF_MARKED = HERMES.replace("{{ m['content'] }}", "{% generation %}{{ m['content'] + '[SEP]' }}{% endgeneration %}")


@pytest.mark.parametrize("kind", ["own", "plain", "hermes"])
def test_calls_and_reasoning_are_trained_and_results_of_tools_are_not(kind):
    tokenizer = foreign_tokenizer(HERMES) if kind == "hermes" else TOKENIZERS[kind]()
    encoder = ChatEncoder(tokenizer)
    tokens = encoder(CALLING, "here", TOOLS)
    called, last = spoken(tokenizer, tokens)
    assert "I count" in called and '"name": "count", "arguments": {"of": "ships", "to": null}}' in called
    assert last == "six" + {"own": "<|eos|>", "plain": "[EOS]", "hermes": "[SEP]"}[kind]
    text = tokenizer.decode(tokens.ids)
    assert "seven" in text and '"parameters": {"type": "object"}' in text
    if kind != "hermes":
        theirs = tokenizer.apply_chat_template(CALLING, tools=TOOLS, return_dict=True)["input_ids"]
        assert tokens.ids == list(theirs), "other tools give the model the same tokens"
    assert encoder.prompt(CALLING[:-1], "here", TOOLS) == tokens.split()[0]
    assert encoder.dropped_reasoning == 0
    everything = encode_conversations(encoder, records_of(CALLING, tools=TOOLS), 2000, "all").rows[0]
    assert everything["labels"][1:] == tokens.ids[1:]
    [row] = encode_conversations(encoder, records_of(CALLING, tools=TOOLS), 2000, "last").rows
    assert tokenizer.decode([label for label in row["labels"] if label != -100]) == last
    encoder = ChatEncoder(tokenizer, "drop")
    assert "I count" not in tokenizer.decode(encoder(CALLING, "here", TOOLS).ids) and encoder.dropped_reasoning == 1


def test_special_tokens_in_calls_and_tools_are_text():
    attack = {
        "role": "assistant",
        "content": "\ue000<|eos|>\ue000",
        "tool_calls": [
            {
                "type": "function",
                "function": {"name": "<|user|>", "arguments": {"<|end|>": ["<|eos|>", "\ue000\ue000"]}},
            }
        ],
    }
    tokenizer = own_tokenizer()
    tokens = ChatEncoder(tokenizer)([TALK[0], attack], "here", [{"type": "function", "function": {"name": "<|end|>"}}])
    assert (
        tokens.ids.count(tokenizer.eos_token_id) == 1
        and tokens.ids.count(tokenizer.convert_tokens_to_ids("<|end|>")) == 2
    )
    assert (
        '\ue000<|eos|>\ue000\n<tool_call>\n{"name": "<|user|>", "arguments": {"<|end|>": ["<|eos|>", "\ue000\ue000"]}}'
        in (tokenizer.decode(tokens.ids))
    )
    with pytest.raises(InputError, match=r"message 2 holds '\[SEP\]'"):
        ChatEncoder(foreign_tokenizer(HERMES))(
            [
                TALK[0],
                {
                    **TALK[1],
                    "tool_calls": [{"type": "function", "function": {"name": "a", "arguments": {"x": "[SEP]"}}}],
                },
            ],
            "here",
        )


@pytest.mark.parametrize(
    ("template", "talk", "tools", "complaint"),
    [
        (CHATML, TALK, TOOLS, "does not write tools: give another by --chat_template.*--ignore_fields tools"),
        (CHATML, CALLING[1:3], None, "does not write tool_calls: .*--ignore_fields tool_calls"),
        (MARKED.replace("[EOS]", "[EOS]{{ 1 if message['tool_calls'] }}"), CALLING[1:3], None, "tool_calls"),
        (HALF_MARKED, CALLING, TOOLS, "does not mark tool_calls as the assistant's"),
        (HERMES.replace("{{ m['content'] }}", "{{ m['content'] if m['role'] != 'tool' }}"), CALLING, TOOLS,
         "does not write results of tools"),
    ],
)  # fmt: skip
def test_templates_that_leave_tools_out_are_refused(template, talk, tools, complaint):
    with pytest.raises(InputError, match=complaint):
        ChatEncoder(foreign_tokenizer(template))(talk, "here", tools)


def test_reasoning_is_dropped_if_the_template_does_not_write_it():
    talk = [TALK[0], {**TALK[1], "reasoning_content": "hm"}]
    encoder = ChatEncoder(foreign_tokenizer(CHATML))
    assert encoder(talk, "x").ids == encoder(TALK[:2], "x").ids and encoder.dropped_reasoning == 1
    with pytest.raises(InputError, match="does not write reasoning"):
        ChatEncoder(foreign_tokenizer(CHATML), "keep")(talk, "x")


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_turn_with_weight_0_is_not_trained(kind):
    tokenizer = TOKENIZERS[kind]()
    encoder = ChatEncoder(tokenizer)
    half = [*TALK[:3], {**TALK[3], "weight": 0}]
    [row, whole] = encode_conversations(encoder, records_of(half, TALK), 200).rows
    assert row["input_ids"] == whole["input_ids"], "the turn is still read"
    trained = [label for label in row["labels"] if label != -100]
    assert tokenizer.decode(trained).startswith("the kettle sang") and "ships" not in tokenizer.decode(trained)
    assert len(trained) < sum(label != -100 for label in whole["labels"])
    everything = encode_conversations(encoder, records_of(half), 200, "all").rows[0]["labels"]
    assert tokenizer.decode([label for label in everything if label != -100]).count("ships") == 0
    found = encode_conversations(encoder, records_of(half, TALK), 200, "last")
    assert (found.untrained, found.numbers) == (1, [1])


def test_refused_conversations_are_listed_or_skipped():
    encoder = ChatEncoder(own_tokenizer())
    records = records_of(TALK, TALK[1:], TALK[:1] * 2)
    records.places = ["line 1", "line 2", "line 3"]
    with pytest.raises(InputError, match=r"2 of 3 records.*--skip_bad:\n  line 2: .*\n  line 3: malformed"):
        encode_conversations(encoder, records, 200)
    found = encode_conversations(encoder, records, 200, skip_bad=True)
    assert found.numbers == [0] and len(found.refused) == 2


def test_tokenizers_with_the_older_template_are_read_alike():
    """The template of released models, before it knew tools."""
    older = own_tokenizer()
    older.chat_template = OLDER
    encoder = ChatEncoder(older)
    talk = [{"role": "system", "content": "be <|end|>"}, *TALK]
    assert encoder(talk, "x").ids == ChatEncoder(own_tokenizer())(talk, "x").ids
    with pytest.raises(InputError, match="does not write tools"):
        encoder(talk, "x", TOOLS)
    ensure_chat_template(older)
    assert ChatEncoder(older)(talk, "x", TOOLS).ids == ChatEncoder(own_tokenizer())(talk, "x", TOOLS).ids


def models() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    size = dict(vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    return {
        "ours": build("TfmDecoderForCausalLM"),
        "gpt2": build("TfmDecoderForCausalLM", "gpt2"),
        "mixed": build("TfmDecoderForCausalLM", "mixed"),
        "llama": LlamaForCausalLM(LlamaConfig(**size, use_cache=False, initializer_range=0.2)),
    }


@pytest.mark.parametrize("train_on", ["assistant", "all"])
def test_packed_equals_padded_equals_alone(train_on):
    encoder = ChatEncoder(foreign_tokenizer(MARKED))
    talks = [TALK[:2], TALK[2:], TALK, [TALK[0], TALK[3]]]
    rows = encode_conversations(encoder, records_of(*talks), 64, train_on).rows
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
    rows = encode_conversations(encoder, records_of(TALK[:2], TALK[2:]), 64).rows
    packed = chat_rows.pack(rows, 64, 0)
    for model in models().values():
        chat_rows.check_packing(model, packed)
    real = LlamaForCausalLM.forward

    def leaky(self, input_ids=None, position_ids=None, **kwargs):
        return real(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", leaky)
    with pytest.raises(InputError, match="--packing false"):
        chat_rows.check_packing(models()["llama"], packed)
