"""Generation: with a cache as without, in batches as alone."""

from collections.abc import Mapping
from typing import Any

import torch

from ..report import Report
from .batches import FEW_LAYERS
from .subject import TrainerSubject, first_trained_place, is_numbers


NEW_TOKENS = 8
PROMPT_TOKENS = 32
_KINDS = ("causal", "seq2seq", "preference", "online")


def check_cache(subject: TrainerSubject, report: Report) -> None:
    """P501, P502: greedy generation of a prompt, with a cache and without, and beside a longer one."""
    if subject.kind not in _KINDS:
        return
    if subject.learns_prompt:
        report.cannot_see("generation: PEFT puts a learned prompt into the cache")
        return
    if not callable(getattr(subject.base, "generate", None)):
        report.cannot_see("generation: the model has no method for it")
        return
    prompts = read_prompts(subject)
    if not prompts:
        report.cannot_see("generation: the rows hold no tokens to begin with")
        return
    subject.trainer.model.eval()
    with subject.few_layers(FEW_LAYERS), torch.no_grad(), subject.trainer.compute_loss_context_manager():
        single = [generate(subject, [prompt]) for prompt in prompts]
        compare_with_cache(subject, prompts[0], single[0], report)
        if len(prompts) > 1 and subject.kind != "seq2seq":
            compare_with_batch(subject, prompts, single, report)


def read_prompts(subject: TrainerSubject) -> list[list[int]]:
    """Returns beginnings of two rows, up to the first trained token or of 16 tokens; the second has half as many."""
    prompts: list[list[int]] = []
    for feature in subject.short_features:
        ids, end = tokens_of(feature)
        length = min(end if end > 3 else 16, PROMPT_TOKENS) // (1 + len(prompts))
        if len(ids) >= 4 and all(len(ids[:length]) != len(prompt) for prompt in prompts):
            prompts.append(ids[:length])
    return prompts[:2]


def tokens_of(feature: Any) -> tuple[list[int], int]:
    """Returns the tokens of a record, without padding, and the place of the first trained one (0 if unknown)."""
    names = ("input_ids", "prompt_ids", "prompt_input_ids")
    ids = next((feature[name] for name in names if isinstance(feature, Mapping) and is_numbers(feature.get(name))), [])
    kept = feature.get("attention_mask") if len(ids) else None
    values = [int(token) for place, token in enumerate(ids) if not is_numbers(kept) or kept[place]]
    return values, first_trained_place(feature) if len(values) == len(ids) else 0


def generate(subject: TrainerSubject, prompts: list[list[int]], **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns new tokens (prompts, length) and their logits (prompts, length, vocabulary), with padding on the left."""
    longest = max(map(len, prompts))
    pad = subject.base.generation_config.pad_token_id
    pad = pad if isinstance(pad, int) else 0
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=subject.device)
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts], device=subject.device)
    outputs = subject.model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_beams=1,
        pad_token_id=pad,
        output_logits=True,
        return_dict_in_generate=True,
        **{"use_cache": True} | without_router_loss(subject.base) | options,
    )
    logits = torch.stack(list(outputs.logits), dim=1).float()
    return outputs.sequences[:, -logits.shape[1] :], logits


def without_router_loss(model: Any) -> dict[str, bool]:
    """Returns options of `generate` for a model whose forward adds a loss of its experts, which no cache fits."""
    return {"output_router_logits": False} if getattr(model.config, "output_router_logits", False) else {}


def difference_of(
    one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]
) -> tuple[float, int]:
    """Returns the largest relative difference of logits as long as the tokens before them are equal, and its step."""
    (tokens, logits), (other_tokens, other_logits) = one, other
    length = min(len(tokens), len(other_tokens))
    same = (tokens[:length] == other_tokens[:length]).int().cumprod(0)
    steps = min(length, int(same.sum()) + 1)
    centred, other_centred = (
        values[:steps] - values[:steps].mean(-1, keepdim=True) for values in (logits, other_logits)
    )
    differences = (centred - other_centred).norm(dim=-1) / other_centred.norm(dim=-1).mean().clamp(min=1e-12)
    return float(differences.max()), int(differences.argmax())


def compare_with_cache(
    subject: TrainerSubject, prompt: list[int], cached: tuple[torch.Tensor, torch.Tensor], report: Report
) -> None:
    """P501: the logits of each step are those of a computation without a cache."""
    plain = generate(subject, [prompt], use_cache=False)
    difference, step = difference_of((cached[0][0], cached[1][0]), (plain[0][0], plain[1][0]))
    if difference > subject.tolerance:
        report.add("P501", f"logits differ by {difference:.0%} of their size", f"new token {step + 1}")


def compare_with_batch(
    subject: TrainerSubject, prompts: list[list[int]], single: list[tuple[torch.Tensor, torch.Tensor]], report: Report
) -> None:
    """P502: the logits of each step are those of the prompt alone."""
    tokens, logits = generate(subject, prompts)
    for number, (alone_tokens, alone_logits) in enumerate(single):
        difference, step = difference_of((tokens[number], logits[number]), (alone_tokens[0], alone_logits[0]))
        if difference > subject.tolerance:
            report.add(
                "P502",
                f"logits differ by {difference:.0%} of their size from those of the prompt alone",
                f"new token {step + 1}",
                level="error" if subject.kind == "online" else None,
            )
            return
