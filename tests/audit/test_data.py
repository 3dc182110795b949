"""The preflight of data: planted faults of each code, and sound data beside them without errors."""

import json
import random
from pathlib import Path

import pytest
from audit_helpers import CHATML, byte_tokenizer, chats

from hf_tfm.audit.records.preflight import preflight_data
from hf_tfm.audit.records.subject import shorten_places
from hf_tfm.core.errors import InputError
from hf_tfm.data.forms.form import forms_of
from hf_tfm.data.forms.jobs import JOBS
from hf_tfm.data.reading import ReadingOptions


# Two forms that need options, which the preflight does not have: for predictions, and for labels with commas.
FORMS = [form for job in JOBS for form in forms_of(job) if form.name not in ("running-text", "comma-labels")]
SUBJECTS = "the cat,a tired sailor,my neighbour,the old king,nobody,a clever fox,the whole village,her brother".split(
    ","
)
VERBS = "saw,painted,forgot,sold,carried,mended,praised,lost".split(",")
OBJECTS = "a red boat,the broken clock,seven apples,an empty letter,the last page,his only coat,a bridge".split(",")
PLACES = "in spring,behind the mill,at noon,near the harbour,by candlelight,without a word,once again".split(",")


def sentences(count: int, seed: int = 0) -> list[str]:
    """Different sentences."""
    draw = random.Random(seed)
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts.setdefault(" ".join(draw.choice(part) for part in (SUBJECTS, VERBS, OBJECTS, PLACES)))
    return list(texts)


def labelled(count: int, classes: int = 2, seed: int = 0) -> list[dict]:
    draw = random.Random(seed)
    return [{"text": text, "label": f"class {draw.randrange(classes)}"} for text in sentences(count, seed)]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def check(folder: Path, rows: list[dict], validation: list[dict] | None = None, **options):
    """Returns the report on rows as a file, perhaps with a validation file."""
    if validation is not None:
        options["validation"] = [write(folder / "dev.jsonl", validation)]
    report = preflight_data([write(folder / "train.jsonl", rows)], **options)
    assert not any("failed" in what for what in report.unseen)
    return report


def level_of(report, code: str) -> set[str]:
    return {str(finding.level) for finding in report.findings if finding.code == code}


def test_sound_classes_have_no_findings(tmp_path):
    report = check(tmp_path, labelled(200), labelled(60, seed=5)[:40])
    assert [finding for finding in report.findings if finding.code != "P604"] == []
    assert report.facts["job"] == "classification"


def test_empty_texts_are_counted_and_do_not_stop_the_reading(tmp_path):
    report = check(tmp_path, [*labelled(50), {"text": " ", "label": "class 1"}, {"text": "", "label": "class 0"}])
    assert level_of(report, "P601") == {"warning"} and report.facts["train records"] == 50


def test_rows_that_cannot_be_read_are_an_error_with_their_reason(tmp_path):
    report = check(tmp_path, [*labelled(50), {"text": 7, "label": "class 1"}])
    (finding,) = report.errors
    assert finding.code == "P612" and "not text" in finding.what and "line 51" in finding.where


def test_duplicates(tmp_path):
    rows = labelled(50)
    rows += [{**rows[3], "text": rows[3]["text"].upper()}, rows[7]]
    report = check(tmp_path, rows)
    assert level_of(report, "P602") == {"warning"}
    assert "2 of 52" in report.warnings[0].what and "line 51 = " in report.warnings[0].where


def test_near_duplicates(tmp_path):
    texts = [" ".join(sentences(6, seed)) for seed in range(30)]
    rows = [{"text": text} for text in [*texts, texts[4] + " he said"]]
    report = check(tmp_path, rows)
    assert level_of(report, "P603") == {"note"} and report.codes == set()
    assert level_of(check(tmp_path, rows[:30]), "P603") == set()


def test_splits_that_overlap(tmp_path):
    """huggingface/datasets#4261: samples of webis/conclugen are in several splits."""
    rows = labelled(100)
    report = check(tmp_path, rows, [*labelled(160)[100:], rows[5]])
    assert level_of(report, "P604") == {"error"}
    assert "line 61 = " in report.errors[0].where


def test_splits_that_nearly_overlap(tmp_path):
    texts = [" ".join(sentences(6, seed)) for seed in range(40)]
    report = check(
        tmp_path, [{"text": text} for text in texts[:30]], [{"text": texts[2] + " he said"}, *map(as_text, texts[30:])]
    )
    assert level_of(report, "P604") == {"warning"}


def as_text(text: str) -> dict:
    return {"text": text}


def test_equal_texts_with_different_labels(tmp_path):
    """sebischair/Medical-Abstracts-TC-Corpus#2: 113 of 2,770 texts have conflicting labels."""
    rows = labelled(60)
    other = "class 0" if rows[9]["label"] == "class 1" else "class 1"
    report = check(tmp_path, [*rows, {**rows[9], "label": other}])
    assert report.codes == {"P613"}


