"""One word in many contexts: its static embedding compared with its contextual vectors."""

import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.cluster import AgglomerativeClustering
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score
from sklearn.metrics.pairwise import cosine_distances, cosine_similarity
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...core.errors import InputError
from ...core.inference import unwrap_adapter
from ...core.limits import longest_input
from ...data.sources import read_documents
from ...data.text import is_unspaced, split_sentences
from .architecture import save_figure, spread


_MAX_CONTEXT = 200  # characters of a sentence on each side of the word
_APOSTROPHES = str.maketrans("’ʼ‘", "'''")
_MIN_SEPARATION = 0.05  # of cosine distances within and between groups
_MAX_DOCUMENTS = 100_000


class Context(NamedTuple):
    """A sentence and the position of the word in it, in characters."""

    sentence: str
    start: int
    end: int

    def halves(self, around: int) -> tuple[str, str]:
        """Return at most `around` characters before the word, and the word in brackets with as many after it."""
        left, right = self.sentence[: self.start], self.sentence[self.end :]
        left = left if len(left) <= around else "…" + left[-around:]
        right = right if len(right) <= around else right[:around] + "…"
        return left, f"[{self.sentence[self.start : self.end]}]{right}"


@dataclass(frozen=True)
class WordSenses:
    """
    Vectors of a word in its contexts.

    The mean over all tokens of the sentences is subtracted from the vectors, because in most models all vectors share a
    large common direction (Mu & Viswanath 2018, https://huggingface.co/papers/1702.01417).

    Attributes:
        contexts: sentences with the word.
        layer: the block whose outputs are compared; 0 is the input of the first block.
        static: mean embedding of the word's tokens (contexts, hidden); equal wherever the word has the same tokens.
        contextual: mean hidden state of the word's tokens after the layer (contexts, hidden).
        self_similarity: for each layer the mean cosine of the word in two contexts, and of two other tokens of these
            sentences, without subtracting the mean (Ethayarajh 2019, https://huggingface.co/papers/1909.00512).
        groups: number of each context's group; 0 is the largest group.
        neighbours: tokens with the nearest static embeddings, with cosine and vector.
    """

    word: str
    contexts: list[Context]
    layer: int
    static: np.ndarray
    contextual: np.ndarray
    self_similarity: list[tuple[float, float]]
    groups: list[int]
    neighbours: list[tuple[str, float, np.ndarray]]

    @property
    def cosines(self) -> np.ndarray:
        """Cosines of the word's vectors in every two contexts (contexts, contexts)."""
        return cosine_similarity(self.contextual)

    def forms(self) -> list[tuple[str, list[int]]]:
        """Return the spelling of the word for each static vector, and the numbers of its contexts."""
        numbers: dict[bytes, list[int]] = {}
        for number, vector in enumerate(self.static):
            numbers.setdefault(vector.round(5).tobytes(), []).append(number)
        forms: list[tuple[str, list[int]]] = []
        for several in numbers.values():
            sentence, start, end = self.contexts[several[0]]
            # To many tokenizers the same letters are other tokens at the start of a text than behind a blank.
            name = sentence[start:end]
            if any(name == other for other, _ in forms):
                name = sentence[start - 1 : end] if start else f"{name} (at the start)"
            forms.append((name, several))
        return forms

    def nearest(self) -> list[int]:
        """Return for each context the number of the other context with the most similar vector."""
        return (self.cosines - 3 * np.eye(len(self.contexts))).argmax(1).tolist()


