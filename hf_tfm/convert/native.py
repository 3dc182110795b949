"""
Converts checkpoints of six native families losslessly: GPT-2, Llama, Qwen3, Mistral, BERT, ModernBERT.

`artifacts/native_families.py` maps weights and fields. A value without counterpart raises an error that names the
field. Only fields that affect nothing but rounding, memory or random initialization are dropped
(`reorder_and_upcast_attn`, `pretraining_tp`, `sparse_prediction`, …).
"""

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel

from ..artifacts.card import rewrite_card
from ..artifacts.compare import outputs_of
from ..artifacts.family_config import native_config, our_config
from ..artifacts.native_families import FAMILIES, Family
from ..artifacts.record import RECORD_FILE, model_facts
from ..artifacts.tokenizer_files import mend_tokenizer_files, save_tokenizer
from ..core.atomic_files import atomic_directory, require_empty
from ..core.errors import InputError, explain
from ..core.model_files import download_model, read_config
from ..models import modeling_tfm_decoder, modeling_tfm_encoder
from .check import REPORT_FILE, Report, TorchRunner, check_export, comparison_rows, write_report


Weights = dict[str, torch.Tensor]


def import_model(
    path_or_model: str | os.PathLike | PreTrainedModel, head: str | None = None, **load_kwargs: Any
) -> PreTrainedModel:
    """
    Convert a native model to a model of this package with equal outputs.

    Args:
        path_or_model: a folder, a name on the Hub, or a native model, which keeps its own weights.
        head: `CausalLM`, `MaskedLM`, …, or `Model` for the base model; by default that of the checkpoint.
        load_kwargs: for `from_pretrained` of the native class: `gguf_file`, `dtype`, `revision`, …

    Raises:
        InputError: there is no such checkpoint, it lacks weights of the head, or the block does not support a value of
            its configuration; the message names the field.
    """
    if isinstance(path_or_model, PreTrainedModel):
        family = _family_of(path_or_model.config.model_type)
        class_name = type(path_or_model).__name__
        if (own_head := family.head_of(class_name)) is None or head not in (None, own_head):
            raise InputError(f"{class_name} cannot become {head or 'a Tfm model'}; classes: {_classes(family)}")
        # A deep copy keeps tied tensors tied, and training one model does not change the other.
        weights = copy.deepcopy(path_or_model.state_dict())
        return _from_native(path_or_model, family, own_head, weights)
    native, family, head, _ = _load_native(path_or_model, head, **load_kwargs)
    return _from_native(native, family, head, native.state_dict())


def export_model(
    model_or_folder: str | os.PathLike | PreTrainedModel, family: str, untie: bool = False
) -> PreTrainedModel:
    """
    Convert a model of this package to a model of a native family with equal outputs.

    Args:
        model_or_folder: a model, which keeps its own weights, or the folder of one.
        family: `gpt2`, `llama`, `qwen3`, `mistral`, `bert` or `modernbert`.
        untie: copy the token embedding into the output projection, for tools that expect it in the file.

    Raises:
        InputError: the family does not support a value of the configuration; the message names the field.
    """
    if isinstance(model_or_folder, PreTrainedModel):
        weights = copy.deepcopy(model_or_folder.state_dict())
        return _to_native(model_or_folder, _family(family), weights, untie)
    _family(family)  # an unknown family is an error before minutes of loading
    model = load_tfm(model_or_folder)
    return _to_native(model, _family(family), model.state_dict(), untie)


class Conversion(NamedTuple):
    """
    A written folder.

    Attributes:
        max_error: largest difference to the source's outputs, both in float32.
        left_behind: tensors of the source that the class does not have.
        report: of an export.
    """

    model_class: str
    num_parameters: int
    max_error: float
    left_behind: tuple[str, ...] = ()
    report: Report | None = None


def convert_folder(
    source: str | os.PathLike, target: str | os.PathLike, gguf_file: str | None = None, head: str | None = None
) -> Conversion:
    """
    Convert a native checkpoint to a complete folder of this package.

    The folder gets weights, configuration, generation configuration, code, tokenizer, card and files of
    sentence-transformers. It appears under its name once it has been read again and reproduces the source's outputs.

    Args:
        source: a folder or a name on the Hub.
        target: the new folder.
        gguf_file: name of a GGUF file in `source` with weights, configuration and tokenizer.
        head: as in [`import_model`].

    Raises:
        InputError: as [`import_model`]; `target` is not empty; or outputs differ; nothing is written.
    """
    require_empty(target)
    load_kwargs = {} if gguf_file is None else {"gguf_file": gguf_file}
    source = download_model(source, gguf_file)
    native, family, head, unused = _load_native(source, head, **load_kwargs)
    model = _from_native(native, family, head, native.state_dict())
    with atomic_directory(target) as folder:
        model.save_pretrained(folder)
        del model  # saves the memory of a third copy of the weights
        copy_other_files(source, folder, gguf_file)
        written = load_tfm(folder)
        error = max_difference(native, written)
    return Conversion(type(written).__name__, written.num_parameters(), error, tuple(sorted(unused)))


