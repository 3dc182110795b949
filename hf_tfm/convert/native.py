"""
Checkpoints of six native families in and out without loss: GPT-2, Llama, Qwen3, Mistral, BERT, ModernBERT.

`families.py` says what corresponds to what. What it cannot say is refused by the name of the field, never dropped; the
exceptions are fields that change rounding or memory alone (`reorder_and_upcast_attn`, `pretraining_tp`,
`sparse_prediction`, …) and how random weights are drawn.
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
from ..artifacts.families import FAMILIES, Family, _our_config, native_config
from ..artifacts.record import RECORD_FILE, model_facts
from ..artifacts.tokenizer_files import mend_tokenizer_files, save_tokenizer
from ..core.errors import InputError, explain
from ..core.files import atomic_directory, require_empty
from ..core.model_files import download_model, read_config
from ..models import modeling_tfm_decoder, modeling_tfm_encoder
from .check import REPORT_FILE, Report, TorchSide, compare, report_on, rows_for


Weights = dict[str, torch.Tensor]


def import_model(
    path_or_model: str | os.PathLike | PreTrainedModel, head: str | None = None, **load_kwargs: Any
) -> PreTrainedModel:
    """
    Brings a native model into this package, with equal outputs.

    Args:
        path_or_model: A folder, a name on the Hub, or a native model, which keeps its own weights.
        head: `CausalLM`, `MaskedLM`, …, or `Model` for the base model; by default what the checkpoint says it is.
        load_kwargs: For `from_pretrained` of the native class: `gguf_file`, `dtype`, `revision`, …

    Raises:
        InputError: when there is no such checkpoint, its weights lack some of what the head needs, or its configuration
            asks for something that the block cannot do; the message names the field.
    """
    if isinstance(path_or_model, PreTrainedModel):
        family = _family_of(path_or_model.config.model_type)
        class_name = type(path_or_model).__name__
        if (found := family.head_of(class_name)) is None or head not in (None, found):
            raise InputError(f"{class_name} cannot become {head or 'a Tfm model'}; classes: {_classes(family)}")
        # Copied with its tied tensors still one, so that training one model leaves the other alone.
        weights = copy.deepcopy(path_or_model.state_dict())
        return _from_native(path_or_model, family, found, weights)
    native, family, head, _ = _load_native(path_or_model, head, **load_kwargs)
    return _from_native(native, family, head, native.state_dict())


def export_model(
    model_or_folder: str | os.PathLike | PreTrainedModel, family: str, untie: bool = False
) -> PreTrainedModel:
    """
    Gives a model of this package out as one of a native family, with equal outputs.

    Args:
        model_or_folder: A model, which keeps its own weights, or the folder of one.
        family: `gpt2`, `llama`, `qwen3`, `mistral`, `bert` or `modernbert`.
        untie: Give the output projection a copy of the token embedding to itself, for tools that expect it in the file.

    Raises:
        InputError: when the family cannot do what the model does; the message names the field.
    """
    if isinstance(model_or_folder, PreTrainedModel):
        weights = copy.deepcopy(model_or_folder.state_dict())
        return _to_native(model_or_folder, _family(family), weights, untie)
    _family(family)  # before minutes of loading
    model = load_tfm(model_or_folder)
    return _to_native(model, _family(family), model.state_dict(), untie)


class Conversion(NamedTuple):
    """What a written folder holds."""

    model_class: str
    num_parameters: int
    max_error: float  # largest difference to the source's outputs, both in float32
    left_behind: tuple[str, ...] = ()  # tensors of the source that the class has no place for
    report: Report | None = None  # of an export


def convert_folder(
    source: str | os.PathLike, target: str | os.PathLike, gguf_file: str | None = None, head: str | None = None
) -> Conversion:
    """
    Writes a native checkpoint as a whole folder of this package: weights, configuration, generation configuration,
    code, tokenizer, card, sentence-transformers files. The folder appears under its name once it has been read again
    and found to give the source's outputs.

    Args:
        source: A folder or a name on the Hub.
        target: The folder to make.
        gguf_file: Name of a GGUF file in `source` to read the weights, configuration and tokenizer from.
        head: As in [`import_model`].

    Raises:
        InputError: as [`import_model`]; when `target` holds something; when outputs differ. Nothing is written then.
    """
    require_empty(target)
    load_kwargs = {} if gguf_file is None else {"gguf_file": gguf_file}
    source = download_model(source, gguf_file)
    native, family, head, unused = _load_native(source, head, **load_kwargs)
    model = _from_native(native, family, head, native.state_dict())
    with atomic_directory(target) as folder:
        model.save_pretrained(folder)
        del model  # no third copy of the weights beside the source's and what is read again
        carry_over(source, folder, gguf_file)
        written = load_tfm(folder)
        error = max_difference(native, written)
    return Conversion(type(written).__name__, written.num_parameters(), error, tuple(sorted(unused)))


def export_folder(source: str | os.PathLike, target: str | os.PathLike, family: str, untie: bool = False) -> Conversion:
    """
    Writes a folder of this package as one of a native family, whole as in [`convert_folder`], without custom code; in
    `export_check.json` stands how the two compare. `config.json` has the fields of transformers 4 beside those of 5.

    Raises:
        InputError: as [`export_model`]; when `target` holds something; when outputs differ. Nothing is written then.
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
        carry_over(Path(source), folder)
        written = native_class.from_pretrained(folder, **_pooler_option(native_class, model))
        if (folder / RECORD_FILE).is_file():
            rewrite_card(folder, model=model_facts(written))
        check = compare(model.float(), TorchSide(written.float()), rows_for(model.config, Path(source)))
        report = report_on(family, dtype, model, source, folder, check, unreadable_before_5=unreadable)
    return Conversion(type(written).__name__, written.num_parameters(), check.max_difference, report=report)