def find_contexts(documents: Iterable[str], word: str, most: int = 24) -> list[Context]:
    """
    Return different sentences that contain a word, spread over the documents.

    Case, the shape of apostrophes and the encoding of accents are ignored. In scripts without spaces the word may be
    part of another one.

    Args:
        most: maximum number of sentences.

    Raises:
        InputError: there are fewer than two.
    """
    if not word.strip():
        raise InputError("the word to look for is empty")
    pattern = re.compile(re.escape(_folded(word.strip())), re.IGNORECASE)
    contexts: dict[str, Context] = {}
    for number, document in enumerate(documents):
        if number == _MAX_DOCUMENTS or len(contexts) >= 10 * most:
            break
        document = unicodedata.normalize("NFC", document)
        for sentence in split_sentences(document, r"\n\s*\n") if pattern.search(_folded(document)) else ():
            sentence = " ".join(sentence.split())
            places = pattern.finditer(_folded(sentence))
            if (place := next((place for place in places if _is_word(sentence, *place.span())), None)) is None:
                continue
            first = max(0, place.start() - _MAX_CONTEXT)
            first = first and sentence.find(" ", first, place.start()) + 1 or first
            cut = sentence[first : place.end() + _MAX_CONTEXT]
            contexts.setdefault(cut, Context(cut, place.start() - first, place.end() - first))
    if len(contexts) < 2:
        raise InputError(f"{word!r} is in {len(contexts)} of the sentences read; give a text with more of them")
    candidates = list(contexts.values())
    return [candidates[number] for number in spread(len(candidates), most)]


def _folded(text: str) -> str:
    """Return the text in its normal form with straight apostrophes, without changing the number of characters."""
    return unicodedata.normalize("NFC", text).translate(_APOSTROPHES)


def _is_word(sentence: str, start: int, end: int) -> bool:
    """Whether the characters are a whole word rather than a part of one."""
    before, after = sentence[max(0, start - 1) : start + 1], sentence[end - 1 : end + 1]
    return not (len(before) == 2 and _joined(*before)) and not (len(after) == 2 and _joined(*after))


def _joined(left: str, right: str) -> bool:
    """Whether two adjacent characters belong to one word: letters, digits and combining marks."""
    kinds = unicodedata.category(left)[0], unicodedata.category(right)[0]
    if kinds[1] == "M":
        return True
    return kinds[0] in "LMN" and kinds[1] in "LN" and not is_unspaced(left) and not is_unspaced(right)


@torch.inference_mode()
def find_senses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    word: str,
    contexts: Sequence[Context],
    layer: int | None = None,
) -> WordSenses:
    """
    Compute the vectors of a word in its contexts, and its eight nearest static neighbours.

    Args:
        layer: block whose outputs are compared; by default the last.

    Raises:
        InputError: the model has no such layer or is an encoder-decoder, its tokenizer gives no offsets or no token for
            the word, or the word alone exceeds the model's maximum length.
    """
    plain = unwrap_adapter(model)
    if not tokenizer.is_fast or plain.config.is_encoder_decoder:
        raise InputError("senses are shown for one encoder or decoder with a fast tokenizer (tokenizer.json)")
    table = plain.get_input_embeddings().weight.detach().float()
    words: list[torch.Tensor] = []  # (layers, hidden) of the word in each context
    others: list[torch.Tensor] = []  # (layers, tokens, hidden) of the sentences
    rest: list[torch.Tensor] = []  # the same without the word
    static, ids_seen, own_ids = [], [], set()
    longest = min(tokenizer.model_max_length, longest_input(plain.config))
    for context in contexts:
        context, inputs = _fitting(context, tokenizer, longest)
        spans = inputs.pop("offset_mapping")[0].tolist()
        columns = [n for n, (a, b) in enumerate(spans) if a < context.end and b > context.start]
        if not columns:
            raise InputError(f"{word!r}: this tokenizer has no token for it")
        real = [n for n, (a, b) in enumerate(spans) if b > a]
        ids = inputs["input_ids"][0]
        states = plain.base_model(**inputs.to(plain.device), output_hidden_states=True).hidden_states
        states = torch.stack([state[0].float().cpu() for state in states])
        words.append(states[:, columns].mean(1))
        others.append(states[:, real])
        rest.append(states[:, [n for n in real if n not in columns]])
        static.append(table[ids[columns]].mean(0))
        own_ids |= set(ids[columns].tolist())
        ids_seen.append(ids[real])
    blocks = len(words[0]) - 1
    layer = blocks if layer is None else layer
    if not 0 <= layer <= blocks:
        raise InputError(f"layer {layer}: the model has {blocks}; 0 is the input of the first")
    all_states = torch.cat(others, 1)
    centre = all_states.mean(1)
    as_they_are, other_states = torch.stack(words), torch.cat(rest, 1)
    centred = as_they_are - centre
    sample = spread(other_states.shape[1], 400)
    self_similarity = [
        (_mean_of_pairs(as_they_are[:, number]), _mean_of_pairs(other_states[number, sample]))
        for number in range(blocks + 1)
    ]
    own, common = torch.stack(static), table[torch.cat(ids_seen)].mean(0)
    cosines = F.cosine_similarity(table - common, own.mean(0) - common)
    near: dict[str, tuple[str, float, np.ndarray]] = {}  # each text once, however it is written
    for token in cosines.topk(min(32, len(cosines))).indices.tolist():
        text = tokenizer.decode([token]).strip() if token < len(tokenizer) else ""
        if text and text.casefold() != word.casefold() and token not in own_ids | set(tokenizer.all_special_ids):
            near.setdefault(text.casefold(), (text, float(cosines[token]), (table[token] - common).numpy()))
    contextual, nearest = centred[:, layer].numpy(), list(near.values())[:8]
    return WordSenses(
        word, list(contexts), layer, (own - common).numpy(), contextual, self_similarity, _groups(contextual), nearest
    )