def export_folder(source: str | os.PathLike, target: str | os.PathLike, family: str, untie: bool = False) -> Conversion:
    """
    Convert a folder of this package to a complete one of a native family, without custom code.

    `export_check.json` reports how the two compare. `config.json` has the fields of transformers 4 and of 5.

    Raises:
        InputError: as [`export_model`]; `target` is not empty; or outputs differ; nothing is written.
    """
    _family(family)
    require_empty(target)
    model = load_tfm(source)
    native, dtype = _to_native(model, _family(family), model.state_dict(), untie), str(model.dtype)
    with atomic_directory(target) as folder:
        native.save_pretrained(folder)
        unreadable = _write_older_fields(folder, _family(family), native.config)
        native_class = type(native)
        del native
        copy_other_files(Path(source), folder)
        written = native_class.from_pretrained(folder, **_pooler_option(native_class, model))
        if (folder / RECORD_FILE).is_file():
            rewrite_card(folder, model=model_facts(written))
        check = check_export(model.float(), TorchRunner(written.float()), comparison_rows(model.config, Path(source)))
        report = write_report(family, dtype, model, source, folder, check, unreadable_before_5=unreadable)
    return Conversion(type(written).__name__, written.num_parameters(), check.max_difference, report=report)


def _write_older_fields(folder: Path, family: Family, config: PreTrainedConfig) -> tuple[str, ...]:
    """
    Add the fields of transformers before version 5 to a saved `config.json`.

    Returns: reasons why those versions cannot build the model; empty if they can.
    """
    older = family.older_fields(config)
    path = folder / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8")) | older.values
    fields["torch_dtype"] = fields["dtype"]
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return older.obstacles


