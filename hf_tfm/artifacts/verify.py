"""
The promises of a saved model, checked: any folder or Hub name, of this package or another.

Each check is one function from a `Subject` to a sentence about what was found; it raises `Broken` where the promise
does not hold, and `NotApplicable` where there is nothing to check. `verify` runs them all.
"""

import copy
import inspect
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from packaging.version import Version
from torch import nn
from transformers import EncoderDecoderModel, PreTrainedModel, PreTrainedTokenizerBase

from ..core.clean_process import DoesNotLoad, outputs_for_a_stranger
from ..core.errors import InputError
from ..core.quiet import quiet
from ..models.configuration_tfm import TfmConfig
from ..models.modeling_tfm_compat import CACHE_NAME
from .compare import outputs_of
from .foreign import PackedRows, loss_adds_up, sentence_label
from .open import ADAPTER_FILE, auto_class_of, open_model, recorded
from .record import versions
from .tokenizer_files import save_tokenizer


TOLERANCE = 1e-4  # of the outputs' size; what another order of sums changes is a hundred times smaller


class Broken(Exception):
    """A promise that does not hold; the message says how far."""


class NotApplicable(Exception):
    """There is nothing to check; the message says why."""


@dataclass
class Subject:
    """What is verified: where it is, and the model as it was opened, in fp32 and in evaluation mode."""

    path: str
    auto_class: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    trust_remote_code: bool

    @property
    def head(self) -> str:
        return self.auto_class.removeprefix("AutoModel").removeprefix("For")

    @property
    def by_token(self) -> bool:
        """Whether outputs are by token, not by row."""
        return self.head in ("", "CausalLM", "MaskedLM", "PreTraining", "TokenClassification", "QuestionAnswering")

    def copy(self) -> PreTrainedModel:
        return copy.deepcopy(self.model)

    def ids(self, rows: int, length: int, seed: int = 0) -> torch.Tensor:
        """Random tokens, none of them special; `(rows, 2, length)` for multiple choice."""
        config = self.model.config.get_text_config()
        special = {i for i in self.tokenizer.all_special_ids if i is not None} | {config.pad_token_id}
        ordinary = torch.tensor([i for i in range(config.vocab_size) if i not in special])
        shape = (rows, 2, length) if self.head == "MultipleChoice" else (rows, length)
        drawn = torch.randint(len(ordinary), shape, generator=torch.Generator().manual_seed(seed))
        return ordinary[drawn]

    def inputs(self, ids: torch.Tensor, **more: Any) -> dict[str, Any]:
        """What the model reads: `ids`, and where it has an encoder and a decoder, the same as the text so far."""
        so_far = {"decoder_input_ids": ids} if self.model.config.is_encoder_decoder else {}
        return {"input_ids": ids, **so_far, **more}

    def labels(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Labels for `ids`, a different number of them in each row where they are by token."""
        rows, length = ids.shape[0], ids.shape[-1]
        draw = torch.Generator().manual_seed(5)
        if self.head in ("CausalLM", "MaskedLM", "PreTraining", "TokenClassification", "Seq2SeqLM"):
            classes = self.model.config.num_labels if self.head == "TokenClassification" else None
            labels = ids if classes is None else torch.randint(classes, ids.shape, generator=draw)
            columns = torch.arange(length).expand(rows, -1)
            labels = labels.masked_fill(columns > length - 1 - torch.arange(rows)[:, None] * 2, -100)
            extra = {}
            if self.head == "PreTraining":
                extra[sentence_label(self.model) or "next_sentence_label"] = torch.randint(2, (rows,), generator=draw)
            return {"labels": labels, **extra}
        if self.head == "QuestionAnswering":
            starts = torch.randint(length, (rows,), generator=draw)
            return {"start_positions": starts, "end_positions": torch.full((rows,), length - 1)}
        if self.head in ("SequenceClassification", "NextSentencePrediction", "MultipleChoice"):
            config = self.model.config
            if self.head == "SequenceClassification" and config.num_labels == 1:
                return {"labels": torch.randn(rows, generator=draw)}
            if getattr(config, "problem_type", None) == "multi_label_classification":
                return {"labels": torch.randint(2, (rows, config.num_labels), generator=draw).float()}
            classes = {"NextSentencePrediction": 2, "MultipleChoice": 2}.get(self.head, config.num_labels)
            return {"labels": torch.randint(classes, (rows,), generator=draw)}
        raise NotApplicable("a model without a head has no loss")


def compare(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], what: str) -> float:
    """The largest difference. Raises `Broken` if it is more than rounding, not a number, or something is not there."""
    if not expected or expected.keys() - found.keys():
        raise Broken(f"there is no {' and no '.join(expected.keys() - found.keys()) or 'output'} to compare {what}")
    worst = 0.0
    for name, reference in expected.items():
        difference = (found[name].float() - reference.float()).abs().max().item()
        size = max(1.0, reference.abs().max().item())
        if not difference <= TOLERANCE * size:
            raise Broken(f"{name} differ by {difference:.1e} {what}")
        worst = max(worst, difference)
    return worst


def check_loading(subject: Subject) -> str:
    """Every weight comes from the checkpoint, is a number, and buffers are what a new model of this shape has."""
    model = subject.model
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise Broken(f"{name} holds values that are not numbers")
    fresh = type(model)(copy.deepcopy(model.config))
    saved = model.state_dict().keys()
    for name, buffer in fresh.named_buffers():
        if name not in saved and not torch.equal(buffer, model.get_buffer(name)):
            raise Broken(f"the buffer {name} is not what its configuration says: it was not set when loading")
    return f"{sum(p.numel() for p in model.parameters()):,} weights, all from the checkpoint"


def check_saving(subject: Subject) -> str:
    """Saved and opened again it is bit for bit the same."""
    inputs = subject.inputs(subject.ids(2, 12))
    with tempfile.TemporaryDirectory() as folder:
        subject.model.save_pretrained(folder)
        save_tokenizer(subject.tokenizer, folder)
        again, _ = open_model(folder, subject.auto_class, trust_remote_code=subject.trust_remote_code)
    for name, tensor in subject.model.state_dict().items():
        if not torch.equal(again.state_dict()[name], tensor):
            raise Broken(f"{name} is another after saving and loading")
    found, expected = outputs_of(again, **inputs), outputs_of(subject.model, **inputs)
    if any(not torch.equal(found[name], expected[name]) for name in expected):
        raise Broken("outputs are others after saving and loading, with the same weights")
    return "weights and outputs bit-equal"


def check_tied_weights(subject: Subject) -> str:
    """What the configuration calls tied is one matrix, also after loading."""
    model = subject.model
    model = model.decoder if isinstance(model, EncoderDecoderModel) else model
    output, config = model.get_output_embeddings(), model.config.get_text_config()
    if output is None:
        raise NotApplicable("no output projection")
    tied = output.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    if tied != bool(config.tie_word_embeddings):
        said = "tied" if config.tie_word_embeddings else "separate"
        raise Broken(f"tie_word_embeddings says {said}, the weights are {'tied' if tied else 'separate'}")
    return "tied" if tied else "separate, as configured"


def check_batches(subject: Subject) -> str:
    """A row gives the same alone and among others."""
    ids = subject.ids(4, 12)
    together = outputs_of(subject.model, **subject.inputs(ids))
    worst = 0.0
    for row in range(len(ids)):
        alone = outputs_of(subject.model, **subject.inputs(ids[row : row + 1]))
        expected = {name: value[row : row + 1] for name, value in together.items()}
        worst = max(worst, compare(alone, expected, "between a row alone and in a batch of 4"))
    return f"largest difference {worst:.0e}"


def check_padding(subject: Subject) -> str:
    """A row gives the same without padding and with it, on the right; for this package's models on the left too."""
    ids, pad = subject.ids(2, 9), 5
    filler = subject.model.config.get_text_config().pad_token_id
    filler = (filler if filler is not None else 0) or 0
    plain, worst = outputs_of(subject.model, **subject.inputs(ids)), 0.0
    sides = ["right", *(["left"] if isinstance(subject.model.config, TfmConfig) or subject.head == "CausalLM" else [])]
    for side in sides:
        amount = (0, pad) if side == "right" else (pad, 0)
        padded = nn.functional.pad(ids, amount, value=filler)
        mask = nn.functional.pad(torch.ones_like(ids), amount)
        inputs = subject.inputs(ids) | {"input_ids": padded, "attention_mask": mask}
        if side == "left" and not isinstance(subject.model.config, TfmConfig):
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)  # as `generate` gives them
        found = outputs_of(subject.model, **inputs)
        if subject.by_token:
            columns = slice(0, 9) if side == "right" else slice(pad, None)
            rows = ("pooler_output", "seq_relationship_logits")
            found = {name: value if name in rows else value[:, columns] for name, value in found.items()}
        worst = max(worst, compare(found, plain, f"with padding on the {side}"))
    return f"{' and '.join(sides)}; largest difference {worst:.0e}"


