"""
Exports a causal LM as a GGUF file for llama.cpp and programs based on it.

The model is exported as a native family that llama.cpp knows: Qwen3 with QK-norm, GPT-2 with learned positions, else
Llama. Fields that llama.cpp does not support raise an error with their name. Its tokenizers split text by a fixed list
of rules, of which four are supported here.
"""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from ..artifacts.compare import Weights
from ..core.atomic_files import atomic_directory, require_empty
from ..core.errors import InputError, explain
from ..data.tokenizer import GGUF_PRE_TOKENIZER
from ..models.modeling_tfm_decoder import TfmDecoderForCausalLM
from .check import (
    TEXTS,
    Report,
    Rows,
    TorchRunner,
    check_export,
    comparison_rows,
    require_packages,
    write_export_card,
    write_report,
)
from .native import export_model, load_tfm


DTYPES = ("f32", "f16", "bf16", "q8_0")
_DTYPE_NAMES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}

# Limits of the relative difference in llama.cpp, which reads GELU from a table and computes 16-bit weights in 16 bits.
_LLAMA_CPP = {"f32": 1e-2, "f16": 2e-2, "bf16": 5e-2, "q8_0": 0.1}

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
# llama.cpp's name of a rule, and its form in tokenizer.json.
_PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    GGUF_PRE_TOKENIZER: [{"type": "Digits", "individual_digits": True}, _BYTES],
    "gpt-2": [_BYTES],
    **{
        name: [
            {"type": "Split", "pattern": {"Regex": _WORDS + digits + _REST}, "behavior": "Isolated", "invert": False},
            {**_BYTES, "use_regex": False},
        ]
        for name, digits in (("llama-bpe", r"\p{N}{1,3}"), ("qwen2", r"\p{N}"))
    },
}
_USAGE = """\
from llama_cpp import Llama

model = Llama("{file}", n_ctx=0)
print(model("Once upon a time", max_tokens=40, temperature=0)["choices"][0]["text"])
"""
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5


def export_gguf(
    source: str | os.PathLike, target: str | os.PathLike, dtype: str | None = None, untie: bool = False
) -> Report:
    """
    Write a folder with a causal LM of this package as a GGUF file, a card and a report.

    transformers, and llama.cpp if `llama-cpp-python` is installed, read the file again and must give the same outputs.

    Args:
        dtype: `f32`, `f16`, `bf16` or `q8_0`; by default that of the weights. Norms and biases stay in 32 bits.
        untie: write the output projection although it equals the token embedding.

    Raises:
        InputError: llama.cpp does not support the model or its tokenizer, or outputs differ; nothing is written.
    """
    require_packages("gguf", "gguf")
    if dtype not in (None, *DTYPES):
        raise InputError(f"dtype {dtype!r}: GGUF files are written in {', '.join(DTYPES)}")
    require_empty(target)
    source = Path(source)
    model = load_tfm(source)
    dtype = dtype or _DTYPE_NAMES[model.dtype]
    family = family_of(model)
    if "sliding_attention" in model.config.layer_types:
        # The window covers the whole context.
        model.config.layer_types = ["full_attention"] * model.config.num_hidden_layers
        model.config.sliding_window = None
    tokenizer = _tokenizer_of(source)
    rule, frame = pre_tokenizer_rule(tokenizer), frame_of(tokenizer)
    if max(tokenizer.get_vocab().values()) >= model.config.vocab_size:
        raise InputError(f"the tokenizer has ids beyond vocab_size={model.config.vocab_size} of the model")
    native = export_model(model, family, untie=untie)
    _refuse_fields(native)
    exact = dtype in ("f32", _DTYPE_NAMES[model.dtype])
    with atomic_directory(target) as folder:
        file = folder / f"{Path(target).name}-{dtype}.gguf"
        write_gguf(file, native, tokenizer, rule, frame, dtype, source.resolve().name)
        native = type(native).from_pretrained(
            folder, gguf_file=file.name, config=native.config, dtype=torch.float32, **_as_matrices()
        )
        model, rows = model.float(), comparison_rows(model.config, source)
        runner = TorchRunner(native, f"transformers, {type(native).__name__} from the GGUF file")
        checks = [check_export(model, runner, rows, None if exact else 0.1)]
        if importlib.util.find_spec("llama_cpp"):
            runner = LlamaCppRunner(file, model.config.max_position_embeddings, rows)
            runner.refuse_other_tokens(tokenizer)
            checks.append(check_export(model, runner, rows, _LLAMA_CPP[dtype]))
        report = write_report("gguf", dtype, model, source, folder, *checks)
        write_export_card(folder, Path(target).name, source, report, _USAGE.format(file=file.name), "llama-cpp-python")
    return report