def max_difference(reference: PreTrainedModel, other: PreTrainedModel) -> float:
    """
    Return the largest difference between the outputs of two models on random tokens.

    Both become float32 models, whose outputs are equal up to the order of sums if their weights are equal.

    Raises:
        InputError: the difference exceeds 1e-4 of the outputs' size (of 1 if they are smaller).
    """
    config = reference.config
    length = min(32, config.max_position_embeddings)
    shape = (1, 2, length) if "MultipleChoice" in type(reference).__name__ else (1, length)
    generator = torch.Generator().manual_seed(0)
    inputs = {"input_ids": torch.randint(config.vocab_size, shape, generator=generator)}
    inputs["attention_mask"] = torch.ones(shape, dtype=torch.long)
    if segments := getattr(config, "type_vocab_size", 0):
        inputs["token_type_ids"] = torch.randint(segments, shape, generator=generator)
    if config.pad_token_id is not None:
        # Native classifiers find the last token by the padding id, which must not occur inside.
        padding = inputs["input_ids"] == config.pad_token_id
        inputs["input_ids"][padding] = (config.pad_token_id + 1) % config.vocab_size
    expected, actual = (outputs_of(model.float().eval(), **inputs) for model in (reference, other))
    if missing := expected.keys() ^ actual.keys():
        raise InputError(f"only one of the models gives {', '.join(missing)}: nothing was written; please report this")
    difference = max((expected[name] - actual[name]).abs().max().item() for name in expected)
    size = max(1.0, *(value.abs().max().item() for value in expected.values()))
    if not difference <= 1e-4 * size:  # false for NaN too
        raise InputError(
            f"the converted {type(other).__name__} differs from {type(reference).__name__} by {difference:.1e} in its "
            "outputs: nothing was written; please report this checkpoint"
        )
    return difference


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise InputError(f"unknown family {name!r}; choose one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def _family_of(model_type: str | None) -> Family:
    if model_type in ("tfm_decoder", "tfm_encoder"):
        raise InputError(f"model_type {model_type!r} is one of this package already; `hf-tfm export` converts it")
    if model_type not in FAMILIES:
        raise InputError(f"model_type {model_type!r} cannot be converted; supported are {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def _classes(family: Family) -> str:
    return ", ".join(family.class_name(head) for head in family.heads)


def _from_native(native: PreTrainedModel, family: Family, head: str, weights: Weights) -> PreTrainedModel:
    """Return our model with native weights; it shares the tensors that are not rearranged."""
    modules = _module_names(family, head, native.config.num_hidden_layers, type(native).base_model_prefix)
    for name in family.duplicates:
        weights.pop(name, None)
    renamed = {}
    for theirs, ours in modules.items():
        for kind in ("weight", "bias"):
            if (tensor := weights.pop(f"{theirs}.{kind}", None)) is None:
                continue
            transposed = theirs.rpartition(".")[2] in family.conv1d
            parts = (tensor.t() if transposed else tensor).chunk(len(ours))
            for name, part in zip(ours, parts, strict=True):
                rearranged = transposed or len(ours) > 1
                renamed[f"{name}.{kind}"] = part.clone(memory_format=torch.contiguous_format) if rearranged else tensor
    config = our_config(native.config, family, head)
    if family.class_name(head) == "BertModel":
        config.use_pooler = native.pooler is not None
    return _build(family.our_class(head), config, renamed, weights, native)


def _to_native(model: PreTrainedModel, family: Family, weights: Weights, untie: bool) -> PreTrainedModel:
    """Return the native model with our weights; it shares the tensors that are not rearranged."""
    head = type(model).__name__.removeprefix("TfmDecoder").removeprefix("TfmEncoder").removeprefix("For")
    if model.config.model_type != f"tfm_{family.side}":
        article = "an" if family.side == "encoder" else "a"
        raise InputError(f"{type(model).__name__}: {family.title} is {article} {family.side}")
    if head not in family.heads:
        raise InputError(f"{type(model).__name__}: {family.title} has no such head; it has {_classes(family)}")
    native_class = family.native_class(head)
    config = native_config(model.config, family, head)
    if untie:
        if model.get_output_embeddings() is None:
            raise InputError(f"{type(model).__name__} has no output projection to untie")
        config.tie_word_embeddings = False
    modules = _module_names(family, head, model.config.num_hidden_layers, native_class.base_model_prefix)
    renamed = {}
    for theirs, ours in modules.items():
        for kind in ("weight", "bias"):
            if f"{ours[0]}.{kind}" not in weights:
                continue
            parts = [weights.pop(f"{name}.{kind}") for name in ours]
            tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
            transposed = theirs.rpartition(".")[2] in family.conv1d
            renamed[f"{theirs}.{kind}"] = tensor.t().contiguous() if transposed else tensor
    for name, original in family.duplicates.items():
        if original in renamed:
            renamed[name] = renamed[original].clone()
    if untie:
        # Two parameters on one storage would be saved as one.
        for name in native_class._tied_weights_keys:
            renamed[name] = renamed[name].clone()
    return _build(native_class, config, renamed, weights, model, **_pooler_option(native_class, model))


def _pooler_option(native_class: type[PreTrainedModel], model: PreTrainedModel) -> dict[str, bool]:
    """Return the option that omits the pooler of BERT's base model, which many sentence encoders do not have."""
    return {"add_pooling_layer": False} if native_class.__name__ == "BertModel" and model.pooler is None else {}


def _module_names(family: Family, head: str, num_layers: int, prefix: str) -> dict[str, tuple[str, ...]]:
    """Return native modules of one model with our modules, the numbers of layers inserted."""
    their_prefix, our_prefix = ("", "") if head == "Model" else (f"{prefix}.", "model.")
    names = {}
    for theirs, ours in family.body.items():
        for i in range(num_layers if "{i}" in theirs else 1):
            names[their_prefix + theirs.format(i=i)] = tuple(our_prefix + name.format(i=i) for name in _as_tuple(ours))
    return names | {theirs: _as_tuple(ours) for theirs, ours in family.heads[head].items()}


def _as_tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _build(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    weights: Weights,
    left_over: Weights,
    source: PreTrainedModel,
    **options: Any,
) -> PreTrainedModel:
    """Return a model with exactly these weights, and the source's dtype and generation configuration."""
    # `from_pretrained` without a path builds on the meta device: no third copy and no random initialization.
    model, report = model_class.from_pretrained(
        None, config=config, state_dict=weights, dtype=source.dtype, output_loading_info=True, **options
    )
    if unmatched := {*left_over, *report["missing_keys"], *report["unexpected_keys"]}:
        raise RuntimeError(f"{type(source).__name__} to {model_class.__name__}: no counterpart for {sorted(unmatched)}")
    model.config.name_or_path = source.config.name_or_path
    if model.can_generate() and source.can_generate():
        model.generation_config = copy.deepcopy(source.generation_config)
    return model


def _load_native(
    path: str | os.PathLike, head: str | None, **load_kwargs: Any
) -> tuple[PreTrainedModel, Family, str, set[str]]:
    """Return a native model, loaded by its own class, with its family, its head and the tensors left over."""
    config = read_config(path, **load_kwargs)
    family = _family_of(config.get("model_type"))
    if config.get("quantization_config"):
        raise InputError(f"{path}: quantization_config: the weights are quantized; convert the original checkpoint")
    if head is None:
        # Checkpoints without a class name (GGUF, very old ones) are taken for the usual class of their family.
        default = family.class_name("CausalLM" if family.side == "decoder" else "Model")
        class_name = (config.get("architectures") or [default])[0]
        if (head := family.head_of(class_name)) is None:
            raise InputError(f"{path}: class {class_name} cannot be converted; supported are {_classes(family)}")
    elif head not in family.heads:
        raise InputError(f"{path}: {family.title} has no head {head!r}; choose one of {', '.join(family.heads)}")
    if "gguf_file" in load_kwargs and hasattr(transformers, "GgufConfig"):
        # Newer versions keep weights quantized if a kernel is installed; conversion needs plain matrices.
        load_kwargs["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with explain(path):
        native, report = family.native_class(head).from_pretrained(path, output_loading_info=True, **load_kwargs)
    native.is_quantized = False  # GGUF weights are plain tensors now
    missing = set(report["missing_keys"])
    if type(native).__name__ == "BertModel" and missing == {"pooler.dense.weight", "pooler.dense.bias"}:
        native.pooler = None  # its weights are random
        missing.clear()
    if missing:
        raise InputError(
            f"{path}: no weights for {', '.join(sorted(missing)[:3])}{', …' if len(missing) > 3 else ''}, which "
            f"{type(native).__name__} needs; choose another head, or `Model` for the base model"
        )
    return native, family, head, set(report["unexpected_keys"])


def load_tfm(folder: str | os.PathLike) -> PreTrainedModel:
    """
    Load a model of this package from its folder, with the class that the folder names.

    Raises:
        InputError: the model is not of this package, damaged, or lacks weights, which transformers would initialize.
    """
    config = read_config(folder)
    class_name = (config.get("architectures") or [""])[0]
    modules = {"tfm_decoder": modeling_tfm_decoder, "tfm_encoder": modeling_tfm_encoder}
    model_class = getattr(modules.get(config.get("model_type", "")), class_name, None)
    if model_class is None:
        raise InputError(
            f"{folder}: {class_name or 'this'} of model_type {config.get('model_type')!r} is no Tfm model; "
            "`hf-tfm convert` converts it"
        )
    with explain(folder):
        model, report = model_class.from_pretrained(folder, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise InputError(f"{folder}: no weights for {missing[0]} ({len(missing)} missing), which {class_name} needs")
    return model


def copy_other_files(source: Path, folder: Path, gguf_file: str | None = None) -> None:
    """Copy tokenizer, chat template, card, licence, pictures and sentence-transformers modules to an export."""
    for file in sorted(source.iterdir()):
        is_text = file.suffix in {".json", ".txt", ".model", ".jinja", ".md", ".png", ".svg", ".yaml"}
        belongs = is_text and file.name != REPORT_FILE or file.name.upper().startswith(("LICENSE", "NOTICE"))
        belongs = belongs and not file.name.startswith(".")  # state of a run
        replaced = file.name in ("config.json", "generation_config.json") or file.name.endswith(".index.json")
        if file.is_file() and belongs and not replaced and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
    modules = source / "modules.json"
    names = [module["path"] for module in json.loads(modules.read_text())] if modules.is_file() else []
    for name in [*names, "additional_chat_templates"]:
        if name and Path(name).name == name and (source / name).is_dir():
            shutil.copytree(source / name, folder / name)
    _copy_tokenizer(source, folder, gguf_file)


def _copy_tokenizer(source: Path, folder: Path, gguf_file: str | None) -> None:
    """Keep copied tokenizer files if they load alike beside the new configuration, else save the tokenizer again."""
    if gguf_file is not None:
        save_tokenizer(AutoTokenizer.from_pretrained(source, gguf_file=gguf_file), folder)
        return
    files = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
    if not any((source / name).is_file() for name in files):
        return
    text = "Ünder one roof: 12 cats, and 345 of THEIR kittens?\n  <s> [MASK]"
    with explain(f"{source}: tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source)
    try:
        same = AutoTokenizer.from_pretrained(folder)(text) == tokenizer(text)
    except (ValueError, OSError, KeyError):  # only the old model_type named the class
        same = False
    if same:
        mend_tokenizer_files(folder)
    else:
        save_tokenizer(tokenizer, folder)
