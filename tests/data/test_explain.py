"""A file that is refused is told what it is, and the advice works: wrong call → message → the call it advises."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from hf_tfm.data.forms.early_check import find_mistake
from hf_tfm.data.forms.form import Reading, forms_of
from hf_tfm.data.forms.reader import read_records
from hf_tfm.data.tables import ReadingOptions


TRAINING = Path(__file__).parents[2] / "training"
NEWS = '3,"Wall St. falls again","Markets closed lower after a long and nervous day of trade."\n' * 3
NEWS += '4,"A new telescope","It looks at stars that are further away than any seen before."\n'
QUESTION = {"question": "Who?", "context": "Ann sings.", "answers": {"text": ["Ann"], "answer_start": [0]}}
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
PAIR = {"premise": "It rains.", "hypothesis": "It is wet.", "label": "entailment"}
SCORES = "good film\t1\nbad film\t0\nso so\t1\n"
QUORA = "".join(f"{n % 2}\tHow do I do this {n}?\tHow can I do that {n}?\t{n}\n" for n in range(5))
INNER = json.dumps({"data": {"version": 1, "words": [{"word": "a"}], "pairs": [PAIR] * 2}})
LISTS = json.dumps({"one": [PAIR], "two": [PAIR]}, indent=1)

# Script, file, its content, options, and a part of the message. The advice is taken from the message itself.
CASES = {
    "no header": ("classification", "a.csv", NEWS, "", "the first row looks like data"),
    "no header, names given": ("classification", "a.csv", NEWS, "--text_field review", "looks like data"),
    "no header, two columns": ("classification", "a.tsv", SCORES, "", "looks like data"),
    "no header, pairs": ("classification", "a.tsv", QUORA, "", "--columns label text text_pair column4 names"),
    "no header, scores": ("embeddings", "a.tsv", QUORA, "", "--columns score text text_pair column4 names"),
    "separator": ("classification", "a.csv", "text;label\na;b;c\nd;e\nf;g\n", "--skip_bad", "there is one column"),
    "field": ("classification", "a.csv", "sentence,label\na,b\n", "--text_field sentense", "did you mean 'sentence'"),
    "no such field": ("classification", "a.csv", "words_of_it,label\na,b\n", "", "no field 'text' (--text_field"),
    "JSON as CSV": ("classification", "a.csv", '{"text": "a", "label": "b"}\n' * 2, "", "holds JSON"),
    "JSON as text": ("classification", "a.txt", '{"text": "a", "label": "b"}\n' * 2, "", "holds JSON"),
    "CSV as JSON": ("classification", "a.jsonl", "text,label\na,b\n", "", "separated by commas"),
    "TSV as text": ("classification", "a.txt", "text\tlabel\na\tb\n", "", "separated by tabs"),
    "two lists": (
        "classification", "a.json", LISTS, "", "is one object with its rows"
    ),
    "a list inside": ("classification", "a.json", INNER, "", "lists, data.words (1), data.pairs (2): write them"),
    "questions": ("classification", "a.jsonl", json.dumps(QUESTION), "", "which finetune_qa reads"),
    "pairs": ("qa", "a.jsonl", json.dumps(PAIR), "", "which finetune_"),
}  # fmt: skip


CONLL = "EU B-ORG\nrejects O\n\nPeter B-PER\nsings O\n"
if forms_of("chat"):
    CASES["chat"] = ("multiple_choice", "a.jsonl", json.dumps(CHAT), "", "which finetune_instruct reads")
if any(form.content == "lines" for form in forms_of("tags")):
    CASES["CoNLL"] = ("classification", "a.txt", CONLL, "", "which finetune_tokens reads")


def advised(message, script, path, options, folder):
    """Returns the call that a message advises, as script and arguments."""
    if match := re.search(r"let its name end in (\.\w+)", message):
        return script, [str(shutil.copy(path, folder / f"renamed{match[1]}")), *options]
    if match := re.search(r"jq -c '\.([\w.]+)\[\]'", message):
        renamed, rows = folder / "rows.jsonl", json.loads(path.read_text())
        for name in match[1].split("."):
            rows = rows[name]
        renamed.write_text("\n".join(map(json.dumps, rows)))
        return script, [str(renamed), *options]
    if match := re.search(r"which (finetune_\w+) reads", message):
        return match[1], [str(path)]
    if match := re.search(r"(--\w+)\), there are .* did you mean '(.*)'", message):
        return script, [str(path), match[1], match[2]]
    if match := re.search(r"\((--\w+) names it\)", message):
        return script, [str(path), match[1], re.search(r"its fields are (\w+)", message)[1]]
    match = re.search(r": (--(?:columns|separator) .+?) names", message)
    return script, [str(path), *options, *shlex.split(match[1])]


@pytest.mark.parametrize("case", CASES)
def test_the_advice_of_a_message_works(case, tmp_path):
    job, name, content, options, expected = CASES[case]
    script, path = f"finetune_{job}", tmp_path / name
    path.write_text(content)
    message = find_mistake(TRAINING / f"{script}.py", ["--train_file", str(path), *options.split()]) or ""
    assert message.startswith(f"{path}: ") and expected in message and "\n" not in message
    script, arguments = advised(message, script, path, options.split(), tmp_path)
    assert find_mistake(TRAINING / f"{script}.py", ["--train_file", *arguments]) is None


def test_metadata_of_a_clone_is_no_data(tmp_path):
    path = tmp_path / "dataset_info.json"
    path.write_text('{"features": {"text": {}}, "splits": {"train": {"num_examples": 3}}, "citation": ""}')
    message = find_mistake(TRAINING / "finetune_classification.py", ["--train_file", str(path)])
    assert "holds metadata" in message and "leave it out" in message


def test_a_header_that_is_read_as_data_is_said(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nIt rains.,weather\n")
    options = ReadingOptions(columns=("text", "label"))
    [report] = read_records(tmp_path / "a.csv", Reading("classification", options=options)).reports
    assert any("first row looks like a header" in note for note in report.notes)


@pytest.mark.parametrize("name", ["babi.txt", "notes.md"])
def test_text_for_a_job_without_forms_of_text_is_called_text(tmp_path, name):
    """It was said to be of an unknown kind, whose name must end in .txt."""
    (tmp_path / name).write_text("1 Ann is a cat.\n2 Who is a cat?\tAnn\t1\n")
    message = find_mistake(TRAINING / "finetune_qa.py", ["--train_file", str(tmp_path / name)])
    assert message.endswith("is plain text, which has no form of questions; `hf-tfm formats questions` lists the forms "
                            "that can be read")  # fmt: skip


def test_all_missing_fields_of_the_nearest_form_are_named(tmp_path):
    """A form that needs columns of 0 and 1 besides is not near to a file without them."""
    path = tmp_path / "a.tsv"
    path.write_text("text_other\tcoarse_label\tfine_label\na b\tx\ty\nc d\tx\tz\n")
    script = TRAINING / "finetune_classification.py"
    message = find_mistake(script, ["--train_file", str(path)])
    assert "no field 'text' (--text_field names it) and no field 'label' (--label_field names it)" in message
    names = ["--text_field", "text_other", "--label_field", "fine_label"]
    assert find_mistake(script, ["--train_file", str(path), *names]) is None
