"""Sound data of many forms, languages and tokenizers: the preflight finds no error and at most one warning in them."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from audit_helpers import SENTENCES
from chat_tokenizers import FAMILIES, Family

from hf_tfm.audit.records.preflight import preflight_data


# Words of the tiny tokenizers' own sentences, so that they know all of them.
_WORDS = sorted({word.strip(",") for text in SENTENCES for word in text.split()})
_ALPHABETS = {
    "german": "Überall grüßt früh der müde Bäcker, während Öfen heiß glühen und Straßen schlafen",
    "french": "Où est passé le garçon ? « Là-bas » dit sa mère, l’œil inquiet ; déjà Noël approche, hélas !",
    "portuguese": "SÃO PAULO não dorme: às três da manhã o coração bate, Âncora à vista, está tudo bem",
    "vietnamese": "Tiếng Việt có nhiều dấu thanh và trời hôm nay đẹp quá nên chúng tôi đi chơi",
    "russian": "Вчера поздно вечером кошка долго сидела на старом ковре и слушала шум дождя",
    "greek": "Η γάτα κάθεται στο χαλί και κοιτάζει το φεγγάρι πάνω από τη θάλασσα κάθε βράδυ",
    "arabic": "القطة جلست على السجادة ثم نظرت الى القمر فوق البحر كل ليلة مع الريح",
    "hebrew": "החתול ישב על השטיח והביט בירח מעל הים בכל לילה עם הרוח",
    "hindi": "बिल्ली चटाई पर बैठी थी और चाँद को देख रही थी हर रात हवा के साथ",
    "thai": "แมว นั่ง บน เสื่อ และ มอง ดวงจันทร์ เหนือ ทะเล ทุก คืน กับ ลม",
    "chinese": "猫 坐在 垫子上 看着 海上的 月亮 每天 晚上 都 有 风 吹过 屋顶",
    "japanese": "猫が マットに すわって 海の 上の 月を 毎晩 見ている 風が 屋根を 吹く",
    "korean": "고양이가 매트에 앉아서 바다 위의 달을 매일 밤 본다 바람이 지붕을 분다",
    "emoji": "ok 👍🏽 great 👨‍👩‍👧‍👦 sun ☀️ and 🏳️‍🌈 rain 🌧️ then 🎉 done ✔︎ we ❤️ it",
    "mathematics": "∀ε>0 ∃δ>0: |x−a|<δ ⇒ |f(x)−f(a)|<ε then √2·π ≈ 4.44 and x² ≤ ∑ᵢ aᵢ",
    "code": "def total(x):\n\treturn x ** 2\nfor row in rows:\n\tprint(row[0], row[-1])\nif x >= 3: x -= 1",
}


def texts(count: int, seed: int = 0, words: list[str] = _WORDS, most: int = 14) -> list[str]:
    """Returns different texts of words drawn by chance."""
    draw = random.Random(seed)
    return [
        f"{number}. " + " ".join(draw.choice(words) for _ in range(draw.randrange(6, most))) for number in range(count)
    ]


def _chats(count: int, seed: int, system: bool = True, turns: int = 2) -> list[dict[str, Any]]:
    lines = iter(texts(count * turns * 2, seed))
    start = [{"role": "system", "content": "Answer in one line."}] if system else []
    return [
        {"messages": start + [{"role": role, "content": next(lines)} for role in ("user", "assistant") * turns]}
        for _ in range(count)
    ]


def _tools(count: int, seed: int) -> list[dict[str, Any]]:
    records = []
    for record in _chats(count, seed, system=False, turns=1):
        question, answer = record["messages"]
        call = {"type": "function", "function": {"name": "weather", "arguments": {"town": question["content"][-6:]}}}
        messages = [question, {"role": "assistant", "content": "", "tool_calls": [call]},
                    {"role": "tool", "content": "7 degrees"}, answer]  # fmt: skip
        parameters = {"type": "object", "properties": {"town": {"type": "string"}}}
        function = {"name": "weather", "description": "The weather of a town.", "parameters": parameters}
        records.append({"messages": messages, "tools": [{"type": "function", "function": function}]})
    return records


def _pairs(count: int, seed: int, *names: str) -> list[dict[str, Any]]:
    columns = [texts(count, seed * 10 + number) for number in range(len(names))]
    return [dict(zip(names, row)) for row in zip(*columns)]


def _labelled(count: int, seed: int, label: Callable[[int], Any], name: str = "label") -> list[dict[str, Any]]:
    return [{"text": text, name: label(number)} for number, text in enumerate(texts(count, seed))]


def _sharegpt(count: int, seed: int) -> list[dict[str, Any]]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [
        {"conversations": [{"from": names[one["role"]], "value": one["content"]} for one in record["messages"]]}
        for record in _chats(count, seed)
    ]


FORMS: dict[str, Callable[[int, int], list[dict[str, Any]]]] = {
    "messages": _chats,
    "messages-no-system": lambda count, seed: _chats(count, seed, False),
    "messages-one-turn": lambda count, seed: _chats(count, seed, True, 1),
    "sharegpt": _sharegpt,
    "prompts": lambda count, seed: _pairs(count, seed, "prompt", "completion"),
    "questions-and-answers": lambda count, seed: _pairs(count, seed, "question", "answer"),
    "alpaca": lambda count, seed: _pairs(count, seed, "instruction", "input", "output"),
    "alpaca-without-input": lambda count, seed: [
        row | {"input": ""} for row in _pairs(count, seed, "instruction", "output")
    ],
    "preferences": lambda count, seed: _pairs(count, seed, "prompt", "chosen", "rejected"),
    "texts": lambda count, seed: [{"text": text} for text in texts(count, seed)],
    "long-texts": lambda count, seed: [{"text": text} for text in texts(count, seed, most=60)],
    "classes": lambda count, seed: _labelled(count, seed, lambda number: "abc"[number * 7 % 11 % 3]),
    "numbered-classes": lambda count, seed: _labelled(count, seed, lambda number: number * 7 % 11 % 2),
    "rare-class": lambda count, seed: _labelled(count, seed, lambda number: "rare" if number % 10 == 3 else "usual"),
    "sorted-classes": lambda count, seed: _labelled(count, seed, lambda number: int(number >= count // 2)),
    "regression": lambda count, seed: _labelled(count, seed, lambda number: number * 7 % 11 / 10),
    "pairs-of-texts": lambda count, seed: [
        row | {"label": number * 5 % 7 % 2} for number, row in enumerate(_pairs(count, seed, "sentence1", "sentence2"))
    ],
    "tags": lambda count, seed: [
        {"tokens": text.split(), "ner_tags": ["B-X" if len(word) > 5 else "O" for word in text.split()]}
        for text in texts(count, seed)
    ],
    "translations": lambda count, seed: [{"translation": row} for row in _pairs(count, seed, "en", "fr")],
}


def check(folder: Path, rows: list[Any], validation: list[Any], **options: Any) -> None:
    """Assert that the data half has no error, at most one warning, and no check that crashes."""
    files = {}
    for name, records in {"train": rows, "dev": validation}.items():
        files[name] = folder / f"{name}.jsonl"
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        files[name].write_text("\n".join(lines) + "\n", encoding="utf-8")
    report = preflight_data([files["train"]], validation=[files["dev"]], **options)
    assert not report.errors, report.errors
    assert len(report.warnings) <= 1, report.warnings
    assert not [unseen for unseen in report.unseen if " failed: " in unseen]


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.template])
def test_finds_nothing_wrong_in_chats_for_a_template(tmp_path: Path, family: str):
    found: Family = FAMILIES[family]
    rows = [_chats(count, seed, found.takes_system) for count, seed in ((60, 1), (20, 2))]
    check(tmp_path, *rows, tokenizer=found.tokenizer(), max_length=512)


@pytest.mark.parametrize("family", ["qwen2", "llama2", "gpt2"])
@pytest.mark.parametrize("form", FORMS)
def test_finds_nothing_wrong_in_a_form(tmp_path: Path, form: str, family: str):
    make = FORMS[form]
    tokenizer = None if family == "gpt2" and form in ("messages", "sharegpt") else FAMILIES[family].tokenizer()
    if tokenizer is not None and tokenizer.chat_template is None:
        tokenizer.chat_template = FAMILIES["alpaca_gpt2"].tokenizer().chat_template
    check(tmp_path, make(60, 1), make(20, 2), tokenizer=tokenizer, max_length=512)


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3_1"])
def test_finds_nothing_wrong_in_calls_of_tools(tmp_path: Path, name: str):
    pytest.importorskip("trl")
    from chat_tokenizers import trl_family, trl_templates

    tokenizer = trl_family(name).tokenizer(trl_templates()[name])
    check(tmp_path, _tools(60, 1), _tools(20, 2), tokenizer=tokenizer, max_length=1024)


@pytest.mark.parametrize("language", _ALPHABETS)
def test_finds_nothing_wrong_in_a_language(tmp_path: Path, language: str):
    words = _ALPHABETS[language].split(" ")
    rows = [[{"text": text} for text in texts(count, seed, words)] for count, seed in ((60, 1), (20, 2))]
    check(tmp_path, *rows, tokenizer=FAMILIES["llama3_base"].tokenizer(), max_length=512)


def test_one_fault_in_two_splits_is_one_finding(tmp_path: Path):
    files = []
    for name, seed in (("train", 1), ("dev", 2)):
        files.append(tmp_path / f"{name}.jsonl")
        rows = [json.dumps({"prompt": text, "completion": text * 9}) for text in texts(40, seed)]
        files[-1].write_text("\n".join(rows), encoding="utf-8")
    tokenizer = FAMILIES["llama2"].tokenizer()
    report = preflight_data(files[:1], validation=files[1:], tokenizer=tokenizer, max_length=64)
    (finding,) = [finding for finding in report.findings if finding.code == "P611"]
    assert "train split" in finding.what and "validation split" in finding.what
