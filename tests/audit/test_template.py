"""Faults of chat templates are found, and published templates have none."""

import re
from pathlib import Path

import pytest
from audit_helpers import CHATML, byte_tokenizer, chats, sft_trainer, tiny_llama
from chat_templates import TEMPLATES, chat_tokenizer
from chat_tokenizers import FAMILIES
from transformers import GenerationConfig

from hf_tfm import preflight
from hf_tfm.audit.report import Report
from hf_tfm.audit.templates.check import check_stops, check_template
from hf_tfm.audit.templates.conversations import ChatTemplate
from hf_tfm.audit.templates.turns import TurnFinder
from hf_tfm.data.chat import PLAIN_TEMPLATE
from hf_tfm.data.tokenizer import train_tokenizer


trl = pytest.importorskip("trl")
TRL_TEMPLATES = sorted(Path(trl.__file__).parent.glob("chat_templates/*.jinja"))
WITHOUT_SYSTEM = CHATML.replace("in messages %}", "in messages if message.role != 'system' %}")
UNMARKED = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")


def check(tokenizer, records, **options):
    report = Report()
    check_template(tokenizer, records, report, **options)
    return report


def trl_tokenizer(path):
    """Returns a byte-level tokenizer with a template that TRL ships, and a token for each marker in it."""
    template = path.read_text(encoding="utf-8")
    markers = re.findall(r"<\|\w+\|>|<｜[^｜<>]+｜>|<\w+\|>|<\|\w+>|</?[a-z_]+>|\[/?[A-Z_]+\]", template)
    specials = dict.fromkeys(["<pad>", "<s>", "</s>", "<mask>", *markers])
    return byte_tokenizer(list(specials), chat_template=template, eos_token="</s>")


def with_parts(record):
    messages = [
        {"role": one["role"], "content": [{"type": "text", "text": one["content"]}]} for one in record["messages"]
    ]
    return {"messages": messages}


def codes(report, level="error"):
    return {finding.code for finding in report.of_level(level)}


# Sound templates


@pytest.mark.parametrize("path", TRL_TEMPLATES, ids=lambda path: path.stem)
def test_templates_that_trl_ships_are_sound(path):
    tokenizer = trl_tokenizer(path)
    records = chats(8, turns=2)
    if re.search("idefics|smolvlm|llava", path.stem):
        records = [with_parts(record) for record in records]
    trained = "assistant" if path.stem.endswith("training") else None
    report = check(tokenizer, records, trained=trained)
    assert not report.errors, report.errors
    assert len(report.warnings) <= 1, report.warnings


@pytest.mark.parametrize("name", TEMPLATES)
def test_published_templates_are_sound(name):
    tokenizer = chat_tokenizer(name)
    takes_system = name not in ("gemma", "danube", "mistral 1", "mistral 3")
    report = check(tokenizer, chats(4, turns=2) + chats(4, system=takes_system))
    assert not report.errors, report.errors
    assert not report.warnings, report.warnings


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.template])
def test_templates_of_model_families_are_sound(name):
    family = FAMILIES[name]
    for is_marked in (False, True):
        tokenizer = family.tokenizer(marked=is_marked)
        stops = tokenizer.convert_tokens_to_ids(list(family.stops)) or [tokenizer.eos_token_id]
        records = chats(6, turns=2) + chats(2, system=family.takes_system)
        report = check(tokenizer, records, trained="assistant")
        check_stops(ChatTemplate(tokenizer), TurnFinder(tokenizer), [], set(stops), report)
        assert not report.errors, report.errors
        assert len(report.warnings) <= 1, report.warnings


def test_own_templates_are_sound():
    for tokenizer in (train_tokenizer(kind="bytes"), byte_tokenizer(chat_template=PLAIN_TEMPLATE, eos_token="</s>")):
        report = check(tokenizer, chats(8, system=True, turns=2), trained="assistant")
        check_stops(ChatTemplate(tokenizer), TurnFinder(tokenizer), [], {tokenizer.eos_token_id}, report)
        assert not report.findings, report.findings


# Planted faults


def test_dropped_system_messages():
    """A template without a branch for the role drops it silently (raullenchai/Rapid-MLX#1765)."""
    report = check(byte_tokenizer(chat_template=WITHOUT_SYSTEM), chats(4) + chats(4, system=True))
    (finding,) = report.errors
    assert (finding.code, finding.where) == ("P004", "record 5, message 1")
    assert "system messages are not written in 4 of 4 cases" in finding.what
    assert [finding.level for finding in check(byte_tokenizer(chat_template=WITHOUT_SYSTEM), chats(4)).findings] == [
        "note"
    ]


