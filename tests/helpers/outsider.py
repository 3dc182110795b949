"""
Opens model folders with transformers alone, without this package.

`tests/test_remote_code.py` runs `python outsider.py FOLDER` in a separate process. FOLDER contains the models that the
test saved; the results are written to `found.pt` there.
"""

import importlib.abc
import sys
from pathlib import Path


class NotInstalled(importlib.abc.MetaPathFinder):
    """Makes this package unimportable even if it is installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_tfm":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def first_tensor(outputs) -> "torch.Tensor":
    return next(value for name, value in outputs.items() if name != "loss")


def open_everything(root: Path) -> dict:
    """Opens each saved model by its Auto class, runs it, saves it again and opens the copy."""
    results = {}
    cases = torch.load(root / "cases.pt")
    for name, (auto_class, inputs, expected) in cases.items():
        opener = getattr(transformers, auto_class)
        model = opener.from_pretrained(root / name, trust_remote_code=True)
        model.save_pretrained(root / "again" / name)
        again = opener.from_pretrained(root / "again" / name, trust_remote_code=True)
        with torch.no_grad():
            outputs, outputs_again = first_tensor(model(**inputs)), first_tensor(again(**inputs))
        results[name] = dict(
            class_name=type(model).__name__,
            module=type(model).__module__,
            again_module=type(again).__module__,
            error=(outputs - expected).abs().max().item(),
            again_equal=torch.equal(outputs, outputs_again),
        )
    return results


def run_pipelines(root: Path) -> dict:
    texts = ["the cat sat on the mat", "rain fell"]
    results = {}
    for task, name, arguments in torch.load(root / "pipelines.pt"):
        run = transformers.pipeline(task, model=str(root / name), trust_remote_code=True)
        results[task] = run([text + (" [MASK]" if task == "fill-mask" else "") for text in texts], **arguments)
    return results


FILLING = [[4, 20, 6, 6, 30, 6, 5]]  # cls, words with three masks among them, sep


def change_heads(root: Path) -> dict:
    """Opens a pretrained language model with other heads and as a base model, and restores the first head."""
    masked = transformers.AutoModelForMaskedLM.from_pretrained(root / "TfmEncoderForMaskedLM", trust_remote_code=True)
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(
        root / "TfmEncoderForMaskedLM", trust_remote_code=True, num_labels=4
    )
    classifier.save_pretrained(root / "changed")
    back = transformers.AutoModelForMaskedLM.from_pretrained(root / "changed", trust_remote_code=True)
    base = transformers.AutoModel.from_pretrained(root / "changed", trust_remote_code=True)
    decoder = transformers.AutoModel.from_pretrained(root / "TfmDecoderForCausalLM", trust_remote_code=True)
    ids = torch.arange(7, 15)[None]
    with torch.no_grad():
        expected = masked.model(ids).last_hidden_state
        return dict(
            labels=classifier(ids).logits.shape[-1],
            back=torch.equal(back.model(ids).last_hidden_state, expected),
            base=torch.equal(base(ids).last_hidden_state, expected),
            decoder=type(decoder).__name__,
            filled=masked.generate(torch.tensor(FILLING)).tolist(),
        )


def open_without_trust(root: Path) -> str:
    try:
        transformers.AutoModel.from_pretrained(root / "TfmDecoderModel", trust_remote_code=False)
    except ValueError as error:
        return str(error)


if __name__ == "__main__":
    sys.meta_path.insert(0, NotInstalled())
    import torch
    import transformers

    torch.set_num_threads(1)
    try:
        import hf_tfm  # noqa: F401
    except ModuleNotFoundError:
        folder = Path(sys.argv[1])
        results = dict(
            models=open_everything(folder),
            pipelines=run_pipelines(folder),
            heads=change_heads(folder),
            untrusted=open_without_trust(folder),
        )
        results["imported"] = [name for name in sys.modules if name.partition(".")[0] == "hf_tfm"]
        torch.save(results, folder / "found.pt")
