"""Forms of text: documents in a field of a table."""

from .form import FormRow, Record, rows
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
    return {"text": row.text("text")}
