"""
Opens repositories with transformers alone, without this package and without a token.

`tests/hub/test_push.py` runs `python hub_visitor.py VISITS OUT` in a separate process. VISITS is a JSON list of
arguments of `visit`.
"""

import json
import sys

from outsider import NotInstalled, first_tensor


def visit(repo: str, auto_class: str, revision: str | None, ids: list[list[int]]) -> dict:
    """Returns the outputs of a repository's model for some tokens, and the module of its class."""
    opener = getattr(transformers, auto_class)
    model = opener.from_pretrained(repo, revision=revision, trust_remote_code=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(repo, revision=revision)
    with torch.no_grad():
        outputs = first_tensor(model(torch.tensor(ids)))
    return dict(
        model=type(model).__name__,
        module=type(model).__module__,
        outputs=outputs,
        vocabulary=len(tokenizer),
    )


if __name__ == "__main__":
    sys.meta_path.insert(0, NotInstalled())
    import torch
    import transformers

    torch.set_num_threads(1)
    with open(sys.argv[1]) as file:
        visits = json.load(file)
    torch.save([visit(**arguments) for arguments in visits], sys.argv[2])