def _write_older_fields(folder: Path, family: Family, config: PreTrainedConfig) -> tuple[str, ...]:
    """
    Puts the fields of transformers before version 5 into a saved `config.json`: those versions ignore the new ones, and
    take their defaults for what they miss.

    Returns: why those versions cannot build the model, if they cannot.
    """
    older = family.older_fields(config)
    path = folder / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8")) | older.values
    fields["torch_dtype"] = fields["dtype"]
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return older.obstacles


def max_difference(reference: PreTrainedModel, other: PreTrainedModel) -> float:
    """
    Largest difference between the outputs of two models on random tokens. Turns both into float32, where equal
    weights give equal outputs up to the order of sums.

    Raises:
        InputError: when it exceeds 1e-4 of the outputs' size (of 1 where they are smaller).
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
        # Native classifiers take their last token by its id, which a random pad would upset.
        pads = inputs["input_ids"] == config.pad_token_id
        inputs["input_ids"][pads] = (config.pad_token_id + 1) % config.vocab_size
    expected, found = (outputs_of(model.float().eval(), **inputs) for model in (reference, other))
    if lost := expected.keys() ^ found.keys():
        raise InputError(f"only one of the two gives {', '.join(lost)}: nothing was written; please report this")
    difference = max((expected[name] - found[name]).abs().max().item() for name in expected)
    size = max(1.0, *(value.abs().max().item() for value in expected.values()))
    if not difference <= 1e-4 * size:  # a NaN is a difference too
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
        raise InputError(f"model_type {model_type!r} belongs to this package already; `hf-tfm export` gives it out")
    if model_type not in FAMILIES:
        raise InputError(f"model_type {model_type!r} cannot be converted; known are {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def _classes(family: Family) -> str:
    return ", ".join(family.class_name(head) for head in family.heads)


# From native to Tfm and back


def _from_native(native: PreTrainedModel, family: Family, head: str, weights: Weights) -> PreTrainedModel:
    """Our model on their weights; tensors that need no rearranging are shared."""
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
    config = _our_config(native.config, family, head)
    if family.class_name(head) == "BertModel":
        config.use_pooler = native.pooler is not None
    return _build(family.our_class(head), config, renamed, weights, native)


def _to_native(model: PreTrainedModel, family: Family, weights: Weights, untie: bool) -> PreTrainedModel:
    """Their model on our weights; tensors that need no rearranging are shared."""
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
            parts = [weights.pop(f"{name}.{kind}", None) for name in ours]
            if parts[0] is None:
                continue
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
    """BERT's base model is told to come without its pooler, which sentence encoders are often published without."""
    return {"add_pooling_layer": False} if native_class.__name__ == "BertModel" and model.pooler is None else {}


def _module_names(family: Family, head: str, num_layers: int, prefix: str) -> dict[str, tuple[str, ...]]:
    """The table of weights written out for one model: their modules and ours, with every layer's number."""
    their_prefix, our_prefix = ("", "") if head == "Model" else (f"{prefix}.", "model.")
    names = {}
    for theirs, ours in family.body.items():
        for i in range(num_layers if "{i}" in theirs else 1):
            names[their_prefix + theirs.format(i=i)] = tuple(our_prefix + name.format(i=i) for name in _several(ours))
    return names | {theirs: _several(ours) for theirs, ours in family.heads[head].items()}