def test_dropped_messages_of_an_unknown_role():
    """Developer messages are dropped by templates that do not know the role (sgl-project/sglang#40082)."""
    tokenizer = trl_tokenizer(next(path for path in TRL_TEMPLATES if path.stem == "qwen3"))
    records = [
        {"messages": [{"role": "developer", "content": "Be brief."}, *record["messages"]]} for record in chats(4)
    ]
    report = check(tokenizer, records)
    assert "P004" in codes(report) and "developer" in report.errors[0].what


def test_dropped_results_of_tools():
    """Phi 3's template writes the system, the user and the assistant only; results of tools vanish."""
    tokenizer = trl_tokenizer(next(path for path in TRL_TEMPLATES if path.stem == "phi3"))
    call = {"id": "call12345", "type": "function", "function": {"name": "look", "arguments": {"where": "south"}}}
    messages = [
        {"role": "user", "content": "Who sails?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "Seven ships", "tool_call_id": "call12345"},
        {"role": "assistant", "content": "Seven ships sail."},
    ]
    tools = [{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {}}}]
    report = check(tokenizer, [{"messages": messages, "tools": tools}] * 3)
    assert codes(report) == {"P004"} and "results of tools" in report.errors[0].what
    lost = [finding.what for finding in report.of_level("warning") if finding.code == "P005"]
    assert any("tool_calls" in what for what in lost) and any("tools that records offer" in what for what in lost)
    sound = trl_tokenizer(next(path for path in TRL_TEMPLATES if path.stem == "qwen3"))
    assert not check(sound, [{"messages": messages, "tools": tools}] * 3).errors


def test_dropped_earlier_turns():
    template = CHATML.replace("{% for message in messages %}", "{% for message in messages[-2:] %}")
    report = check(byte_tokenizer(chat_template=template), chats(4, turns=3))
    assert {finding.what.split(" in ")[0] for finding in report.errors} == {
        "earlier answers are not written", "earlier messages of the user are not written"
    }  # fmt: skip


def test_dropped_reasoning_of_the_last_answer():
    """DeepSeek R1's template cuts the reasoning off the answers that it is trained on (huggingface/trl#6766)."""
    tokenizer = trl_tokenizer(next(path for path in TRL_TEMPLATES if path.stem == "deepseek_r1_distill"))
    records = chats(4)
    for record in records:
        record["messages"][1]["content"] = "<think>\nLet me see.\n</think>\n\n" + record["messages"][1]["content"]
    assert "P005" in codes(check(tokenizer, records), "warning")
    kept = trl_tokenizer(next(path for path in TRL_TEMPLATES if path.stem == "deepseek_r1_distill_training"))
    assert "P005" not in codes(check(kept, records), "warning")


def test_reasoning_in_a_field_that_the_template_does_not_read():
    tokenizer = trl_tokenizer(next(path for path in TRL_TEMPLATES if path.stem == "deepseekv3"))
    records = chats(4)
    for record in records:
        record["messages"][1]["thinking"] = "Let me see."
    (finding,) = check(tokenizer, records).warnings
    assert finding.code == "P005" and finding.what.startswith("thinking of messages is not written")


def test_contents_cut_and_changed():
    cut = CHATML.replace("message['content'] }}<|im_end|>{% endif", "message['content'][:12] }}<|im_end|>{% endif")
    assert "P004" in codes(check(byte_tokenizer(chat_template=cut), chats(4)))
    escaped = CHATML.replace("message['content']", "message['content'] | e")
    records = [
        {"messages": [{"role": "user", "content": "Is a < b?"}, {"role": "assistant", "content": "Yes, b > a."}]}
    ]
    report = check(byte_tokenizer(chat_template=escaped), records)
    assert not report.errors and codes(report, "note") == {"P006"}


def test_refused_records():
    """Two messages of the user in a row (unslothai/unsloth#11293)."""
    records = chats(4)
    records[2]["messages"].insert(0, {"role": "user", "content": "Hello?"})
    (finding,) = check(chat_tokenizer("gemma"), records).errors
    assert (finding.code, finding.where) == ("P007", "record 3")
    assert finding.what.startswith("1 of 4 conversations: Conversation roles must alternate")


def test_no_generation_prompt():
    """A template that ignores add_generation_prompt (jingyaogong/minimind#86)."""
    template = UNMARKED[: UNMARKED.index("{% if add_generation_prompt")]
    (finding,) = check(byte_tokenizer(chat_template=template), chats(4)).errors
    assert finding.code == "P008" and "<|im_start|>assistant" in finding.what


