"""Commands that answer questions from documents: `index`, `ask`."""

import sys
from typing import Annotated, Any, Literal

import typer

from .app import command
from .options import (
    Base,
    BatchTokens,
    Bf16,
    Columns,
    Encoding,
    Format,
    IgnoreFields,
    NoHeader,
    Separator,
    SkipBad,
    TrustRemoteCode,
    check_text,
    flag,
)


_PANEL = "Search documents"


def _find_mistake(docs: list[str], text_field: str | None, **options: Any) -> str | None:
    from ...data.forms.early_check import find_mistake_of_documents
    from ..retrieval.passages import list_documents

    return find_mistake_of_documents(docs, list_documents, {"text_field": text_field, **options})


@command(
    "hf-tfm index my-texts/ my-index --encoder runs/embeddings",
    "hf-tfm index notes.md 'reports/*.csv' my-index --encoder runs/embeddings --text-field body --skip-bad",
    panel=_PANEL,
    find_mistake=_find_mistake,
)
def index(
    docs: Annotated[
        list[str], typer.Argument(help="Files, folders, globs or hub:NAME; .txt, .md, .jsonl, .csv, …, .zip.")
    ],
    target: Annotated[
        str, typer.Argument(metavar="OUT", help="Folder to write. The same command resumes an index that was stopped.")
    ],
    encoder: Annotated[
        str, typer.Option(metavar="FOLDER", help="Folder of a model that embeds texts, or a name on the Hub.")
    ],
    text_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="Field of a record that has its text. By default recognised.")
    ] = None,
    format: Format = None,
    separator: Separator = None,
    encoding: Encoding = None,
    no_header: NoHeader = False,
    columns: Columns = None,
    skip_bad: SkipBad = False,
    ignore_fields: IgnoreFields = None,
    passage_length: Annotated[int, typer.Option(min=8, help="Maximum number of tokens of a passage.")] = 160,
    overlap: Annotated[
        int | None,
        typer.Option(min=0, help="Tokens that two passages may share. By default a fifth of the passage length."),
    ] = None,
    batch_tokens: BatchTokens = 4096,
    bf16: Bf16 = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Split documents into passages and embed them, for `hf-tfm ask`."""
    from hf_tfm.apps.retrieval.index import build_index
    from hf_tfm.apps.retrieval.passages import count_unreadable
    from hf_tfm.data.forms.early_check import read_options
    from hf_tfm.data.forms.reader import FileReport

    options = read_options({
        "format": format, "separator": separator, "encoding": encoding, "no_header": no_header, "columns": columns,
        "skip_bad": skip_bad, "ignore_fields": ignore_fields,
    })  # fmt: skip
    reports: list[FileReport] = []
    if unreadable := count_unreadable(docs):
        kinds = ", ".join(f"{count} × {kind}" for kind, count in unreadable.most_common(5))
        print(f"not read, because of their suffix: {kinds}", file=sys.stderr)
    made = build_index(
        docs, target, encoder, passage_length=passage_length, overlap=overlap, text_field=text_field,
        options=options, reports=reports, trust_remote_code=trust_remote_code, batch_tokens=batch_tokens, bf16=bf16,
    )  # fmt: skip
    for report in reports:
        print("\n".join(report.lines()))
    print(f"wrote {target}: {len(made):,} passages of {made[len(made) - 1].document + 1:,} documents")


@command('hf-tfm ask my-index "Who built the bridge?" --decoder runs/instruct', panel=_PANEL)
def ask(
    index: Annotated[str, typer.Argument(help="Folder that `hf-tfm index` wrote.")],
    question: Annotated[str, typer.Argument(callback=check_text, help="Question to answer.")],
    decoder: Annotated[
        str, typer.Option(metavar="FOLDER", help="Folder of a causal LM that follows instructions, or a Hub name.")
    ],
    passages: Annotated[int, typer.Option(min=1, help="Number of passages in the prompt, if they fit.")] = 3,
    search: Annotated[
        Literal["encoder", "words", "both"],
        typer.Option(help="Search by the encoder's vectors, by words (BM25; reads all passages first), or by both."),
    ] = "encoder",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens of the answer.")] = 128,
    show: Annotated[bool, flag("--show", "Show the texts of the passages too.")] = False,
    encoder: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Encoder of the index, if it has moved.")
    ] = None,
    base: Base = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Answer a question from the passages of an index that match it best, and cite them."""
    from hf_tfm.apps.retrieval.cited_answers import ask as answer_question
    from hf_tfm.apps.retrieval.index import Index
    from hf_tfm.artifacts.open import open_model

    opened = Index(index)
    predictor = opened.open_encoder(encoder, trust_remote_code)
    model, tokenizer = open_model(decoder, "AutoModelForCausalLM", base, trust_remote_code)
    answer = answer_question(opened, predictor, model, tokenizer, question, passages, max_new_tokens, search)
    print(answer.text + "\n")
    if len(answer.sources) < answer.num_found:
        print(f"{len(answer.sources)} of {answer.num_found} passages fit into the prompt", file=sys.stderr)
    for number, (passage, score) in enumerate(answer.sources, 1):
        cited = ", cited" if number in answer.cited else ""
        print(f"[{number}] {score:.3f}  {passage.name}, characters {passage.start}-{passage.end}{cited}")
        if show:
            print(f"    {' '.join(passage.text.split())}")
