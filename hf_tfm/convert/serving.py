"""Serves models of this package with transformers' OpenAI-compatible server."""

import transformers

from ..core.errors import InputError


def serve(model: str, host: str = "localhost", port: int = 8000, device: str = "auto") -> None:
    """
    Run `transformers serve` for one model until it is interrupted.

    The server looks up model classes by name in the module `transformers`, so this package's classes are added there.

    Raises:
        InputError: the server's packages (`pip install 'hf-tfm[serve]'`) are not installed.
    """
    import hf_tfm

    for name in hf_tfm.__all__:
        if name.startswith(("TfmDecoder", "TfmEncoder")) and not hasattr(transformers, name):
            setattr(transformers, name, getattr(hf_tfm, name))
    try:
        from transformers.cli.serve import Serve

        Serve(force_model=model, host=host, port=port, device=device)
    except ImportError as error:
        raise InputError(f"the server needs more packages: pip install 'hf-tfm[serve]' ({error})") from error
