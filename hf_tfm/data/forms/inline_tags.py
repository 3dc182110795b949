"""Forms of tagging with tags inside running text: the/DT cat/NN."""

import itertools
import re
from collections.abc import Iterator, Sequence

from ..tables import BadRow
from .form import Placed, Reading, lines


# Between a word and its tag in running text, the longest one first: cats###N, the/DT, the_DT, the|DT.
_JOINTS = ("###", "/", "_", "|")
_TAG = re.compile(r"[^\W\d_][^\s\d/]*\d?|[^\w\s]+")
_SAMPLED_LINES = 100


@lines(
    "tags",
    "tagged-text",
    "a sentence a line, whose words have their tags behind a slash (Brown, Penn Treebank), _, | or ###",
    lambda sample: _find_joint(sample) is not None,
    suffixes=(".txt", ".pos", ".tagged"),
    example={"train.txt": "Ann/NNP sang/VBD 1\\/2/CD song/NN ./.\n"},
    gives=[{"tokens": ["Ann", "sang", "1/2", "song", "."], "tags": ["NNP", "VBD", "CD", "NN", "."]}],
)
def read_tagged_text(placed: Iterator[tuple[str, str]], reading: Reading) -> Iterator[Placed]:
    head = list(itertools.islice(placed, _SAMPLED_LINES))
    joint = _find_joint([line for _, line in head]) or "/"
    for place, line in itertools.chain(head, placed):
        if not line.strip():
            continue
        pairs = [_split_word(pair, joint) for pair in line.split()]
        if not all(word and tag for word, tag in pairs):
            bad = next(pair for pair in line.split() if not all(_split_word(pair, joint)))
            yield place, BadRow(f"a word has no tag behind {joint}", f"{bad!r:.40}")
            continue
        words, tags = map(list, zip(*pairs))
        yield place, {"tokens": words, "tags": tags} if reading.labelled else {"tokens": words}


def _split_word(pair: str, joint: str) -> tuple[str, str]:
    """Returns a word and its tag; a joint inside a word may have a backslash, as in the Penn Treebank."""
    word, _, tag = pair.rpartition(joint)
    return word.replace("\\" + joint, joint), tag


def _find_joint(sample: Sequence[str]) -> str | None:
    """What stands between the words of the first lines, but for a few, and their tags; None for other texts."""
    pairs = [pair for line in sample for pair in line.split()]
    if len(pairs) <= sum(bool(line.strip()) for line in sample):
        return None
    for joint in _JOINTS:
        parts = [_split_word(pair, joint) for pair in pairs]
        if sum(bool(word and _TAG.fullmatch(tag)) for word, tag in parts) >= 0.9 * len(parts):
            return joint
    return None