def _several(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _build(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    weights: Weights,
    left_over: Weights,
    source: PreTrainedModel,
    **options: Any,
) -> PreTrainedModel:
    """A model on given weights, all of them and no others, with the source's dtype and generation configuration."""
    # `from_pretrained` without a path fills a model on the meta device: no third copy, no time spent on random weights.
    model, report = model_class.from_pretrained(
        None, config=config, state_dict=weights, dtype=source.dtype, output_loading_info=True, **options
    )
    if lost := {*left_over, *report["missing_keys"], *report["unexpected_keys"]}:
        raise RuntimeError(f"{type(source).__name__} to {model_class.__name__}: no counterpart for {sorted(lost)}")
    model.config.name_or_path = source.config.name_or_path
    if model.can_generate() and source.can_generate():
        model.generation_config = copy.deepcopy(source.generation_config)
    return model


# Folders


def _load_native(
    path: str | os.PathLike, head: str | None, **load_kwargs: Any
) -> tuple[PreTrainedModel, Family, str, set[str]]:
    """A native model by its own class, which knows every older layout; its family, head and the tensors left over."""
    config = read_config(path, **load_kwargs)
    family = _family_of(config.get("model_type"))
    if config.get("quantization_config"):
        raise InputError(f"{path}: quantization_config: the weights are quantised; convert the original checkpoint")
    if head is None:
        # A checkpoint that does not say what it is (GGUF, very old ones) is taken for what its family is known for.
        default = family.class_name("CausalLM" if family.side == "decoder" else "Model")
        class_name = (config.get("architectures") or [default])[0]
        if (head := family.head_of(class_name)) is None:
            raise InputError(f"{path}: class {class_name} cannot be converted; known are {_classes(family)}")
    elif head not in family.heads:
        raise InputError(f"{path}: {family.title} has no head {head!r}; choose one of {', '.join(family.heads)}")
    if "gguf_file" in load_kwargs and hasattr(transformers, "GgufConfig"):
        # Newer versions leave weights in their blocks where a kernel for that is installed: no matrices to rename.
        load_kwargs["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with explain(path):
        native, report = family.native_class(head).from_pretrained(path, output_loading_info=True, **load_kwargs)
    native.is_quantized = False  # GGUF weights are plain tensors by now
    missing = set(report["missing_keys"])
    if type(native).__name__ == "BertModel" and missing == {"pooler.dense.weight", "pooler.dense.bias"}:
        native.pooler = None  # what the loader put there is random
        missing.clear()
    if missing:
        raise InputError(
            f"{path}: no weights for {', '.join(sorted(missing)[:3])}{', …' if len(missing) > 3 else ''}, which "
            f"{type(native).__name__} needs; choose another head, `Model` for the base model"
        )
    return native, family, head, set(report["unexpected_keys"])


def load_tfm(folder: str | os.PathLike) -> PreTrainedModel:
    """
    A model of this package from its folder, by the class that the folder names.

    Raises:
        InputError: when it is another's, damaged, or lacks weights, which transformers would draw at random.
    """
    config = read_config(folder)
    class_name = (config.get("architectures") or [""])[0]
    modules = {"tfm_decoder": modeling_tfm_decoder, "tfm_encoder": modeling_tfm_encoder}
    model_class = getattr(modules.get(config.get("model_type")), class_name, None)
    if model_class is None:
        raise InputError(
            f"{folder}: {class_name or 'this'} of model_type {config.get('model_type')!r} is no Tfm model; "
            "`hf-tfm convert` makes one of it"
        )
    with explain(folder):
        model, report = model_class.from_pretrained(folder, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise InputError(f"{folder}: no weights for {missing[0]} ({len(missing)} missing), which {class_name} needs")
    return model


def carry_over(source: Path, folder: Path, gguf_file: str | None = None) -> None:
    """Tokenizer, chat template, card, licence, pictures, sentence-transformers modules: all but weights and code."""
    for file in sorted(source.iterdir()):
        wanted = file.suffix in {".json", ".txt", ".model", ".jinja", ".md", ".png", ".svg", ".yaml"}
        wanted = wanted and file.name != REPORT_FILE or file.name.upper().startswith(("LICENSE", "NOTICE"))
        replaced = file.name in ("config.json", "generation_config.json") or file.name.endswith(".index.json")
        wanted = wanted and not file.name.startswith(".")  # a run's own notes
        if file.is_file() and wanted and not replaced and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
    modules = source / "modules.json"
    names = [module["path"] for module in json.loads(modules.read_text())] if modules.is_file() else []
    for name in [*names, "additional_chat_templates"]:
        if name and Path(name).name == name and (source / name).is_dir():
            shutil.copytree(source / name, folder / name)
    _carry_tokenizer(source, folder, gguf_file)


def _carry_tokenizer(source: Path, folder: Path, gguf_file: str | None) -> None:
    """The tokenizer's files stay as they are if they load the same beside the new configuration, else are made anew."""
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
    except (ValueError, OSError, KeyError):  # a class that was known from the old model_type alone
        same = False
    if same:
        mend_tokenizer_files(folder)
    else:
        save_tokenizer(tokenizer, folder)
