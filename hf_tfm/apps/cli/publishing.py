"""Commands that publish a folder: `card`, `push`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .app import command
from .options import Base, check_number, check_text, flag


_PANEL = "Publish a model"


@command("hf-tfm card runs/decoder", "hf-tfm card runs/decoder --name Tales --language en --watts 65", panel=_PANEL)
def card(
    folder: Annotated[str, typer.Argument(help="Folder of a model that a script of this package trained.")],
    name: Annotated[str | None, typer.Option(callback=check_text, help="Name of the model.")] = None,
    base_model: Annotated[
        str | None,
        typer.Option(metavar="NAME", callback=check_text, help="Name of the model that it was fine-tuned from."),
    ] = None,
    license: Annotated[str | None, typer.Option(metavar="ID", help="Licence of the model, such as apache-2.0.")] = None,
    language: Annotated[
        list[str] | None, typer.Option(metavar="CODE…", help="Languages of its texts, such as en.")
    ] = None,
    data_license: Annotated[
        str | None,
        typer.Option(metavar="TEXT", callback=check_text, help="Licence of the data for training and evaluation."),
    ] = None,
    watts: Annotated[
        float | None,
        typer.Option(
            min=0.0, callback=check_number, help="Power of the machine, for the energy used. By default an estimate."
        ),
    ] = None,
) -> None:
    """Write a model's card again, from the record of its training run and of its evaluations."""
    from hf_tfm.artifacts.card import rewrite_card
    from hf_tfm.artifacts.record import RECORD_FILE
    from hf_tfm.core.errors import InputError

    path = Path(folder)
    if not (path / RECORD_FILE).is_file():
        raise InputError(f"{folder}: no {RECORD_FILE} there, which training scripts write and a card is made from")
    rewrite_card(
        path, name=name, base_model=base_model, license=license, language=language, data_license=data_license,
        watts=watts,
    )  # fmt: skip
    print(f"wrote {path / 'README.md'}")


@command(
    "hf-tfm push runs/decoder me/my-decoder --private",
    "hf-tfm push runs/adapter me/my-adapter --base runs/instruct --base-model me/instruct --tag v1",
    "hf-tfm push runs/evaluation/decoder me/decoder-results --dry-run",
    panel=_PANEL,
)
def push(
    folder: Annotated[str, typer.Argument(help="Folder of a model, of an adapter, or of an evaluation's results.")],
    repo: Annotated[
        str, typer.Argument(metavar="USER/REPO", help="Repository on the Hub; it is created if it does not exist.")
    ],
    private: Annotated[
        bool, flag("--private", "Make the repository private; one that is public already is refused.")
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(metavar="BRANCH", help="Branch to push to, created if it does not exist. By default main."),
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Tag for this commit.")] = None,
    message: Annotated[str | None, typer.Option(callback=check_text, help="Commit message.")] = None,
    base: Base = None,
    base_model: Annotated[
        str | None, typer.Option(metavar="USER/REPO", help="Name of an adapter's base model on the Hub.")
    ] = None,
    trust_remote_code: Annotated[
        bool, flag("--trust-remote-code", "Run code in the folder that is not this package's.")
    ] = False,
    dry_run: Annotated[
        bool, flag("--dry-run", "Check and list the files to push; nothing leaves the machine.")
    ] = False,
) -> None:
    """Push a folder to the Hub in one commit, with code, tokenizer and card.

    It is checked first, in a clean process.
    """
    from huggingface_hub.utils import enable_progress_bars

    from hf_tfm.hub import push as hub

    hub.check_name(repo)
    with hub.checked_folder(folder, base=base, hub_base=base_model, trust_remote_code=trust_remote_code) as checked:
        print(f"checked    {folder}: {len(checked.files)} files, {checked.size:,} bytes")
        if checked.difference is not None:
            print(f"opened     in a clean process, where its outputs differ by {checked.difference:.1e} at most")
        if dry_run:
            print("\n".join(f"{path.stat().st_size:15,}  {name}" for name, path in checked.files.items()))
            return
        if sys.stderr.isatty():
            enable_progress_bars()
        pushed = hub.upload(checked, repo, private or None, revision, tag, message)
    tagged = f", tag {tag}" if tag else ""
    print(f"pushed     {pushed.url} at {pushed.revision}, commit {pushed.commit.oid[:12]}{tagged}")
    revision = tag or revision
    if checked.opener:
        print(f"load it    {checked.opener.format(repo, f', revision={revision!r}' if revision else '')}")
    elif checked.kind == "adapter":
        print("load it    on its base model, as its card shows")