def _fitting(context: Context, tokenizer: PreTrainedTokenizerBase, longest: int) -> tuple[Context, Any]:
    """Return a context, cut around its word to at most `longest` tokens, and its inputs with offsets."""
    around = max(context.start, len(context.sentence) - context.end)
    while True:
        inputs = tokenizer(context.sentence, return_tensors="pt", return_offsets_mapping=True, verbose=False)
        if inputs["input_ids"].shape[1] <= longest:
            return context, inputs
        if not around:
            raise InputError(f"{context.sentence!r} alone is longer than the {longest} tokens that the model reads")
        around //= 2
        first = max(0, context.start - around)
        cut = context.sentence[first : context.end + around]
        context = Context(cut, context.start - first, context.end - first)


def read_senses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, word: str, source: str, layer: int | None = None
) -> WordSenses:
    """Compute the vectors of a word in a file of texts, of any format that training reads."""
    return find_senses(model, tokenizer, word, find_contexts(read_documents(source), word), layer)


def _mean_of_pairs(vectors: torch.Tensor) -> float:
    if (number := len(vectors)) < 2:
        return float("nan")
    cosines = cosine_similarity(vectors.numpy())
    return float((cosines.sum() - np.trace(cosines)) / (number * (number - 1)))


def _groups(vectors: np.ndarray, most: int = 5) -> list[int]:
    """
    Cluster vectors by average cosine into the number of groups with the best silhouette (Rousseeuw 1987).

    There is one group if no clustering is good, or if distances between groups hardly exceed those within them.
    """
    distances = cosine_distances(vectors)
    best, labels = 0.05, np.zeros(len(vectors), int)
    for number in range(2, min(most, len(vectors) - 1) + 1):
        tried = AgglomerativeClustering(number, metric="precomputed", linkage="average").fit_predict(distances)
        same = tried[:, None] == tried[None]
        apart = distances[~same].mean() - distances[same & ~np.eye(len(tried), dtype=bool)].mean()
        if apart > _MIN_SEPARATION and (score := silhouette_score(distances, tried, metric="precomputed")) > best:
            best, labels = score, tried
    order = np.argsort(-np.bincount(labels), kind="stable").tolist()
    return [order.index(label) for label in labels]


