"""Commands that serve a model: `serve` over HTTP, `demo` in the browser."""

from typing import Annotated

import typer

from .app import command
from .options import AnyModel, Base, TrustRemoteCode


_PANEL = "Serve a model"


@command("hf-tfm serve runs/instruct", "hf-tfm serve runs/instruct --port 8123 --device cpu", panel=_PANEL)
def serve(
    model: Annotated[str, typer.Argument(help="Folder of a causal LM, or its name on the Hub.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "localhost",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "auto",
) -> None:
    """Serve a model with OpenAI's API, by transformers' own server."""
    from hf_tfm.convert.serving import serve as serve_model
    from hf_tfm.core.model_files import read_config

    read_config(model)
    serve_model(model, host, port, device)


@command("hf-tfm demo my-decoder", "hf-tfm demo my-classifier --space my-space", panel=_PANEL)
def demo(
    model: AnyModel,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the page on this machine.")] = 7860,
    space: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="Write the page as a Space of the Hub, ready to push, instead of showing it."
        ),
    ] = None,
    base: Base = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Show a page in the browser that suits the model's head, with a view of its attention."""
    if space:
        from hf_tfm.apps.hub_space import write_space

        write_space(model, space, base, trust_remote_code)
        print(f"wrote {space}; push it with: hf upload YOU/NAME {space} . --repo-type space")
    else:
        from hf_tfm.apps.demo import serve

        serve(model, port, base, trust_remote_code)