def check_cache(subject: Subject) -> str:
    """Token after token with the cache gives the logits of one pass."""
    if subject.head != "CausalLM":
        raise NotApplicable("only a causal LM has a cache")
    ids = subject.ids(2, 12)
    whole, cache, parts = outputs_of(subject.model, input_ids=ids)["logits"], None, []
    with torch.no_grad():
        for piece in (ids[:, :5], *ids[:, 5:].split(1, dim=1)):
            outputs = subject.model(input_ids=piece, use_cache=True, **{CACHE_NAME: cache})
            cache = outputs[CACHE_NAME]
            parts.append(outputs.logits)
    worst = compare({"logits": torch.cat(parts, dim=1)}, {"logits": whole}, "between one pass and the cache")
    return f"largest difference {worst:.0e}"


def _prompts(subject: Subject, rows: int, length: int) -> torch.Tensor:
    if subject.head not in ("CausalLM", "Seq2SeqLM"):
        raise NotApplicable("this head does not generate text")
    return subject.ids(rows, length)


def _generated(subject: Subject, ids: torch.Tensor, mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
    """New tokens `(rows, 8)` for prompts `(rows, length)`: greedy, if `options` of `generate` do not say otherwise."""
    options = {"do_sample": False, "num_beams": 1, "max_new_tokens": 8, "min_new_tokens": 8, **options}
    pad = subject.model.generation_config.pad_token_id
    mask = torch.ones_like(ids) if mask is None else mask
    text = subject.model.generate(ids, attention_mask=mask, pad_token_id=0 if pad is None else pad, **options)
    return text[:, -8:]


def _generated_if_supported(subject: Subject, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    """As `_generated`; other packages' architectures may refuse a way of decoding, with transformers' ValueError."""
    try:
        return _generated(subject, ids, **options)
    except ValueError as error:
        if isinstance(subject.model.config, TfmConfig):
            raise
        raise NotApplicable(str(error).splitlines()[0]) from None


def _same_text(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    if not torch.equal(found, expected):
        first = int((found != expected).any(0).nonzero()[0]) + 1
        raise Broken(f"the text differs from new token {first} on {what}")


def check_greedy(subject: Subject) -> str:
    """Greedy text is the same with the cache and without."""
    ids = _prompts(subject, 2, 5)
    _same_text(_generated(subject, ids), _generated(subject, ids, use_cache=False), "between cache and no cache")
    return "same text with and without the cache"


def check_beams(subject: Subject) -> str:
    """Beam search, which puts the cache's rows into another order, finds the same text with the cache and without."""
    ids = _prompts(subject, 2, 5)
    cached, plain = (_generated(subject, ids, num_beams=3, use_cache=cached) for cached in (True, False))
    _same_text(cached, plain, "between cache and no cache")
    return "same text of 3 beams with and without the cache"


def check_static_cache(subject: Subject) -> str:
    """A cache of fixed size gives the text of one that grows."""
    ids = _prompts(subject, 2, 5)
    expected = _generated(subject, ids)
    found = _generated_if_supported(subject, ids, cache_implementation="static", disable_compile=True)
    _same_text(found, expected, "between a static and a growing cache")
    return "same text as with a growing cache"


def check_batched_generation(subject: Subject) -> str:
    """Prompts of different lengths give the same text together, padded on the left, and one by one."""
    ids, lengths = _prompts(subject, 3, 9), (9, 4, 6)
    side = "right" if subject.model.config.is_encoder_decoder else "left"
    places = torch.arange(9) if side == "right" else torch.arange(9).flip(0)
    mask = (places < torch.tensor(lengths)[:, None]).long()
    together = _generated(subject, ids * mask, mask)
    alone = torch.cat([_generated(subject, row[real.bool()][None]) for row, real in zip(ids, mask, strict=True)])
    _same_text(together, alone, "between prompts together and alone")
    return f"same text for 3 prompts together, padded on the {side}, and alone"


def check_assisted(subject: Subject) -> str:
    """Several guessed tokens checked at a time, by the model itself or from the prompt, give the greedy text."""
    ids = _prompts(subject, 1, 5)
    # The model's own guesses are right. The prompt repeats itself with random tokens behind, which are wrong guesses.
    guesses = {"guesses of the model itself": {"assistant_model": subject.copy()}}
    if not subject.model.config.is_encoder_decoder:
        guesses["guesses from the prompt"] = {"prompt_lookup_num_tokens": 3}
        ids = torch.cat([ids, subject.ids(1, 4, seed=1), ids], dim=1)
    expected = _generated(subject, ids)
    for name, options in guesses.items():
        _same_text(_generated_if_supported(subject, ids, **options), expected, f"with {name}")
    return f"same text with {' and '.join(guesses)}"


def check_reference(subject: Subject) -> str:
    """The model gives what its run record says that it gave when it was verified last."""
    reference = recorded(subject.path, "reference")
    if reference is None:
        raise NotApplicable("no run record with a reference; `hf-tfm refresh` writes one for folders of this package")
    found = reference_outputs(subject.model, reference["input_ids"])
    if found != reference["outputs"]:
        raise Broken(f"outputs are {found}, where {reference['outputs']} are recorded")
    return f"{sum(map(len, found.values()))} recorded values"


def check_packing(subject: Subject) -> str:
    """Documents packed into one row, as the scripts for pretraining pack them, do not see each other."""
    if subject.model.config.is_encoder_decoder or not subject.by_token:
        raise NotApplicable("a head by row, or an encoder and a decoder, read no packed documents")
    model = subject.copy()
    model.config.use_cache = False  # as in training: with a cache transformers' models see across documents
    packing = PackedRows.of(model)
    if not packing.apart:
        raise NotApplicable("this architecture cannot keep packed documents apart")
    one, other = subject.ids(1, 7, seed=1), subject.ids(1, 9, seed=2)
    positions = torch.cat([torch.arange(7), torch.arange(9)]).unsqueeze(0)
    inputs = packing.fit({"input_ids": torch.cat([one, other], dim=1), "position_ids": positions})
    rows = ("pooler_output", "seq_relationship_logits", "sop_logits")
    packed = {name: value for name, value in outputs_of(model, **inputs).items() if name not in rows}
    worst = 0.0
    for ids, columns in ((one, slice(0, 7)), (other, slice(7, 16))):
        alone = outputs_of(model, input_ids=ids)
        found = {name: value[:, columns] for name, value in packed.items()}
        expected = {name: alone[name] for name in found}
        worst = max(worst, compare(found, expected, "between a document alone and packed"))
    return f"largest difference {worst:.0e}"


def _gradients(model: PreTrainedModel, batches: list[dict[str, Any]], shares: list[float]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    for batch, share in zip(batches, shares, strict=True):
        (model(**batch).loss * share).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_accumulation(subject: Subject) -> str:
    """Four rows at once and one after the other give the same gradient, each row with another number of labels."""
    ids = subject.ids(4, 12)
    labels, model = subject.labels(ids), subject.copy().eval()
    takes = inspect.signature(model.forward).parameters.values()
    if not any(p.name == "num_items_in_batch" or p.kind == p.VAR_KEYWORD for p in takes):
        raise NotApplicable("its loss takes no num_items_in_batch")
    if subject.head == "QuestionAnswering":
        raise NotApplicable("its loss is a mean over rows, which Trainer divides itself")
    if isinstance(model, EncoderDecoderModel):
        raise NotApplicable("its loss is a mean over the batch; the script for translation has its own")
    adds_up = isinstance(model.config, TfmConfig) or loss_adds_up(model, {"input_ids": ids, **labels})
    if not adds_up and subject.head not in ("CausalLM", "MaskedLM"):
        raise NotApplicable("its loss is a mean over the batch, which this package's scripts weigh or replace")

    def count(labels: torch.Tensor) -> torch.Tensor:
        shifted = labels[..., 1:] if subject.head == "CausalLM" else labels
        return (shifted != -100).sum() if not shifted.is_floating_point() else torch.tensor(shifted.shape[0])

    whole = {"input_ids": ids, **labels, "num_items_in_batch": count(labels["labels"])}
    rows = [{n: v[i : i + 1] if v.ndim else v for n, v in whole.items()} for i in range(4)]
    # A mean over the batch is weighed by its share of the labels, as the scripts for pretraining do.
    shares = [1.0 if adds_up else float(count(row["labels"]) / whole["num_items_in_batch"]) for row in rows]
    expected, found = _gradients(model, [whole], [1.0]), _gradients(model, rows, shares)
    largest = max(value.abs().max().item() for value in expected.values())
    worst = max((expected[name] - found[name]).abs().max().item() for name in expected)
    if not worst <= 1e-4 * max(largest, 1e-6):
        raise Broken(f"gradients differ by {worst / largest:.0%} of the largest between one batch and four")
    return f"largest difference {worst:.0e} of {largest:.0e}"


def check_gradients(subject: Subject) -> str:
    """A gradient reaches every weight."""
    model, ids = subject.copy().train(), subject.ids(4, 12)
    inputs = subject.inputs(ids, **subject.labels(ids))
    if getattr(model.config, "type_vocab_size", 0):
        inputs["token_type_ids"] = torch.randint_like(ids, model.config.type_vocab_size)
    model.zero_grad()
    model(**inputs).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    without = [name for name, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0]
    # A bias that only adds a constant to a softmax (of keys, of positions) has none by nature; its weight has.
    learning = {f"{name.removesuffix('weight')}bias" for name in trained.keys() - set(without)}
    without = [name for name in without if name not in learning]
    # A pooler that nothing reads, or embeddings of positions beyond the row, do not count.
    without = [name for name in without if ".pooler." not in f".{name}" or model.config.model_type.startswith("tfm")]
    if without:
        raise Broken(f"no gradient reaches {without[0]}" + (f" and {len(without) - 1} more" if without[1:] else ""))
    return f"all {len(trained)} tensors"


def check_bf16(subject: Subject) -> str:
    """In bf16 outputs and gradients are numbers, in a row that is mostly padding too."""
    model, ids = subject.copy().to(torch.bfloat16).eval(), subject.ids(2, 12)
    mask = torch.ones_like(ids)
    mask[0, ..., 2:] = 0
    for name, value in outputs_of(model, **subject.inputs(ids, attention_mask=mask)).items():
        if not value.isfinite().all():
            raise Broken(f"{name} in bf16 are not numbers")
    try:
        labels = subject.labels(ids)
    except NotApplicable:
        return "outputs are numbers"
    model = subject.copy().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**subject.inputs(ids, attention_mask=mask, **labels)).loss
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            raise Broken(f"the gradient of {name} under bf16 autocast is not a number")
    return "outputs and gradients are numbers"


def check_lora(subject: Subject) -> str:
    """An adapter merged into the weights gives the outputs of the adapter beside them."""
    from peft import LoraConfig, get_peft_model

    model = subject.copy()
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    output = model.get_output_embeddings()
    inner = {name.rpartition(".")[2] for name in layers if output is None or model.get_submodule(name) is not output}
    heads = ("classifier", "score", "qa_outputs", "decoder", "lm_head", "seq_relationship")
    targets = sorted(inner - set(heads))
    if not targets:
        raise NotApplicable("no linear layers that an adapter could stand beside")
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False)).eval()
    inputs = subject.inputs(subject.ids(2, 12))
    beside = outputs_of(adapted, **inputs)
    plain = outputs_of(subject.model, **inputs)
    if all(torch.equal(beside[name], plain[name]) for name in plain):
        raise Broken("an adapter with random weights changes nothing")
    worst = compare(outputs_of(adapted.merge_and_unload(), **inputs), beside, "between a merged adapter and one beside")
    return f"largest difference {worst:.0e}"


def check_clean_process(subject: Subject) -> str:
    """In a new process, this package not installed, it loads with the code it carries and gives the same outputs."""
    inputs = subject.inputs(subject.ids(2, 12))
    folder = subject.path if Path(subject.path).is_dir() else snapshot_download(subject.path)
    try:
        found = outputs_for_a_stranger(folder, subject.auto_class, inputs)
    except DoesNotLoad as error:
        raise Broken(f"does not load without this package: {error}") from error
    worst = compare(found, outputs_of(subject.model, **inputs), "in a clean process")
    return f"largest difference {worst:.0e}"


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


def reference_outputs(model: PreTrainedModel, input_ids: list[int]) -> dict[str, list[int]]:
    """
    What a model in fp32 gives for one text, in whole numbers that rounding does not change: 24 greedy tokens of a model
    that generates, the place of the largest value in each row of any other's outputs.
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


def versions_line(path: str, model: PreTrainedModel) -> str:
    """The versions at hand, and whether transformers is newer than any that this folder was verified or saved with."""
    here = versions()
    line = ", ".join(f"{name} {here[name]}" for name in ("hf-tfm", "transformers", "torch") if name in here)
    verified = [each["transformers"] for each in recorded(path, "verified_with") or []]
    saved = (recorded(path, "versions") or {}).get("transformers") or model.config.transformers_version
    known = verified or [saved] * (saved is not None)
    if not known:
        return f"{line}; the folder does not say which versions it was made with"
    newest = max(known, key=Version)
    how = "verified" if verified else "saved"
    if Version(here["transformers"]) > Version(newest):
        return f"{line}; this transformers is newer than {newest}, the newest that the folder was {how} with"
    return f"{line}; the folder was {how} with transformers {', '.join(sorted(known, key=Version))}"


@dataclass
class Verdict:
    """One check's outcome: `passed`, `failed` or `skipped`, and what was found."""

    check: str
    outcome: str
    found: str


def open_subject(path: str, trust_remote_code: bool = False) -> Subject:
    """
    A saved model, opened to be verified.

    Args:
        path: folder, or name on the Hub.

    Raises:
        InputError: there is no model that can be opened, or it is an adapter.
    """
    if (Path(path) / ADAPTER_FILE).is_file():
        raise InputError(f"{path}: is an adapter: `hf-tfm merge` compares it with what it makes, which can be verified")
    auto_class = auto_class_of(path, trust_remote_code)
    model, tokenizer = open_model(path, auto_class, trust_remote_code=trust_remote_code)
    return Subject(path, auto_class, model, tokenizer, trust_remote_code)


def verify(
    path: str, only: list[str] | None = None, trust_remote_code: bool = False, subject: Subject | None = None
) -> list[Verdict]:
    """
    Check the promises of a saved model.

    Args:
        path: folder, or name on the Hub.
        only: names of some `CHECKS`.
        subject: the model, where it is open already.

    Raises:
        InputError: as [`open_subject`].
    """
    subject = subject or open_subject(path, trust_remote_code)
    verdicts = []
    for name, check in CHECKS.items():
        if only and name not in only:
            continue
        torch.manual_seed(0)
        try:
            with quiet():
                verdicts.append(Verdict(name, "passed", check(subject)))
        except NotApplicable as reason:
            verdicts.append(Verdict(name, "skipped", str(reason)))
        except Broken as reason:
            verdicts.append(Verdict(name, "failed", str(reason)))
        except Exception as error:  # whatever breaks in a model that is not ours is its fault, and said
            said = next(iter(str(error).strip().splitlines()), "no reason given")
            verdicts.append(Verdict(name, "failed", f"{type(error).__name__}: {said}"))
    return verdicts


def as_table(verdicts: list[Verdict]) -> str:
    """One line a check."""
    marks = {"passed": "ok", "failed": "FAILED", "skipped": "–"}
    return "\n".join(f"{v.check:18} {marks[v.outcome]:7} {v.found}" for v in verdicts)


def as_json(path: str, verdicts: list[Verdict]) -> str:
    counts = {outcome: sum(v.outcome == outcome for v in verdicts) for outcome in ("passed", "failed", "skipped")}
    return json.dumps({"model": path, **counts, "checks": [asdict(v) for v in verdicts]}, indent=1)
