"""Language models to score, and their likelihoods computed row by row, without any code of the evaluation."""

import tiny
import torch
from parity_table import native_model
from tiny import CLS, MASK, SEP

from hf_tfm.data.records import Records
from hf_tfm.tasks.likelihood import LanguageModel


DECODERS = ["qwen3", "gpt2", "vaswani2017", "mixed", "llama"]
ENCODERS = ["default", "bert", "modernbert"]


def native(family: str, head: str):
    return native_model(family, head, vocab_size=tiny.VOCAB_SIZE).eval()


def model_of(name: str):
    """Return one of our decoders or encoders by shape, or a native model by `native/FAMILY`."""
    if name.startswith("native/"):
        family = name.removeprefix("native/")
        return native(family, "MaskedLM" if "bert" in family else "CausalLM")
    if name == "pretraining":
        return tiny.build("TfmEncoderForPreTraining")
    head = "TfmDecoderForCausalLM" if name in DECODERS else "TfmEncoderForMaskedLM"
    return tiny.build(head, name)


def language_model(name: str, tokenizer, **options) -> LanguageModel:
    model = model_of(name)
    return LanguageModel(model, tokenizer, model.can_generate(), **options)


@torch.no_grad()
def log_likelihood(model, ids: list[int], first: int) -> float:
    """Return the log-likelihood (nats) of `ids[first:]` behind `ids[:first]`."""
    logits = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(logits[place - 1, ids[place]].item() for place in range(first, len(ids)))


@torch.no_grad()
def pseudo_log_likelihood(model, ids: list[int]) -> float:
    """Return the sum of each token's log-probability (nats) with this token masked."""
    total = 0.0
    for place, token in enumerate(ids):
        row = torch.tensor([[CLS, *ids, SEP]])
        row[0, place + 1] = MASK
        output = model(input_ids=row)
        logits = output.prediction_logits if "prediction_logits" in output else output.logits
        total += logits[0, place + 1].double().log_softmax(-1)[token].item()
    return total


def as_records(texts_and_labels) -> Records:
    """Return records with `text` and `label`."""
    rows = [{"text": text, "label": label} for text, label in texts_and_labels]
    return Records(rows, [f"file, line {n}" for n in range(len(rows))], "file")
