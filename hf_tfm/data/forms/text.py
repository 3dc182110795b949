"""Forms of text: documents in a field of a table."""

from .form import FormRow, NoRecord, Record, rows
from .jobs import JOBS


@rows(
    "text",
    "documents",
    "a document a row",
    {"text": ("text", *JOBS["text"].fields["text"].aliases)},
    example={"texts.jsonl": '{"text": "Once upon a time."}\n'},
    gives=[{"text": "Once upon a time."}],
)
def read_documents(row: FormRow) -> Record:
    value = row["text"]
    if isinstance(value, str) and not value.strip():
        raise NoRecord(f"field {row.names['text']!r} is blank")
    return {"text": row.text("text")}