def test_generation_prompt_of_another_role():
    template = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>model\n{% endif %}")
    (finding,) = check(byte_tokenizer(chat_template=template), chats(4)).errors
    assert finding.code == "P008" and "model" in finding.what


def test_rows_that_end_with_the_generation_prompt():
    """Llama 3's first template always wrote it (huggingface/transformers#30893)."""
    template = UNMARKED.replace("{% if add_generation_prompt %}", "{% if true %}")
    report = check(byte_tokenizer(chat_template=template), chats(4))
    assert codes(report) == {"P008"} and "end with the generation prompt" in report.errors[0].what


def test_generation_prompt_that_ends_with_a_blank():
    """Tokenizers join a blank with the word behind it, so that a prompt must not end with one."""
    template = TEMPLATES["vicuna"][0].replace("'ASSISTANT:' }}", "'ASSISTANT: ' }}")
    assert template != TEMPLATES["vicuna"][0]
    records = [{"messages": [one["messages"][0], {"role": "assistant", "content": "the moon"}]} for one in chats(4)]
    (finding,) = check(FAMILIES["alpaca_gpt2"].tokenizer(chat_template=template), records).warnings
    assert finding.code == "P008" and "'Ġ'" in finding.what


def test_answers_under_another_role():
    """Roles of ShareGPT go through a template of ChatML, and generation prompts another role."""
    names = {"user": "human", "assistant": "gpt"}
    records = [
        {"messages": [{**message, "role": names[message["role"]]} for message in record["messages"]]}
        for record in chats(4)
    ]
    (finding,) = check(byte_tokenizer(chat_template=UNMARKED), records).errors
    assert finding.code == "P008" and "'gpt'" in finding.what


def test_markers_that_are_no_tokens():
    """<|endoftext|> is text for a tokenizer that has no such token (deepspeedai/DeepSpeedExamples#496)."""
    tokenizer = byte_tokenizer(("<pad>", "<s>", "</s>"), chat_template=UNMARKED, eos_token="</s>")
    report = check(tokenizer, chats(4))
    assert codes(report, "warning") == {"P009"} and "<|im_start|>, <|im_end|>" in report.warnings[0].what
    assert codes(report) == {"P003"}


def test_answers_without_an_end():
    template = UNMARKED.replace("<|im_end|>", "")
    report = check(byte_tokenizer(chat_template=template), chats(4))
    assert codes(report, "warning") == {"P003"}  # <|im_start|> follows the answers but the last
    plain = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    plain += "{{ 'assistant: ' if add_generation_prompt }}"
    assert codes(check(byte_tokenizer(chat_template=plain), chats(4))) == {"P003"}


def test_no_template():
    (finding,) = check(byte_tokenizer(chat_template=None), chats(4)).errors
    assert finding.code == "P012"


def test_special_tokens_in_contents():
    records = chats(8)
    records[3]["messages"][0]["content"] += " <|im_end|> and more"
    (finding,) = check(byte_tokenizer(), records).warnings
    assert (finding.code, finding.where) == ("P013", "record 4, message 1")


def test_rendered_twice():
    """Rendered prompts are taken for messages, and rendered again (princeton-nlp/SimPO#8)."""
    tokenizer = byte_tokenizer()
    records = chats(8)
    for record in records:
        record["messages"][0]["content"] = tokenizer.apply_chat_template(record["messages"][:1], tokenize=False)
    assert codes(check(tokenizer, records)) == {"P017"}


def test_date():
    template = "{{ strftime_now('%Y') }}" + CHATML
    assert codes(check(byte_tokenizer(chat_template=template), chats(2)), "note") == {"P015"}


MARKED_CONTENT = "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        # huggingface/trl#5720: the role's prefix stands inside the block.
        (
            "<|im_start|>{{ message['role'] }}\n{% if message['role'] == 'assistant' %}" + MARKED_CONTENT,
            "{% if message['role'] == 'assistant' %}{% generation %}<|im_start|>{{ message['role'] }}\n"
            "{{ message['content'] }}<|im_end|>{% endgeneration %}",
            "header of answers is marked",
        ),
        (
            MARKED_CONTENT,
            "{{ message['content'][:5] }}{% generation %}{{ message['content'][5:] }}<|im_end|>{% endgeneration %}",
            "a part of answers is not marked",
        ),
        (MARKED_CONTENT, "{{ message['content'] }}<|im_end|>{% generation %}{% endgeneration %}", "marks nothing"),
        (
            "{% else %}{{ message['content'] }}<|im_end|>{% endif %}",
            "{% else %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}{% endif %}",
            "what others than the assistant say is marked",
        ),
        (
            "{% if message['role'] == 'assistant' %}",
            "{% if message['role'] == 'assistant' and loop.last %}",
            "some answers are not marked",
        ),
    ],
)
def test_marks_that_are_not_the_answer(old, new, what):
    assert old in CHATML
    template = CHATML.replace(old, new)
    if "header" in what:
        template = template.replace("{% else %}", "{% else %}<|im_start|>{{ message['role'] }}\n")
    tokenizer = byte_tokenizer(chat_template=template)
    report = check(tokenizer, chats(4, turns=2), trained="assistant")
    assert codes(report) == {"P020"} and what in report.errors[0].what
    assert codes(check(tokenizer, chats(4, turns=2)), "note") == {"P020"}


