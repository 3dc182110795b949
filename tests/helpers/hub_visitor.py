"""
Someone who has transformers and the name of a repository, but neither this package nor a token. `test_hub.py` runs it
in a process of its own: `python hub_visitor.py VISITS OUT`, where VISITS is a JSON list of what to open.
"""

import json
import sys

from outsider import NotInstalled, first_tensor


def visit(repo: str, auto_class: str, revision: str | None, ids: list[list[int]]) -> dict:
    """What a repository's model says to some tokens, and where its code came from."""
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
    torch.save([visit(**one) for one in visits], sys.argv[2])