def senses_as_text(senses: WordSenses) -> str:
    """Return the comparison as text for a terminal."""
    forms, mean = len(senses.forms()), _mean_of_pairs(torch.from_numpy(senses.contextual))
    near = ", ".join(f"{text} {cosine:.2f}" for text, cosine, _ in senses.neighbours)
    static = "one vector in all contexts" if forms == 1 else f"{forms} vectors, one for each way it is written"
    lines = [
        f"{senses.word}: {len(senses.contexts)} contexts",
        "",
        f"static embedding   {static}; nearest: {near}",
        f"contextual         behind block {senses.layer}; cosine of two contexts {mean:.2f} on average",
        "",
        "mean cosine        of the word in two contexts, of two other tokens (mean not subtracted)",
        *("  {:16} {:6.2f} {:6.2f}".format(f"block {n}" if n else "embedded", *senses.self_similarity[n])
          for n in spread(len(senses.self_similarity), 10)),
        "",
        "context  group  nearest",
    ]  # fmt: skip
    cosines, nearest = senses.cosines, senses.nearest()
    for number, context in sorted(enumerate(senses.contexts), key=lambda pair: (senses.groups[pair[0]], pair[0])):
        near = nearest[number]
        left, right = context.halves(38)
        group = "ABCDE"[senses.groups[number]]
        lines.append(f"{number + 1:7}  {group:>5}  {near + 1:4} {cosines[number, near]:5.2f}  {left:>39}{right}")
    return "\n".join(lines)


def draw_senses(senses: WordSenses, path: Path) -> None:
    """Draw the static embedding with its neighbours, and the contextual vectors, by their principal components."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = [f"tab:{name}" for name in ("blue", "orange", "green", "red", "purple")]
    count = len(senses.contexts)
    figure, axes = plt.subplots(
        2, 2, figsize=(12, 5.4 + 0.2 * count), layout="constrained", height_ratios=[5, 0.3 + 0.19 * count]
    )
    left, right = axes[0]
    points = PCA(2).fit_transform(
        np.concatenate([senses.static, np.stack([vector for *_, vector in senses.neighbours])])
    )
    left.scatter(*points[:count].T, s=160, color="black", zorder=3)
    for form, numbers in senses.forms():
        label = f"{form} ({len(numbers)} contexts)" if len(numbers) > 1 else form
        left.annotate(label, points[numbers[0]], (9, 7), textcoords="offset points", weight="bold", parse_math=False)
    left.scatter(*points[count:].T, s=24, color="silver")
    for number, ((text, *_), point) in enumerate(zip(senses.neighbours, points[count:])):
        place = (6, 4 if number % 2 else -11)  # near ones on two lines
        left.annotate(text, point, place, textcoords="offset points", fontsize=9, color="dimgray", parse_math=False)
    left.set_title("static: the embedding, and those nearest to it")
    points = PCA(2).fit_transform(senses.contextual)
    for number, (point, group) in enumerate(zip(points, senses.groups), 1):
        right.scatter(*point, s=190, color=colours[group], alpha=0.75)
        right.annotate(str(number), point, ha="center", va="center", fontsize=7, color="white", weight="bold")
    right.set_title(f"contextual: behind block {senses.layer}")
    for panel in (left, right):
        panel.set_xticks([])
        panel.set_yticks([])
        panel.margins(0.2)
    listing = figure.add_subplot(axes[1, 0].get_gridspec()[1, :])
    for panel in (*axes[1], listing):
        panel.axis("off")
    order = sorted(range(count), key=lambda number: (senses.groups[number], number))
    for row, number in enumerate(order):
        halves = senses.contexts[number].halves(62)
        style: dict[str, Any] = dict(color=colours[senses.groups[number]], fontsize=8.5, va="center", parse_math=False)
        for x, side, text in ((0.02, "right", f"{number + 1}"), (0.48, "right", halves[0]), (0.48, "left", halves[1])):
            listing.text(x, 1.0 - (row + 0.5) / count, text, ha=side, transform=listing.transAxes, **style)
    with warnings.catch_warnings():  # fonts without the script's characters draw boxes, once is known well enough
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        save_figure(figure, path)


def senses_file(word: str) -> str:
    """Return the file name of a word's picture."""
    name = re.sub(r"[^\w-]+", "_", word.strip())
    return f"senses_{name}.png"
