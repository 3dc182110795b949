"""Arguments and options that several commands share."""

import math
from typing import Annotated, Any

import typer


def check_text(text: str | None) -> str | None:
    """Refuse bytes that are not UTF-8: Python passes them on as lone surrogates, which no tokenizer reads."""
    if text is not None and any("\ud800" <= character <= "\udfff" for character in text):
        raise typer.BadParameter("contains bytes that are not UTF-8 text")
    return text


def check_number(number: float | None) -> float | None:
    """Refuse `nan` and `inf`, which pass the bounds of Typer's options."""
    if number is not None and not math.isfinite(number):
        raise typer.BadParameter(f"must be a finite number, not {number}")
    return number


def flag(name: str, help: str) -> Any:
    """Return a switch without a value; Typer shows `<bool>` as the value of one that has no metavar."""
    return typer.Option(name, help=help, metavar=" ")


# Opening a model
AnyModel = Annotated[str, typer.Argument(help="Folder of a model or an adapter, or a name on the Hub.")]
CausalModel = Annotated[str, typer.Argument(help="Folder of a causal LM or of an adapter, or a name on the Hub.")]
Target = Annotated[
    str, typer.Argument(metavar="OUT", help="Folder to write; it must be empty or not exist.", show_default=False)
]
Base = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="Base model of an adapter, if it is not where the adapter's settings say."),
]
TrustRemoteCode = Annotated[bool, flag("--trust-remote-code", "Run the code that the model carries.")]

# Computing in batches
BatchTokens = Annotated[int, typer.Option(min=1, help="Tokens computed at once.")]
Bf16 = Annotated[bool, flag("--bf16", "Compute in bf16: faster where the hardware supports it, less exact.")]

# Reading files
_FILES = "Files"
_LIST = {"metavar": "NAME…", "rich_help_panel": _FILES}
Format = Annotated[
    str | None,
    typer.Option(help="Form of the files, one of `hf-tfm formats`. By default recognised.", rich_help_panel=_FILES),
]
Separator = Annotated[
    str | None,
    typer.Option(help="Separator of cells: a character, tab, space or blanks.", rich_help_panel=_FILES),
]
Encoding = Annotated[
    str | None, typer.Option(help="Encoding of text, such as cp1252. By default guessed.", rich_help_panel=_FILES)
]
NoHeader = Annotated[
    bool, typer.Option("--no-header", help="The first row is data.", metavar=" ", rich_help_panel=_FILES)
]
Columns = Annotated[list[str] | None, typer.Option(help="Names of columns; the first row is data.", **_LIST)]
SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad", help="Leave out rows that cannot be used, and count them.", metavar=" ", rich_help_panel=_FILES
    ),
]
IgnoreFields = Annotated[
    list[str] | None, typer.Option(help="Fields that mean something but shall be left out.", **_LIST)
]

# Sampling; without a value the model's own settings hold
_PANEL = "Sampling"
Temperature = Annotated[
    float | None,
    typer.Option(
        min=0.0, callback=check_number, rich_help_panel=_PANEL,
        help="Sampling temperature; 0 takes the most likely token. By default the model's own setting.",
    ),
]  # fmt: skip
TopK = Annotated[
    int | None, typer.Option(min=0, rich_help_panel=_PANEL, help="Sample from this many of the most likely tokens.")
]
TopP = Annotated[
    float | None,
    typer.Option(
        min=0.0, max=1.0, callback=check_number, rich_help_panel=_PANEL,
        help="Sample from the most likely tokens whose probabilities add up to this.",
    ),
]  # fmt: skip
MinP = Annotated[
    float | None,
    typer.Option(
        min=0.0, max=1.0, callback=check_number, rich_help_panel=_PANEL,
        help="Sample from tokens with at least this fraction of the highest probability.",
    ),
]  # fmt: skip
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        min=0.01, callback=check_number, rich_help_panel=_PANEL,
        help="Above 1, tokens that occurred before become less likely.",
    ),
]  # fmt: skip
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, rich_help_panel=_PANEL, help="Seed of the sampling.")]
