"""The X-ray of rows: what is trained can be seen with and without colours, and its figures are right."""

import io
from pathlib import Path

import pytest
from audit_helpers import (
    SENTENCES,
    arguments,
    byte_tokenizer,
    causal_trainer,
    chats,
    sft_trainer,
    tiny_bert,
    tiny_llama,
    token_rows,
)
from datasets import Dataset
from rich.console import Console
from transformers import DataCollatorForLanguageModeling, DataCollatorForSeq2Seq, DataCollatorWithPadding, Trainer

from hf_tfm import preflight
from hf_tfm.audit.report import Report
from hf_tfm.audit.templates.token_picture import SHOWN_TOKENS, picture_of_row
from hf_tfm.audit.templates.turns import TurnFinder


def printed(report: Report) -> str:
    """Returns the whole report as a console without colours prints it."""
    console = Console(file=io.StringIO(), no_color=True, soft_wrap=True, width=200)
    console.print(report.render())
    return console.file.getvalue()  # type: ignore[attr-defined]


def chat_report(folder: Path, turns: int = 2) -> Report:
    tokenizer = byte_tokenizer()
    rows = token_rows(tokenizer, chats(turns=turns))
    collator = DataCollatorForSeq2Seq(tokenizer)
    return preflight(causal_trainer(folder, rows, collator, tiny_llama(tokenizer), tokenizer), show=None)


def test_trained_tokens_are_marked_with_and_without_colours() -> None:
    tokenizer = byte_tokenizer()
    row = token_rows(tokenizer, chats(1))[0]
    trained = [label != -100 for label in row["labels"]]
    text = picture_of_row(tokenizer, row["input_ids"], trained, TurnFinder(tokenizer).find(row["input_ids"]))
    assert text.plain == (
        "user: <|im_start|>user⏎0: tell me of the cat sat on the mat<|im_end|>\n"
        "assistant: <|im_start|>assistant⏎⟦Rain fell on the roof while the kettle sang<|im_end|>⟧"
    )
    styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert "on #" in styles["R"] and "bold" in styles["<|im_end|>"] and styles["0"] == "dim"


def test_control_characters_are_escaped() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("a\x1b[31mb\tc")["input_ids"]
    assert picture_of_row(tokenizer, ids, [False] * len(ids), []).plain == "a\\x1b[31mb⇥c"


def test_long_rows_are_cut_around_their_first_trained_token() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("x" * 1000 + "y" * 1000)["input_ids"]
    text = picture_of_row(tokenizer, ids, [False] * 1000 + [True] * 1000, []).plain
    assert text.count("x") + text.count("y") == SHOWN_TOKENS and "x⟦y" in text
    assert text.startswith("… ") and text.endswith(" tokens")


def test_figures_of_chats(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    rows = token_rows(tokenizer, chats(turns=2))
    facts = chat_report(tmp_path).facts
    tokens = sum(len(row["input_ids"]) for row in rows)
    trained = sum(label != -100 for row in rows for label in row["labels"])
    assert (facts["rows"], facts["tokens"], facts["answers"]) == (16, tokens, 32)
    assert facts["share trained"] == pytest.approx(trained / tokens, abs=1e-3)
    assert facts["share trained by role"] == {"assistant": 1.0, "user": 0.0}
    assert facts["share of answers whose stop token is trained"] == 1.0
    padded = [max(len(row["input_ids"]) for row in rows[start : start + 4]) * 4 for start in range(0, 16, 4)]
    assert facts["share padding"] == pytest.approx(1 - tokens / sum(padded), abs=1e-3)


def test_figures_of_packed_rows_are_those_of_their_documents(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    single = preflight(sft_trainer(tmp_path, assistant_only_loss=True), show=None).facts
    packed = preflight(sft_trainer(tmp_path, assistant_only_loss=True, packing=True, max_length=512), show=None).facts
    names = ("tokens", "share trained", "documents", "answers", "share trained by role")
    assert {name: packed[name] for name in names} == {name: single[name] for name in names}
    assert packed["rows"] < single["rows"]


def test_page_has_the_colours_and_wraps_its_lines(tmp_path: Path) -> None:
    chat_report(tmp_path).save_html(page := tmp_path / "report.html")
    html = page.read_text()
    assert "background-color: #8fd694" in html and "⏎" in html and "assistant" in html
    assert "white-space: pre-wrap" in html  # long lines are not cut off by a narrow window


def test_console_without_colours_shows_what_is_trained(tmp_path: Path) -> None:
    text = printed(chat_report(tmp_path, turns=1))
    assert "⟦Rain fell on the roof while the kettle sang<|im_end|>⟧" in text and "padding" in text


def test_masked_tokens_are_shown_with_their_labels(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    rows = [tokenizer(text) for text in SENTENCES * 2]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3)
    report = preflight(causal_trainer(tmp_path, rows, collator, tiny_bert(tokenizer), tokenizer), show=None)
    assert "⟦<mask>→" in printed(report)


def test_texts_of_classifiers_are_shown_with_the_names_of_their_labels(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    records = [{**tokenizer(text), "label": number % 2} for number, text in enumerate(SENTENCES * 2)]
    model = tiny_bert(tokenizer, labels=2, id2label={0: "sea", 1: "land"})
    collator = DataCollatorWithPadding(tokenizer)
    trainer = Trainer(model, arguments(tmp_path), collator, Dataset.from_list(records), processing_class=tokenizer)
    text = printed(preflight(trainer, show=None))
    assert f"{SENTENCES[0]}  → sea" in text and f"{SENTENCES[1]}  → land" in text


def test_pairs_and_embeddings_are_shown(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    pytest.importorskip("sentence_transformers")
    import sound_trl

    text = printed(preflight(sound_trl.dpo(tmp_path), show=None))
    assert "\nchosen, " in text and "\nrejected, " in text
    assert "\nlabel: " in printed(preflight(sound_trl.embeddings(tmp_path, "CosineSimilarityLoss"), show=None))
