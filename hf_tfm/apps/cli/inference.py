"""Commands that run a model: `generate`, `chat`, `fill-mask`, `predict`."""

import os
from typing import Annotated, Any, Literal

import typer

from .app import command
from .options import (
    AnyModel,
    Base,
    BatchTokens,
    Bf16,
    CausalModel,
    Columns,
    Encoding,
    Format,
    IgnoreFields,
    MinP,
    NoHeader,
    RepetitionPenalty,
    Seed,
    Separator,
    SkipBad,
    Temperature,
    TopK,
    TopP,
    TrustRemoteCode,
    check_number,
    check_text,
    flag,
)


_PANEL = "Run a model"
_FIELDS = "Names of fields"
_FIELD = {"metavar": "NAME", "rich_help_panel": _FIELDS}


@command(
    'hf-tfm generate my-decoder "Once upon a time" --temperature 0.8 --top-p 0.95',
    'hf-tfm generate my-decoder "Once upon a time" --compare --html compared.html',
    panel=_PANEL,
)
def generate(
    model: CausalModel,
    prompt: Annotated[str, typer.Argument(callback=check_text, help="Text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of new tokens.")] = 50,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = 0,
    beams: Annotated[int | None, typer.Option(min=1, help="Beam search with this many beams.")] = None,
    compare: Annotated[
        bool,
        flag(
            "--compare",
            "Compare greedy search, beam search, temperature, top-k and top-p; each takes its value from the "
            "option of that name.",
        ),
    ] = False,
    candidates: Annotated[bool, flag("--candidates", "With --compare: list the candidates of each token.")] = False,
    html: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="With --compare: write a page that shows the candidates of each token."),
    ] = None,
    base: Base = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Continue a text, printed as it is generated; or compare decoding methods token by token."""
    import transformers

    from hf_tfm.artifacts.open import open_model
    from hf_tfm.core.errors import InputError
    from hf_tfm.tasks.generation import encode_prompt, sampling_options, stream_text

    if (html or candidates) and not compare:
        raise InputError("--html and --candidates need --compare")
    lm, tokenizer = open_model(model, "AutoModelForCausalLM", base, trust_remote_code)
    options: dict[str, Any] = dict(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
        beams=beams,
    )  # fmt: skip
    if compare:
        name = os.path.basename(os.path.abspath(model))
        return _compare(lm, tokenizer, prompt, max_new_tokens, seed, options, candidates, html, name)
    ids, room = encode_prompt(lm, tokenizer, prompt)
    settings = sampling_options(**options) | {"max_new_tokens": min(max_new_tokens, room)}
    transformers.set_seed(seed)
    for piece in stream_text(lm, tokenizer, ids, skip_prompt=False, **settings):
        print(piece, end="", flush=True)
    print()


def _compare(
    model: Any, tokenizer: Any, prompt: str, max_new_tokens: int, seed: int, options: dict[str, Any], candidates: bool,
    html: str | None, name: str,
) -> None:  # fmt: skip
    """Print the continuations of several decoding methods, and write them as a page."""
    from hf_tfm.apps import html_report, terminal_report
    from hf_tfm.core.errors import InputError
    from hf_tfm.tasks.decoding import compare_decodings, decoding_methods

    smallest = {"temperature": 1e-6, "top_k": 1, "top_p": 1e-9, "beams": 2}
    for option, least in smallest.items():
        if options[option] is not None and options[option] < least:
            given = f"--{option.replace('_', '-')} {options[option]:g}"
            raise InputError(f"{given}: with --compare it must be a value that changes the distribution")
    decodings = compare_decodings(model, tokenizer, prompt, decoding_methods(**options), max_new_tokens, seed)
    terminal_report.print_comparison(prompt, decodings, candidates)
    if html:
        html_report.write_page(html, f"Decoding methods: {name}", html_report.comparison_as_html(prompt, decodings))
        print(f"\nwrote {html}")


@command(
    "hf-tfm chat runs/instruct",
    'hf-tfm chat runs/instruct --system "Answer in one sentence." --top-p 0.9',
    panel=_PANEL,
)
def chat(
    model: CausalModel,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", callback=check_text, help="System message of the conversation.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens of an answer.")] = 256,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = 0,
    base: Base = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Chat with a model in the terminal; answers are printed as they are generated."""
    from hf_tfm.apps.chat import Chat, talk
    from hf_tfm.artifacts.open import open_model
    from hf_tfm.tasks.generation import sampling_options

    lm, tokenizer = open_model(model, "AutoModelForCausalLM", base, trust_remote_code)
    sampling = sampling_options(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty
    )
    talk(Chat(lm, tokenizer, system, max_new_tokens, **sampling), seed)