def family_of(model: PreTrainedModel) -> str:
    """
    Return the native family as which llama.cpp runs a model.

    Raises:
        InputError: it is not a causal LM, or it has windows, which llama.cpp does not support in these families.
    """
    config = model.config
    if not isinstance(model, TfmDecoderForCausalLM):
        raise InputError(f"{type(model).__name__}: GGUF files are for causal LMs (TfmDecoderForCausalLM); try onnx")
    window = config.sliding_window
    if "sliding_attention" in config.layer_types and window < config.max_position_embeddings:
        raise InputError(
            f"sliding_window={window}: llama.cpp has full attention in every layer of Llama, Mistral and Qwen3; the "
            f"window must cover all max_position_embeddings={config.max_position_embeddings}"
        )
    return "qwen3" if config.qk_norm else "gpt2" if config.position_embedding_type == "learned" else "llama"


def pre_tokenizer_rule(tokenizer: PreTrainedTokenizerFast) -> str:
    """
    Return llama.cpp's name of the rule by which a tokenizer splits text into words.

    Raises:
        InputError: it is not byte-level BPE, or its rule is not supported.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    kind, rule = state["model"]["type"], state["pre_tokenizer"] or {}
    steps = rule.get("pretokenizers", [rule])
    known = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    normalizer = (state["normalizer"] or {}).get("type")
    if kind != "BPE" or "ByteLevel" not in [step.get("type") for step in steps]:
        raise InputError(f"the tokenizer is no byte-level BPE but {kind}: only that can go into a GGUF file here")
    if not state["model"]["merges"]:
        raise InputError("the tokenizer has no merges (kind bytes): llama.cpp reads no byte-level BPE without")
    for name, expected in _PRE_TOKENIZERS.items():
        # llama.cpp ignores NFC, as in Qwen's own files: text in decomposed letters gets other tokens.
        if known == expected and normalizer in (None, "NFC"):
            if bool(state["model"].get("ignore_merges")) == (name == "llama-bpe"):
                return name
    described = " + ".join([*filter(None, [normalizer]), *(str(step.get("type")) for step in steps)])
    raise InputError(
        f"pre_tokenizer {described} of tokenizer.json: llama.cpp has no such rule known here; "
        f"known are {', '.join(_PRE_TOKENIZERS)}"
    )


def frame_of(tokenizer: PreTrainedTokenizerFast) -> tuple[bool, bool]:
    """
    Return whether a tokenizer puts bos before a text and whether it puts eos after it.

    Raises:
        InputError: it adds other tokens.
    """
    framed, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    bos, eos = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    frames = {(begins, ends): begins * bos + bare + ends * eos for begins in (False, True) for ends in (False, True)}
    for frame, tokens in frames.items():
        if framed == tokens:
            return frame
    raise InputError(
        f"the tokenizer makes {tokenizer.convert_ids_to_tokens(framed)} of 'a': llama.cpp can add bos "
        f"({tokenizer.bos_token}) before a text and eos ({tokenizer.eos_token}) after it, and nothing else"
    )


def write_gguf(
    file: Path,
    native: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rule: str,
    frame: tuple[bool, bool],
    dtype: str,
    name: str,
) -> None:
    """
    Write a native Llama, Qwen3 or GPT-2 and its tokenizer as a GGUF file of version 3.

    Args:
        rule, frame: from [`pre_tokenizer_rule`] and [`frame_of`].
    """
    import gguf

    config = native.config
    arch = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[config.model_type]
    writer = gguf.GGUFWriter(file, config.model_type)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[{"f32": "ALL_F32"}.get(dtype, f"MOSTLY_{dtype.upper()}")])
    if dtype == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(heads)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        _write_rope(writer, native, head_dim)
    _write_tokenizer(writer, native, tokenizer, rule, frame)

    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tied = set(native._tied_weights_keys) if config.tie_word_embeddings else set()
    for key, tensor in native.state_dict().items():
        if key in tied:
            continue
        tensor = tensor.float()
        if config.model_type == "gpt2" and key.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            tensor = tensor.t()
        if config.model_type == "llama" and "_proj." in key and key.split(".")[-2] in ("q_proj", "k_proj"):
            tensor = _interleaved(tensor, head_dim)
        module, _, kind = key.rpartition(".")
        is_f32 = tensor.ndim == 1 or key.endswith("wpe.weight")
        type_name = "F32" if is_f32 else "F16" if dtype == "q8_0" and tensor.shape[-1] % 32 else dtype.upper()
        quantization = gguf.GGMLQuantizationType[type_name]
        data = gguf.quantize(tensor.contiguous().numpy(), quantization)
        writer.add_tensor(f"{names.get_name(module)}.{kind}", data, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCppRunner:
    """A GGUF file in llama.cpp, with a cache in 32 bits, so that only the file's weights are rounded."""

    def __init__(self, file: Path, context: int, rows: Rows):
        import llama_cpp

        f32 = 0  # GGML_TYPE_F32
        length = min(context, max(map(len, rows)) + 64)
        self.model = llama_cpp.Llama(
            str(file),
            n_ctx=length,
            n_batch=length,
            n_threads=torch.get_num_threads(),
            n_threads_batch=torch.get_num_threads(),
            logits_all=True,
            type_k=f32,
            type_v=f32,
            verbose=False,
        )
        self.runtime = f"llama.cpp, llama-cpp-python {llama_cpp.__version__}"

    def outputs(self, rows: Rows) -> list[Weights]:
        outputs = []
        for row in rows:
            self.model.reset()
            self.model.eval(row)
            outputs.append({"logits": torch.from_numpy(self.model.scores[: len(row)].copy())})
        return outputs

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        self.model.reset()
        tokens = self.model.generate(prompt, temp=0.0, repeat_penalty=1.0)
        return [next(tokens) for _ in range(count)]

    def refuse_other_tokens(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """
        Raises:
            InputError: llama.cpp splits a text into other tokens than the tokenizer.
        """
        special = "".join(dict.fromkeys(tokenizer.all_special_tokens[:8]))
        odd = f"I'll'd 1234567 ½ don't!?  \n\n\t x  é 東京 🙂\r\n {special} end "
        for text in (*TEXTS, odd):
            expected, actual = tokenizer(text)["input_ids"], self.model.tokenize(text.encode(), special=True)
            if expected != actual:
                place = next((i for i, (a, b) in enumerate(zip(expected, actual)) if a != b), -1)
                raise InputError(
                    f"llama.cpp splits {text!r} into other tokens from number {place + 1} on: nothing was written; "
                    "please report this tokenizer"
                )


def _as_matrices() -> dict[str, Any]:
    """Return the option by which newer versions of transformers load GGUF weights as plain matrices."""
    import transformers

    return (
        {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}
    )


def _tokenizer_of(source: Path) -> PreTrainedTokenizerFast:
    if not (source / "tokenizer.json").is_file():
        raise InputError(f"{source}: no tokenizer.json, which a GGUF file includes")
    with explain(f"{source}: tokenizer"):
        return AutoTokenizer.from_pretrained(source)


def _refuse_fields(native: PreTrainedModel) -> None:
    """Raise `InputError` for fields that these families support in transformers but not in llama.cpp."""
    config = native.config
    act = config.activation_function if config.model_type == "gpt2" else config.hidden_act
    allowed = ("gelu_new", "gelu_pytorch_tanh") if config.model_type == "gpt2" else ("silu", "swish")
    if act not in allowed:
        raise InputError(f"hidden_act={act!r}: llama.cpp computes {type(native).__name__} with {allowed[0]}")
    rope = getattr(config, "rope_parameters", None) or {}
    scalings = ("default", "linear", *(["llama3"] if config.model_type == "llama" else []))
    if (kind := rope.get("rope_type", "default")) not in scalings:
        raise InputError(
            f"rope_parameters.rope_type={kind!r}: supported for {type(native).__name__} are {', '.join(scalings)}"
        )
    for field in ("attention_bias", "mlp_bias"):
        if getattr(config, field, False):
            raise InputError(f"{field}=True: transformers does not read these biases from GGUF files")
    if getattr(config, "add_cross_attention", False):
        raise InputError("add_cross_attention=True: llama.cpp has no cross-attention in GPT-2")


def _write_rope(writer: Any, native: PreTrainedModel, head_dim: int) -> None:
    import gguf

    rope, rotary = native.config.rope_parameters, native.model.rotary_emb
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(head_dim)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "llama3":
        # The factor by which scaling slows each frequency down.
        plain = rope["rope_theta"] ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / rotary.inv_freq.float()).numpy())


def _interleaved(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Return a projection with rows in llama.cpp's order, alternating between the halves of each head."""
    heads = tensor.unflatten(0, (-1, 2, head_dim // 2))
    return heads.transpose(1, 2).reshape(tensor.shape)


def _write_tokenizer(
    writer: Any, native: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rule: str, frame: tuple[bool, bool]
) -> None:
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, kinds = [], []
    for number in range(native.config.vocab_size):
        tokens.append(by_id.get(number, f"[PAD{number}]"))
        special = _CONTROL if number in added and added[number].special else _USER_DEFINED
        kinds.append(_UNUSED if number not in by_id else special if number in added else _NORMAL)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])

    ends = native.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [tokenizer.eos_token_id if ends is None else ends]
    ids = {
        "bos": tokenizer.bos_token_id,
        "eos": ends[0],
        "eot": ends[1] if len(ends) > 1 else None,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
        "mask": tokenizer.mask_token_id,
    }
    for name, number in ids.items():
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(frame[0])
    writer.add_add_eos_token(frame[1])
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
