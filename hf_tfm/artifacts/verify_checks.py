"""
The promises of a saved model as checks.

Each check is a function from a `Subject` to a sentence with its result. It raises `Broken` if the model breaks the
promise, and `NotApplicable` if the promise does not concern the model. [`verify`] runs them all.
"""

import copy
import inspect
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import EncoderDecoderModel, PreTrainedModel

from ..core.clean_process import DoesNotLoad, outputs_for_a_stranger
from ..models.configuration_tfm import TfmConfig
from ..models.modeling_tfm_compat import CACHE_NAME
from .compare import outputs_of
from .open import open_model, recorded
from .packing_support import PackedRows, is_loss_token_sum
from .tokenizer_files import save_tokenizer
from .verify_subject import Broken, NotApplicable, Subject, largest_difference


def check_loading(subject: Subject) -> str:
    """Every weight comes from the checkpoint and is finite, and every buffer equals that of a new model."""
    model = subject.model
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise Broken(f"{name} contains values that are not finite")
    fresh = type(model)(copy.deepcopy(model.config))
    saved = model.state_dict().keys()
    for name, buffer in fresh.named_buffers():
        if name not in saved and not torch.equal(buffer, model.get_buffer(name)):
            raise Broken(f"the buffer {name} does not match the configuration: loading did not initialize it")
    return f"{sum(p.numel() for p in model.parameters()):,} weights, all from the checkpoint"


def check_saving(subject: Subject) -> str:
    """Saving and loading reproduce weights and outputs bit for bit."""
    inputs = subject.inputs(subject.ids(2, 12))
    with tempfile.TemporaryDirectory() as folder:
        subject.model.save_pretrained(folder)
        save_tokenizer(subject.tokenizer, folder)
        reloaded, _ = open_model(folder, subject.auto_class, trust_remote_code=subject.trust_remote_code)
    for name, tensor in subject.model.state_dict().items():
        if not torch.equal(reloaded.state_dict()[name], tensor):
            raise Broken(f"{name} differs after saving and loading")
    actual, expected = outputs_of(reloaded, **inputs), outputs_of(subject.model, **inputs)
    if any(not torch.equal(actual[name], expected[name]) for name in expected):
        raise Broken("outputs differ after saving and loading, with equal weights")
    return "weights and outputs bit-equal"


def check_tied_weights(subject: Subject) -> str:
    """Embedding and output projection are one matrix if and only if the configuration ties them."""
    model = subject.model
    model = model.decoder if isinstance(model, EncoderDecoderModel) else model
    output, config = model.get_output_embeddings(), model.config.get_text_config()
    if output is None:
        raise NotApplicable("no output projection")
    tied = output.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    if tied != bool(config.tie_word_embeddings):
        weights = "tied" if tied else "separate"
        raise Broken(f"tie_word_embeddings is {config.tie_word_embeddings}, but the weights are {weights}")
    return "tied" if tied else "separate, as configured"


def check_batches(subject: Subject) -> str:
    """A row has the same outputs alone and in a batch."""
    ids = subject.ids(4, 12)
    together = outputs_of(subject.model, **subject.inputs(ids))
    largest = 0.0
    for row in range(len(ids)):
        alone = outputs_of(subject.model, **subject.inputs(ids[row : row + 1]))
        expected = {name: value[row : row + 1] for name, value in together.items()}
        largest = max(largest, largest_difference(alone, expected, "between a row alone and in a batch of 4"))
    return f"largest difference {largest:.0e}"


def check_padding(subject: Subject) -> str:
    """A row has the same outputs with padding on the right; models of this package also with padding on the left."""
    ids, pad = subject.ids(2, 9), 5
    filler = subject.model.config.get_text_config().pad_token_id
    filler = (filler if filler is not None else 0) or 0
    plain, largest = outputs_of(subject.model, **subject.inputs(ids)), 0.0
    sides = ["right", *(["left"] if isinstance(subject.model.config, TfmConfig) or subject.head == "CausalLM" else [])]
    for side in sides:
        amount = (0, pad) if side == "right" else (pad, 0)
        padded = nn.functional.pad(ids, amount, value=filler)
        mask = nn.functional.pad(torch.ones_like(ids), amount)
        inputs = subject.inputs(ids) | {"input_ids": padded, "attention_mask": mask}
        if side == "left" and not isinstance(subject.model.config, TfmConfig):
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)  # as `generate` does
        actual = outputs_of(subject.model, **inputs)
        if subject.has_token_outputs:
            columns = slice(0, 9) if side == "right" else slice(pad, None)
            rows = ("pooler_output", "seq_relationship_logits")
            actual = {name: value if name in rows else value[:, columns] for name, value in actual.items()}
        largest = max(largest, largest_difference(actual, plain, f"with padding on the {side}"))
    return f"{' and '.join(sides)}; largest difference {largest:.0e}"