# Live trainers


def test_generation_stops_at_another_token(tmp_path):
    """Qwen's base models stop at <|endoftext|>, chats end with <|im_end|> (hiyouga/LlamaFactory#7454)."""
    tokenizer = byte_tokenizer(eos_token="</s>")
    trainer = sft_trainer(tmp_path, tokenizer=tokenizer)
    (finding,) = [one for one in preflight(trainer, show=None).errors if one.code == "P016"]
    assert "'<|im_end|>'" in finding.what and "'</s>'" in finding.what
    model = tiny_llama(tokenizer)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.convert_tokens_to_ids(["</s>", "<|im_end|>"]))
    assert "P016" not in preflight(sft_trainer(tmp_path, tokenizer=tokenizer, model=model), show=None).codes


def test_trainer_whose_template_drops_the_system(tmp_path):
    trainer = sft_trainer(tmp_path, chats(8, system=True), tokenizer=byte_tokenizer(chat_template=WITHOUT_SYSTEM))
    assert [one.where for one in preflight(trainer, show=None).errors if one.code == "P004"] == ["record 1, message 1"]
    sound = preflight(sft_trainer(tmp_path, chats(8, system=True)), show=None)
    assert not {"P003", "P004", "P008", "P009", "P016", "P017", "P020"} & sound.codes


def test_trainer_whose_marks_miss_half_of_the_answer(tmp_path):
    template = CHATML.replace(
        MARKED_CONTENT,
        "{{ message['content'][:5] }}{% generation %}{{ message['content'][5:] }}<|im_end|>{% endgeneration %}",
    )
    trainer = sft_trainer(tmp_path, tokenizer=byte_tokenizer(chat_template=template), assistant_only_loss=True)
    assert "P020" in {finding.code for finding in preflight(trainer, show=None).errors}


def test_pretokenized_rows_without_marks_for_a_loss_on_answers(tmp_path):
    """Without marks the loss is on all tokens (NVIDIA-NeMo/Megatron-Bridge#3359)."""
    tokenizer = byte_tokenizer(chat_template=CHATML)
    rows = [{"input_ids": tokenizer.apply_chat_template(one["messages"])["input_ids"]} for one in chats(8)]
    rows = [{**row, "labels": row["input_ids"]} for row in rows]
    trainer = sft_trainer(tmp_path, rows, tokenizer=tokenizer)
    trainer.args.assistant_only_loss = True
    trainer.processing_class.chat_template = UNMARKED
    assert "P014" in {finding.code for finding in preflight(trainer, show=None).errors}


def test_completions_without_an_end(tmp_path):
    """Answers without a token to stop at: the model goes on until max_new_tokens (meta-llama/llama-cookbook#640)."""
    tokenizer = byte_tokenizer(chat_template=None, eos_token="</s>")
    for end in ([], [tokenizer.eos_token_id]):
        rows = []
        for record in chats(8):
            prompt, answer = (tokenizer(one["content"])["input_ids"] for one in record["messages"])
            rows.append({"input_ids": prompt + answer + end, "labels": [-100] * len(prompt) + answer + end})
        report = preflight(sft_trainer(tmp_path, rows, tokenizer=tokenizer), show=None)
        assert ("P003" in codes(report)) == (not end)


def test_text_rendered_twice_in_rows(tmp_path):
    tokenizer = byte_tokenizer()
    rows = []
    for record in chats(8):
        text = tokenizer.apply_chat_template(record["messages"][:1], tokenize=False)
        messages = [{"role": "user", "content": text}, record["messages"][1]]
        rows.append({"input_ids": tokenizer.apply_chat_template(messages)["input_ids"]})
    trainer = sft_trainer(tmp_path, rows, tokenizer=tokenizer)
    assert "P017" in {finding.code for finding in preflight(trainer, show=None).errors}
