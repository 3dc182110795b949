"""Serves models of this package with transformers' OpenAI-compatible server."""

from typing import Any

import transformers
from jinja2 import TemplateError

from ..core.errors import InputError


def serve(model: str, host: str = "localhost", port: int = 8000, device: str = "auto") -> None:
    """
    Run `transformers serve` for one model until it is interrupted.

    The server looks up model classes by name in the module `transformers`, so this package's classes are added there. A
    conversation that the chat template refuses is answered with status 400 and the template's message.

    Raises:
        InputError: the server's packages (`pip install 'hf-tfm[serve]'`) are not installed.
    """
    import hf_tfm

    for name in hf_tfm.__all__:
        if name.startswith(("TfmDecoder", "TfmEncoder")) and not hasattr(transformers, name):
            setattr(transformers, name, getattr(hf_tfm, name))
    try:
        from transformers.cli.serve import Serve

        answer_refusals()
        Serve(force_model=model, host=host, port=port, device=device)
    except ImportError as error:
        raise InputError(f"the server needs more packages: pip install 'hf-tfm[serve]' ({error})") from error


def answer_refusals() -> None:
    """Make servers of this process answer errors of chat templates with status 400 in OpenAI's form, not with 500."""
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse

    build = FastAPI.build_middleware_stack

    def refuse(request: Any, error: Exception) -> JSONResponse:
        facts = {"message": str(error), "type": "invalid_request_error", "param": "messages", "code": None}
        return JSONResponse({"error": facts}, status_code=400)

    def build_with_handler(app: FastAPI) -> Any:
        app.add_exception_handler(TemplateError, refuse)
        return build(app)

    FastAPI.build_middleware_stack = build_with_handler  # type: ignore
