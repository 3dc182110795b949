"""Commands that look into a model or plan one: `inspect`, `verify`, `plan`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .app import command
from .options import AnyModel, Base, TrustRemoteCode, check_number, check_text, flag


_PANEL = "Inspect a model"


@command(
    "hf-tfm inspect my-decoder",
    "hf-tfm inspect my-encoder --picture pictures --text 'The cat sat down.'",
    "hf-tfm inspect my-encoder --senses left texts.jsonl.gz --picture pictures",
    panel=_PANEL,
)
def inspect(
    model: AnyModel,
    length: Annotated[
        int | None, typer.Option(min=1, help="Context length to compute the costs for. By default the longest.")
    ] = None,
    picture: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Folder for pictures of attention and embeddings.")
    ] = None,
    text: Annotated[str | None, typer.Option(callback=check_text, help="Text that the pictures show.")] = None,
    senses: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="WORD FILE",
            help="Instead: compare the embedding of a word with its vectors in the texts of a file (FILE#FIELD for "
            "another field than 'text').",
        ),
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(min=0, help="With --senses: the block whose outputs are compared. By default the last."),
    ] = None,
    base: Base = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Show a model's architecture, parameters by part, memory and operations; on request also pictures."""
    from hf_tfm.apps.inspect import architecture, word_senses
    from hf_tfm.artifacts.open import open_model
    from hf_tfm.core.errors import InputError

    if layer is not None and not senses:
        raise InputError("--layer needs --senses: it is the layer whose vectors are compared")
    if text is not None and (senses or not picture):
        raise InputError("--text needs --picture, and excludes --senses: it is the text of the pictures")
    folder = Path(picture) if picture else None
    if folder and folder.exists() and not folder.is_dir():
        raise InputError(f"--picture {folder} is a file; give the name of a folder")
    eager: dict[str, Any] = {"attn_implementation": "eager"} if folder and not senses else {}
    opened, tokenizer = open_model(model, None, base, trust_remote_code, **eager)
    if senses:
        word, file = senses
        comparison = word_senses.read_senses(opened, tokenizer, word, file, layer)
        print(word_senses.senses_as_text(comparison))
        if folder:
            path = folder / word_senses.senses_file(word)
            word_senses.draw_senses(comparison, path)
            print(f"\nwrote {path}")
        return
    print(architecture.inspect_model(opened, length))
    if folder:
        text = text or architecture.EXAMPLE
        architecture.draw_attention(opened, tokenizer, text, folder / architecture.ATTENTION_FILE)
        architecture.draw_neighbours(opened, tokenizer, text, folder / architecture.NEIGHBOURS_FILE)
        print(f"\nwrote {folder / architecture.ATTENTION_FILE} and {architecture.NEIGHBOURS_FILE}")


@command("hf-tfm verify my-model", "hf-tfm verify my-model --only padding packing --json checks.json", panel=_PANEL)
def verify(
    model: Annotated[str, typer.Argument(help="Folder of a model, or its name on the Hub.")],
    only: Annotated[
        list[str] | None, typer.Option(metavar="CHECK…", help="Run only the checks of these names.")
    ] = None,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Also write the results to this file.")] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> int:
    """Check that a saved model keeps its promises: saving, padding, packing, gradients and others.

    The exit code is 1 if a check fails.
    """
    from hf_tfm.artifacts.verify import as_json, as_table, open_subject, versions_line
    from hf_tfm.artifacts.verify import verify as run_checks
    from hf_tfm.artifacts.verify_checks import CHECKS
    from hf_tfm.core.errors import InputError

    if unknown := set(only or ()) - CHECKS.keys():
        raise InputError(f"--only knows {', '.join(CHECKS)}, not {', '.join(sorted(unknown))}")
    subject = open_subject(model, trust_remote_code)
    print(versions_line(model, subject.model), flush=True)
    verdicts = run_checks(model, only, subject=subject)
    print(as_table(verdicts))
    if json:
        with open(json, "w", encoding="utf-8") as file:
            file.write(as_json(model, verdicts) + "\n")
    return int(any(verdict.outcome == "failed" for verdict in verdicts))


@command(
    "hf-tfm plan base --gpu a100 --gpus 8 --tokens 10e9",
    "hf-tfm plan llama --gpu h100 --gpus 16 --shard --checkpointing",
    panel="Train and evaluate",
)
def plan(
    preset: Annotated[
        str, typer.Argument(help="Preset of the causal LM: a size from nano to large, or a family such as qwen3.")
    ],
    gpu: Annotated[str, typer.Option(help="t4, l4, rtx4090, a100-40, a100, h100 or h200.")],
    gpus: Annotated[int, typer.Option(min=1, help="Number of GPUs.")] = 1,
    tokens: Annotated[
        float | None,
        typer.Option(min=1, callback=check_number, help="Training tokens. By default 20 for each parameter."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="With a family: a size from nano to large instead of the published one.")
    ] = None,
    vocab_size: Annotated[int, typer.Option(min=1, help="Size of the vocabulary.")] = 32_000,
    rows: Annotated[int, typer.Option(min=1, help="Rows that a GPU computes at once.")] = 8,
    length: Annotated[int, typer.Option(min=1, help="Tokens in a row.")] = 1024,
    optimizer: Annotated[str, typer.Option(help="muon, normuon or adamw.")] = "muon",
    shard: Annotated[
        bool, flag("--shard", "Shard the training state over the GPUs (FSDP2) instead of copying it.")
    ] = False,
    checkpointing: Annotated[bool, flag("--checkpointing", "Recompute activations in the backward pass.")] = False,
    utilisation: Annotated[float, typer.Option(help="Share of the GPU's peak speed that training reaches.")] = 0.35,
) -> None:
    """Estimate compute, memory and hours of a pretraining run before anything is rented."""
    from hf_tfm.apps.inspect import training_cost
    from hf_tfm.core.errors import InputError
    from hf_tfm.models.configuration_tfm import TfmDecoderConfig

    try:
        config = TfmDecoderConfig.preset(preset, size, vocab_size=vocab_size)
    except ValueError as error:
        raise InputError(str(error)) from error
    print(
        training_cost.estimate_cost(
            config, gpu, tokens, gpus, rows, length, optimizer, shard, checkpointing, utilisation
        )
    )
