"""
Measure a model folder as the speedrun does: the loss on held-out text, by plain transformers alone.

    python training/benchmarks/speedrun/measure.py MODEL causal training/data/text/validation.jsonl.gz
    python training/benchmarks/speedrun/measure.py MODEL masked training/data/text/validation.jsonl.gz

Prints JSON. A model that must not be measured ends the program with the reason. It imports nothing of this repository:
`run.py` runs it in a clean process.
"""

import argparse
import gzip
import itertools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


# Causal: a token is predicted from up to WINDOW tokens of its document, at least WINDOW - STRIDE of a long one.
WINDOW, STRIDE = 512, 256
# Masked: pieces of a document between [CLS] and [SEP], ROW tokens together, with MASKED_SHARE of the text masked.
ROW, MASKED_SHARE = 128, 0.15
MASKED_TOKENIZER = Path(__file__).parent / "masked_tokenizer"
# Windows in which later tokens are changed, and the change of an earlier log-probability that rounding explains.
CHECKED_WINDOWS, ROUNDING = 8, 1e-3


def read_texts(file: Path, documents: int | None = None) -> list[str]:
    """Return the texts of the first documents in a gzipped file of JSON lines, by default of all."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in itertools.islice(lines, documents)]


def load(folder: Path, kind: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model in fp32 and its tokenizer; of a masked LM the tokenizer that all entries share."""
    auto = {"causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM}[kind]
    own_classes = dict(trust_remote_code=False, local_files_only=True)
    try:
        model = auto.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, **own_classes)
        tokenizer = AutoTokenizer.from_pretrained(folder if kind == "causal" else MASKED_TOKENIZER, **own_classes)
    except Exception as error:  # damaged folders raise errors of many libraries; each is a reason to refuse
        sys.exit(f"does not load with {auto.__name__} and no remote code: {' '.join(str(error).split())[:300]}")
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        sys.exit(f"has fewer embeddings than the tokenizer has tokens, {len(tokenizer)}")
    return model.eval(), tokenizer


@torch.inference_mode()
def log_probabilities(model: PreTrainedModel, ids: np.ndarray) -> torch.Tensor:
    """Return the log-probabilities of the vocabulary at each place of one row, `(tokens, vocabulary)`."""
    return model(input_ids=torch.from_numpy(ids)[None]).logits[0].float().log_softmax(-1)


def windows(length: int, window: int) -> Iterator[tuple[int, int, int]]:
    """Yield `(start, first, end)`: the row `start` to `end - 2` predicts the tokens `first` to `end - 1`."""
    first, end = 1, min(window + 1, length)
    while first < end:
        yield max(0, end - 1 - window), first, end
        first, end = end, min(end + min(STRIDE, window), length)


def check_causality(model: PreTrainedModel, row: np.ndarray, generator: np.random.Generator) -> None:
    """Refuse a model whose predictions change when later tokens of the row are replaced by random ones."""
    cut = int(generator.integers(1, len(row) + 1))
    other = row.copy()
    other[cut:] = generator.permutation(row)[cut:]
    change = (log_probabilities(model, row)[:cut] - log_probabilities(model, other)[:cut]).abs().max()
    if change > ROUNDING:
        sys.exit(f"sees the future: other tokens from place {cut} on change earlier log-probabilities by {change:.3g}")


def causal_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> dict[str, float]:
    """
    Return bits per byte of the texts; each is a document, begun with the tokenizer's begin (or else end) token.

    The bytes are those of the text, and the bits those of its tokens alone. Tokens that do not decode to the text are
    refused, because a tokenizer that loses bytes would have less to predict.
    """
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if begin is None:
        sys.exit("its tokenizer has no begin or end token to predict the first token from")
    window = min(WINDOW, getattr(model.config, "max_position_embeddings", WINDOW))
    documents = []
    for number, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        if tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) != text:
            sys.exit(f"its tokenizer loses bytes: document {number} decodes to another text")
        documents.append(np.array([begin, *ids]))
    # Rows, the places in them that predict, and the tokens there.
    rows = [
        (ids[start : end - 1], slice(first - 1 - start, None), torch.from_numpy(ids[first:end, None]))
        for ids in documents
        for start, first, end in windows(len(ids), window)
    ]
    generator = np.random.default_rng(0)
    for number in generator.choice(len(rows), size=min(CHECKED_WINDOWS, len(rows)), replace=False):
        check_causality(model, rows[number][0], generator)
    nats = 0.0
    for row, places, targets in rows:
        nats -= log_probabilities(model, row)[places].gather(1, targets).double().sum().item()
    num_bytes = sum(len(text.encode()) for text in texts)
    tokens = sum(map(len, documents)) - len(documents)
    return {"loss": nats / num_bytes / math.log(2), "tokens": tokens, "bytes": num_bytes}


def masked_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> dict[str, float]:
    """Return the nats per masked token. The masks depend on nothing but the texts, so all entries get the same."""
    generator, nats, count = np.random.default_rng(0), 0.0, 0
    for text in texts:
        ids = np.array(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        for start in range(0, len(ids), ROW - 2):
            row = np.array([tokenizer.cls_token_id, *ids[start : start + ROW - 2], tokenizer.sep_token_id])
            places = 1 + np.flatnonzero(generator.random(len(row) - 2) < MASKED_SHARE)
            masked = row.copy()
            masked[places] = tokenizer.mask_token_id
            nats -= log_probabilities(model, masked)[places, row[places]].double().sum().item()
            count += len(places)
    return {"loss": nats / count, "tokens": count}


def measure(folder: Path, kind: str, texts: list[str]) -> dict[str, float]:
    """Return loss, predicted tokens and parameters of a model folder."""
    model, tokenizer = load(folder, kind)
    result = {"causal": causal_loss, "masked": masked_loss}[kind](model, tokenizer, texts)
    if not math.isfinite(result["loss"]):
        sys.exit(f"its loss is {result['loss']}")
    return {**result, "parameters": model.num_parameters()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder that transformers' Auto classes load")
    parser.add_argument("kind", choices=("causal", "masked"))
    parser.add_argument("text", type=Path, help="gzipped JSON lines with a field text")
    parser.add_argument("--documents", type=int, help="measure the first documents only")
    parser.add_argument("--result", type=Path, help="file for the JSON, by default standard output")
    args = parser.parse_args(argv)
    result = json.dumps(measure(args.model, args.kind, read_texts(args.text, args.documents)))
    print(result) if args.result is None else args.result.write_text(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