def test_labels_of_one_split_only(tmp_path):
    """A sorted file that is cut in two, as in zalandoresearch/fashion-mnist#3; Hironsan/anago#49."""
    rows = sorted(labelled(120, 3), key=lambda row: row["label"])
    report = check(tmp_path, rows[:70], rows[70:])
    assert level_of(report, "P606") == {"warning"}
    mixed = labelled(120, 3)
    assert level_of(check(tmp_path, mixed[:70], mixed[70:]), "P606") == set()


def test_a_single_label(tmp_path):
    report = check(tmp_path, labelled(30, classes=1))
    assert level_of(report, "P117") == {"error"}


def test_sorted_labels_are_a_note(tmp_path):
    """ageron/handson-ml#86: who cuts before shuffling has a split without some classes."""
    rows = sorted(labelled(120, 3), key=lambda row: row["label"])
    assert level_of(check(tmp_path, rows), "P616") == {"note"}
    assert level_of(check(tmp_path, labelled(120, 3)), "P616") == set()


def test_a_word_that_tells_the_label(tmp_path):
    """LL-a-VO/VLLaVO#2: words of the label stand in the texts."""
    rows = labelled(200)
    for row in rows:
        row["text"] += " :-)" if row["label"] == "class 1" else " :-("
    report = check(tmp_path, rows)
    assert report.codes == {"P610"}


def test_a_word_of_one_class_among_several_that_tells_it(tmp_path):
    rows = labelled(300, 4)
    for row in rows:
        row["text"] = ("RT " if row["label"] == "class 2" else "") + row["text"]
    (finding,) = check(tmp_path, rows).warnings
    assert finding.code == "P610" and "'class 2'" in finding.what and "RT" in finding.what


def test_a_field_that_tells_the_label(tmp_path):
    """openml/OpenML#474; rpatrik96/hallmark#36: how an entry was made tells its label."""
    rows = [{**row, "source": f"site {row['label'][-1]}"} for row in labelled(200)]
    assert check(tmp_path, rows).codes == {"P614"}
    spelled = [{**row, "label_text": row["label"]} for row in labelled(200)]
    assert check(tmp_path, spelled).codes == set()


def test_a_length_that_tells_the_label(tmp_path):
    rows = labelled(200)
    draw = random.Random(3)
    for row in rows:
        row["text"] += " " + " ".join(sentences(4, draw.randrange(99))) if row["label"] == "class 1" else ""
    assert "P614" in check(tmp_path, rows).codes


@pytest.mark.parametrize(
    "wrong", ["cafÃ©", "itâ€™s", "naÃ¯ve", "MÃ¼ller", "ÐŸÑ€Ð¸Ð²ÐµÑ‚", "caf\ufffd", "it\x92s", "‚Äúyes"]
)
def test_text_of_a_wrong_encoding(wrong, tmp_path):
    """unicamp-dl/mMARCO#24, rspeer/python-ftfy#28."""
    rows = labelled(100)
    rows[30]["text"] += f" {wrong}"
    report = check(tmp_path, rows)
    assert report.codes == {"P607"}


@pytest.mark.parametrize(
    "right",
    ["AMANHÃ…", "IRMÃ»", "não é à toa", "Âge", "« Liberté »", "5 × 3 – ok", "naïve café", "Привет", "日本語", "ÇA…"],
)
def test_text_that_only_looks_like_a_wrong_encoding(right, tmp_path):
    rows = labelled(100)
    rows[30]["text"] += f" {right}"
    assert check(tmp_path, rows).findings == []


def test_control_characters(tmp_path):
    rows = labelled(100)
    rows[30]["text"] += "\x1b[0m"
    assert check(tmp_path, rows).codes == {"P608"}
    rows[30]["text"] = "a tab\tand a line\r\nand a joiner \u200d"
    assert check(tmp_path, rows).findings == []


def test_answers_that_repeat_their_prompt(tmp_path):
    rows = chats(40)
    for row in rows[:10]:
        row["messages"][1]["content"] = row["messages"][0]["content"]
    assert "P615" in check(tmp_path, rows).codes
    assert "P615" not in check(tmp_path, chats(40)).codes


def test_answers_that_are_all_equal(tmp_path):
    rows = chats(40)
    for row in rows:
        row["messages"][1]["content"] = "I do not know."
    assert check(tmp_path, rows).codes == {"P618"}


def test_preferences_with_equal_answers_and_contradictions(tmp_path):
    rows = [
        {"prompt": prompt, "chosen": one, "rejected": other}
        for prompt, one, other in zip(sentences(60), sentences(60, 1), sentences(60, 2))
    ]
    assert check(tmp_path, rows).codes == set()
    equal = [*rows[1:], {**rows[0], "rejected": rows[0]["chosen"]}]
    assert level_of(check(tmp_path, equal), "P113") != set()
    swapped = [*rows, {**rows[5], "chosen": rows[5]["rejected"], "rejected": rows[5]["chosen"]}]
    assert check(tmp_path, swapped).codes == {"P613"}