@command('hf-tfm fill-mask my-encoder "The capital of France is [MASK]."', panel=_PANEL)
def fill_mask(
    model: Annotated[str, typer.Argument(help="Folder of a masked LM, or its name on the Hub.")],
    text: Annotated[
        str, typer.Argument(callback=check_text, help="Text with the tokenizer's mask token, usually [MASK].")
    ],
    top: Annotated[int, typer.Option(min=1, help="Number of candidates.")] = 5,
    base: Base = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Show the most likely tokens at each mask of a text."""
    from hf_tfm.artifacts.open import open_model
    from hf_tfm.tasks.fill_mask import fill_masks

    lm, tokenizer = open_model(model, "AutoModelForMaskedLM", base, trust_remote_code)
    masks = fill_masks(lm, tokenizer, text, top)
    for number, candidates in enumerate(masks, 1):
        if len(masks) > 1:
            print(f"{tokenizer.mask_token} {number}")
        for token, probability in candidates:
            print(f"{probability:6.1%}  {token}")


def _find_mistake(model: str, files: list[str], **options: Any) -> str | None:
    from ...data.forms.early_check import find_mistake_of_prediction

    return find_mistake_of_prediction(model, files, options)


@command(
    "hf-tfm predict runs/banking77 questions.csv --out labelled.csv --text-field question",
    "hf-tfm predict runs/fairytaleqa questions.jsonl.gz --top 5",
    panel=_PANEL,
    find_mistake=_find_mistake,
)
def predict(
    model: AnyModel,
    files: Annotated[
        list[str], typer.Argument(help="Files, folders or globs of any form that `hf-tfm formats` lists.")
    ],
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help=".jsonl or .csv file to write, also with .gz. By default JSON lines are printed."
        ),
    ] = None,
    text_field: Annotated[str | None, typer.Option(help="Text.", **_FIELD)] = None,
    text_pair_field: Annotated[str | None, typer.Option(help="Second text of a pair.", **_FIELD)] = None,
    words_field: Annotated[
        str | None, typer.Option(help="Words to tag; otherwise the text of --text-field is split into words.", **_FIELD)
    ] = None,
    question_field: Annotated[str | None, typer.Option(help="Question.", **_FIELD)] = None,
    context_field: Annotated[str | None, typer.Option(help="Text that contains the answer.", **_FIELD)] = None,
    options_fields: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME…", rich_help_panel=_FIELDS, help="Options: a list, or one field for each option."),
    ] = None,
    format: Format = None,
    separator: Separator = None,
    encoding: Encoding = None,
    no_header: NoHeader = False,
    columns: Columns = None,
    skip_bad: SkipBad = False,
    ignore_fields: IgnoreFields = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="Number of labels or answers to list with their scores. By default 3.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            callback=check_number,
            help="By how much the score of 'no answer' must exceed that of the best answer to be predicted.",
        ),
    ] = None,
    pooling: Annotated[
        Literal["mean", "max", "cls", "last"] | None,
        typer.Option(help="Pooling of embeddings. By default as the model's folder says."),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of tokens of a text. By default as in training.")
    ] = None,
    batch_tokens: BatchTokens = 4096,
    bf16: Bf16 = False,
    base: Base = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Label, tag, answer, choose, score or embed the records of files, depending on the model's head."""
    from hf_tfm.data.forms.early_check import read_options
    from hf_tfm.evaluate.predict import open_predictor, predict_file

    fields = {
        "text_field": text_field, "text_pair_field": text_pair_field, "words_field": words_field,
        "question_field": question_field, "context_field": context_field, "options_fields": options_fields,
    }  # fmt: skip
    predictor = open_predictor(
        model,
        base=base,
        trust_remote_code=trust_remote_code,
        fields={name: value for name, value in fields.items() if value},
        max_length=max_length,
        threshold=threshold,
        top=top,
        pooling=pooling,
        batching={"batch_tokens": batch_tokens, "bf16": bf16},
    )
    options = read_options({
        "format": format, "separator": separator, "encoding": encoding, "no_header": no_header, "columns": columns,
        "skip_bad": skip_bad, "ignore_fields": ignore_fields,
    })  # fmt: skip
    count = predict_file(predictor, files, out, options)
    if out:
        print(f"wrote {out}: {count:,} records")