def check_cache(subject: Subject) -> str:
    """One token at a time with the cache gives the logits of one forward pass."""
    if subject.head != "CausalLM":
        raise NotApplicable("only causal LMs have a cache")
    ids = subject.ids(2, 12)
    whole, cache, parts = outputs_of(subject.model, input_ids=ids)["logits"], None, []
    with torch.no_grad():
        for piece in (ids[:, :5], *torch.split(ids[:, 5:], 1, dim=1)):
            outputs = subject.model(input_ids=piece, use_cache=True, **{CACHE_NAME: cache})
            cache = outputs[CACHE_NAME]
            parts.append(outputs.logits)
    largest = largest_difference(
        {"logits": torch.cat(parts, dim=1)}, {"logits": whole}, "between one pass and the cache"
    )
    return f"largest difference {largest:.0e}"


def _prompts(subject: Subject, rows: int, length: int) -> torch.Tensor:
    if subject.head not in ("CausalLM", "Seq2SeqLM"):
        raise NotApplicable("this head does not generate text")
    return subject.ids(rows, length)


def _generated(subject: Subject, ids: torch.Tensor, mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
    """Return 8 new tokens `(rows, 8)` for prompts `(rows, length)`, by greedy decoding unless `options` differ."""
    options = {"do_sample": False, "num_beams": 1, "max_new_tokens": 8, "min_new_tokens": 8, **options}
    pad = subject.model.generation_config.pad_token_id
    mask = torch.ones_like(ids) if mask is None else mask
    text: torch.Tensor = subject.model.generate(
        ids, attention_mask=mask, pad_token_id=0 if pad is None else pad, **options
    )
    return text[:, -8:]


def _generated_if_supported(subject: Subject, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    """Call `_generated`; architectures of others may refuse a decoding method with transformers' ValueError."""
    try:
        return _generated(subject, ids, **options)
    except ValueError as error:
        if isinstance(subject.model.config, TfmConfig):
            raise
        raise NotApplicable(str(error).splitlines()[0]) from None


def _require_same_text(actual: torch.Tensor, expected: torch.Tensor, situation: str) -> None:
    if not torch.equal(actual, expected):
        first = int((actual != expected).any(0).nonzero()[0]) + 1
        raise Broken(f"the text differs from new token {first} on {situation}")


def check_greedy(subject: Subject) -> str:
    """Greedy decoding gives the same text with and without the cache."""
    ids = _prompts(subject, 2, 5)
    _require_same_text(
        _generated(subject, ids), _generated(subject, ids, use_cache=False), "between cache and no cache"
    )
    return "same text with and without the cache"


def check_beams(subject: Subject) -> str:
    """Beam search, which reorders the rows of the cache, gives the same text with and without it."""
    ids = _prompts(subject, 2, 5)
    cached, plain = (_generated(subject, ids, num_beams=3, use_cache=cached) for cached in (True, False))
    _require_same_text(cached, plain, "between cache and no cache")
    return "same text of 3 beams with and without the cache"


def check_static_cache(subject: Subject) -> str:
    """A static cache gives the same text as a dynamic one."""
    ids = _prompts(subject, 2, 5)
    expected = _generated(subject, ids)
    actual = _generated_if_supported(subject, ids, cache_implementation="static", disable_compile=True)
    _require_same_text(actual, expected, "between a static and a dynamic cache")
    return "same text as with a dynamic cache"


def check_batched_generation(subject: Subject) -> str:
    """Prompts of different lengths give the same text in a padded batch and one by one."""
    ids, lengths = _prompts(subject, 3, 9), (9, 4, 6)
    side = "right" if subject.model.config.is_encoder_decoder else "left"
    places = torch.arange(9) if side == "right" else torch.arange(9).flip(0)
    mask = (places < torch.tensor(lengths)[:, None]).long()
    together = _generated(subject, ids * mask, mask)
    alone = torch.cat([_generated(subject, row[real.bool()][None]) for row, real in zip(ids, mask, strict=True)])
    _require_same_text(together, alone, "between prompts in a batch and alone")
    return f"same text for 3 prompts in a batch, padded on the {side}, and alone"


def check_assisted(subject: Subject) -> str:
    """Assisted generation, with the model itself or the prompt as the assistant, gives the greedy text."""
    ids = _prompts(subject, 1, 5)
    # The model guesses right. The prompt repeats itself before random tokens, so its guesses are wrong.
    guesses = {"guesses of the model itself": {"assistant_model": subject.copy()}}
    if not subject.model.config.is_encoder_decoder:
        guesses["guesses from the prompt"] = {"prompt_lookup_num_tokens": 3}
        ids = torch.cat([ids, subject.ids(1, 4, seed=1), ids], dim=1)
    expected = _generated(subject, ids)
    for name, options in guesses.items():
        _require_same_text(_generated_if_supported(subject, ids, **options), expected, f"with {name}")
    return f"same text with {' and '.join(guesses)}"


def reference_outputs(model: PreTrainedModel, input_ids: list[int]) -> dict[str, list[int]]:
    """
    Return integers that identify a model in fp32 and that rounding does not change.

    They are 24 greedy tokens if the model generates, else the position of the largest value in each row of outputs.
    """
    ids = torch.tensor([input_ids])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        if model.can_generate():
            settings = {"do_sample": False, "num_beams": 1, "max_new_tokens": 24, "min_new_tokens": 24}
            pad = model.generation_config.pad_token_id or 0
            return {"tokens": model.generate(**inputs, **settings, pad_token_id=pad)[0, -24:].tolist()}
        outputs = model(**inputs)
    return {name: value.argmax(-1).flatten().tolist() for name, value in outputs.items() if torch.is_tensor(value)}


def check_reference(subject: Subject) -> str:
    """The model reproduces the reference outputs in its run record."""
    reference = recorded(subject.path, "reference")
    if reference is None:
        raise NotApplicable("no reference in the run record; `hf-tfm refresh` writes one for folders of this package")
    outputs = reference_outputs(subject.model, reference["input_ids"])
    if outputs != reference["outputs"]:
        raise Broken(f"outputs are {outputs}, but {reference['outputs']} are recorded")
    return f"{sum(map(len, outputs.values()))} recorded values"


def check_packing(subject: Subject) -> str:
    """Documents packed into one row, as in pretraining, do not attend to each other."""
    if subject.model.config.is_encoder_decoder or not subject.has_token_outputs:
        raise NotApplicable(
            "a model without outputs for tokens, or with encoder and decoder, does not read packed documents"
        )
    model = subject.copy()
    model.config.use_cache = False  # with a cache, transformers' models attend across documents
    packing = PackedRows.of(model)
    if not packing.supports_packing:
        raise NotApplicable("this architecture cannot separate packed documents")
    first, second = subject.ids(1, 7, seed=1), subject.ids(1, 9, seed=2)
    positions = torch.cat([torch.arange(7), torch.arange(9)]).unsqueeze(0)
    inputs = packing.fit({"input_ids": torch.cat([first, second], dim=1), "position_ids": positions})
    rows = ("pooler_output", "seq_relationship_logits", "sop_logits")
    packed = {name: value for name, value in outputs_of(model, **inputs).items() if name not in rows}
    largest = 0.0
    for ids, columns in ((first, slice(0, 7)), (second, slice(7, 16))):
        alone = outputs_of(model, input_ids=ids)
        actual = {name: value[:, columns] for name, value in packed.items()}
        expected = {name: alone[name] for name in actual}
        largest = max(largest, largest_difference(actual, expected, "between a document alone and packed"))
    return f"largest difference {largest:.0e}"


def _gradients(model: PreTrainedModel, batches: list[dict[str, Any]], shares: list[float]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    for batch, share in zip(batches, shares, strict=True):
        (model(**batch).loss * share).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_accumulation(subject: Subject) -> str:
    """Four rows in one batch and in four accumulation steps give the same gradient, with unequal label counts."""
    ids = subject.ids(4, 12)
    labels, model = subject.labels(ids), subject.copy().eval()
    parameters = inspect.signature(model.forward).parameters.values()
    if not any(p.name == "num_items_in_batch" or p.kind == p.VAR_KEYWORD for p in parameters):
        raise NotApplicable("its loss takes no num_items_in_batch")
    if subject.head == "QuestionAnswering":
        raise NotApplicable("its loss is a mean over rows, which Trainer divides by the number of steps")
    if isinstance(model, EncoderDecoderModel):
        raise NotApplicable("its loss is a mean over the batch; the translation script has its own loss")
    is_token_sum = isinstance(model.config, TfmConfig) or is_loss_token_sum(model, {"input_ids": ids, **labels})
    if not is_token_sum and subject.head not in ("CausalLM", "MaskedLM"):
        raise NotApplicable("its loss is a mean over the batch, which this package's scripts weight or replace")

    def count(labels: torch.Tensor) -> torch.Tensor:
        shifted = labels[..., 1:] if subject.head == "CausalLM" else labels
        return (shifted != -100).sum() if not shifted.is_floating_point() else torch.tensor(shifted.shape[0])

    whole = {"input_ids": ids, **labels, "num_items_in_batch": count(labels["labels"])}
    rows = [{n: v[i : i + 1] if v.ndim else v for n, v in whole.items()} for i in range(4)]
    # The pretraining scripts weight a mean over the batch by its share of the labels.
    shares = [1.0 if is_token_sum else float(count(row["labels"]) / whole["num_items_in_batch"]) for row in rows]
    expected, actual = _gradients(model, [whole], [1.0]), _gradients(model, rows, shares)
    size = max(value.abs().max().item() for value in expected.values())
    largest = max((expected[name] - actual[name]).abs().max().item() for name in expected)
    if not largest <= 1e-4 * max(size, 1e-6):
        raise Broken(f"gradients differ by {largest / size:.0%} of the largest between one batch and four")
    return f"largest difference {largest:.0e} of {size:.0e}"


def check_gradients(subject: Subject) -> str:
    """Every weight receives a gradient."""
    model, ids = subject.copy().train(), subject.ids(4, 12)
    inputs = subject.inputs(ids, **subject.labels(ids))
    if getattr(model.config, "type_vocab_size", 0):
        inputs["token_type_ids"] = torch.randint_like(ids, model.config.type_vocab_size)
    model.zero_grad()
    model(**inputs).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    without = [name for name, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0]
    # The gradient of a bias that only shifts a softmax (of keys, of positions) is zero; that of its weight is not.
    shifting = {f"{name.removesuffix('weight')}bias" for name in trained.keys() - set(without)}
    without = [name for name in without if name not in shifting]
    # Native models may have a pooler that no head reads.
    without = [name for name in without if ".pooler." not in f".{name}" or model.config.model_type.startswith("tfm")]
    if without:
        others = f" and {len(without) - 1} more" if without[1:] else ""
        raise Broken(f"no gradient reaches {without[0]}{others}")
    return f"all {len(trained)} tensors"


def check_bf16(subject: Subject) -> str:
    """Outputs and gradients in bf16 are finite, also in a row that is mostly padding."""
    model, ids = subject.copy().to(torch.bfloat16).eval(), subject.ids(2, 12)
    mask = torch.ones_like(ids)
    mask[0, ..., 2:] = 0
    for name, value in outputs_of(model, **subject.inputs(ids, attention_mask=mask)).items():
        if not value.isfinite().all():
            raise Broken(f"{name} in bf16 are not finite")
    try:
        labels = subject.labels(ids)
    except NotApplicable:
        return "outputs are finite"
    model = subject.copy().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**subject.inputs(ids, attention_mask=mask, **labels)).loss
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            raise Broken(f"the gradient of {name} under bf16 autocast is not finite")
    return "outputs and gradients are finite"


def check_lora(subject: Subject) -> str:
    """A merged adapter gives the outputs of the unmerged one."""
    from peft import LoraConfig, get_peft_model

    model = subject.copy()
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    output = model.get_output_embeddings()
    inner = {name.rpartition(".")[2] for name in layers if output is None or model.get_submodule(name) is not output}
    heads = ("classifier", "score", "qa_outputs", "decoder", "lm_head", "seq_relationship")
    targets = sorted(inner - set(heads))
    if not targets:
        raise NotApplicable("no linear layers to adapt")
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False)).eval()
    inputs = subject.inputs(subject.ids(2, 12))
    unmerged = outputs_of(adapted, **inputs)
    plain = outputs_of(subject.model, **inputs)
    if all(torch.equal(unmerged[name], plain[name]) for name in plain):
        raise Broken("an adapter with random weights changes nothing")
    largest = largest_difference(
        outputs_of(adapted.merge_and_unload(), **inputs), unmerged, "between a merged and an unmerged adapter"
    )
    return f"largest difference {largest:.0e}"


def check_clean_process(subject: Subject) -> str:
    """In a process without this package the model loads with its own code and gives the same outputs."""
    inputs = subject.inputs(subject.ids(2, 12))
    folder = subject.path if Path(subject.path).is_dir() else snapshot_download(subject.path)
    try:
        actual = outputs_for_a_stranger(folder, subject.auto_class, inputs)
    except DoesNotLoad as error:
        raise Broken(f"does not load without this package: {error}") from error
    largest = largest_difference(actual, outputs_of(subject.model, **inputs), "in a clean process")
    return f"largest difference {largest:.0e}"


CHECKS: dict[str, Callable[[Subject], str]] = {
    "loading": check_loading,
    "saving": check_saving,
    "tied weights": check_tied_weights,
    "batches": check_batches,
    "padding": check_padding,
    "cache": check_cache,
    "greedy": check_greedy,
    "beams": check_beams,
    "static cache": check_static_cache,
    "batched generation": check_batched_generation,
    "assisted": check_assisted,
    "reference": check_reference,
    "packing": check_packing,
    "accumulation": check_accumulation,
    "gradients": check_gradients,
    "bf16": check_bf16,
    "LoRA": check_lora,
    "clean process": check_clean_process,
}