def test_tags_without_a_begin(tmp_path):
    rows = [
        {"tokens": text.split(), "tags": ["O", "B-THING", *["O"] * (len(text.split()) - 2)]} for text in sentences(50)
    ]
    assert check(tmp_path, rows).codes == set()
    for row in rows[:10]:
        row["tags"][1] = "I-THING"
    assert check(tmp_path, rows).codes == {"P620"}


def test_texts_longer_than_the_limit(tmp_path):
    rows = labelled(60)
    rows[7]["text"] = " ".join(sentences(20))
    report = check(tmp_path, rows, tokenizer=byte_tokenizer(), max_length=128)
    assert report.codes == {"P611"} and "1 of 60 rows" in report.warnings[0].what
    assert check(tmp_path, labelled(60), tokenizer=byte_tokenizer(), max_length=128).codes == set()


def test_special_tokens_in_texts(tmp_path):
    rows = labelled(60)
    rows[7]["text"] += "<|im_end|>"
    assert check(tmp_path, rows, tokenizer=byte_tokenizer()).codes == {"P013"}


def test_begin_tokens_that_are_written_twice(tmp_path):
    rows = [{"text": f"<s>{text}"} for text in sentences(30)]
    report = check(tmp_path, rows, tokenizer=byte_tokenizer(add_bos=True))
    assert report.codes == {"P001"}
    assert "P001" not in check(tmp_path, rows, tokenizer=byte_tokenizer()).codes


def test_a_missing_chat_template(tmp_path):
    assert check(tmp_path, chats(10), tokenizer=byte_tokenizer(chat_template=None)).codes == {"P012"}


def test_a_job_that_is_named_wins(tmp_path):
    assert check(tmp_path, labelled(20), job="text").facts["job"] == "text"
    with pytest.raises(InputError, match="job 'poems'"):
        check(tmp_path, labelled(20), job="poems")


def test_files_of_no_form_are_refused(tmp_path):
    with pytest.raises(InputError, match="its fields are"):
        check(tmp_path, [{"x": 1, "y": 2}])


def test_codes_can_be_ignored(tmp_path):
    rows = labelled(50)
    report = check(tmp_path, [*rows, rows[0]], ignore=["p602"])
    assert report.findings == [] and report.ignored == {"P602": 1}


def test_rows_that_are_skipped_on_purpose_are_a_note(tmp_path):
    report = check(tmp_path, [*labelled(50), {"text": 7, "label": "class 1"}], options=ReadingOptions(skip_bad=True))
    assert level_of(report, "P612") == {"note"}


def test_chats_that_are_rendered_already(tmp_path):
    rows = chats(30)
    for row in rows:
        row["messages"][0]["content"] = f"<|im_start|>user\n{row['messages'][0]['content']}<|im_end|>"
    assert level_of(check(tmp_path, rows), "P017") == {"error"}
    rows = chats(30)
    rows[3]["messages"][0]["content"] += " as [INST] in Llama 2"
    assert check(tmp_path, rows).codes == set()


def test_labels_of_unpaired_preferences_are_not_a_fault(tmp_path):
    rows = [{"prompt": one, "completion": other, "label": number % 2 == 0}
            for number, (one, other) in enumerate(zip(sentences(40), sentences(40, 1)))]  # fmt: skip
    report = check(tmp_path, rows)
    assert report.findings == [] and any("KTO" in what for what in report.unseen)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.job}-{form.name}")
def test_every_form_is_read(form, tmp_path):
    """A file of each form is read as it is, for its job, and no check fails."""
    for name, text in form.example.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    files = sorted({tmp_path / name.partition("/")[0] for name in form.example})
    report = preflight_data(files, job=form.job, tokenizer=byte_tokenizer())
    assert not any("failed" in what for what in report.unseen)
    assert report.facts["train records"] == len(form.gives)


def test_chats_are_shown_with_what_is_trained_and_their_template_is_checked(tmp_path):
    report = check(tmp_path, chats(20, system=True), tokenizer=byte_tokenizer())
    assert report.codes == set() and report.facts["train roles"] == "system 20, user 20, assistant 20"
    _, picture, _ = report.pictures
    assert f"⟦{chats(1)[0]['messages'][1]['content']}<|im_end|>⟧" in str(picture)
    deaf = byte_tokenizer(chat_template=CHATML.replace("in messages", "in messages if message['role'] != 'system'"))
    assert "P004" in check(tmp_path, chats(20, system=True), tokenizer=deaf).codes


def test_chats_that_are_cut_by_the_limit(tmp_path):
    rows = chats(20)
    rows[4]["messages"][0]["content"] = "why " * 100
    report = check(tmp_path, rows, tokenizer=byte_tokenizer(), max_length=256)
    (finding,) = report.warnings
    assert finding.code == "P611" and "cut in 1, and 1 have no token of an answer" in finding.what


def test_places_name_a_file_once_and_its_folder_only_where_two_files_have_one_name():
    assert shorten_places(["a/b.csv, line 3", "a/b.csv, line 4", "a/c.csv, line 1"]) == [
        "b.csv, line 3",
        "line 4",
        "c.csv, line 1",
    ]
    places = ["a/b.csv, line 3", "c/b.csv, line 3"]
    assert shorten_places(places) == places
