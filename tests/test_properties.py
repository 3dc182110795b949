"""
Properties that hold for any input of a user: every valid combination of switches, any text, any command line.

Hypothesis draws the examples, by default the same ones every time; `HF_TFM_EXAMPLES=500` tries 500 new ones.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tiny import BOS, CLS, EOS, MASK, PAD, SEP
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

import hf_tfm
from hf_tfm import TfmDecoderConfig, TfmEncoderConfig
from hf_tfm.apps import cli
from hf_tfm.core.errors import InputError
from hf_tfm.data.objectives import Masked, causal
from hf_tfm.data.packed_blocks import PackedBlocks
from hf_tfm.data.tokenizer import train_tokenizer
from hf_tfm.data.tokens import TokenStore
from hf_tfm.models.configuration_tfm import ACTIVATIONS


EXAMPLES = os.environ.get("HF_TFM_EXAMPLES")


def examples(count: int):
    """Return settings for a number of examples, without a time limit."""
    return settings(
        max_examples=int(EXAMPLES or count),
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )


@st.composite
def switches(draw, family: str) -> dict:
    """Draw a valid combination of the switches of a family, for a model of one to three small layers."""
    heads = draw(st.sampled_from([1, 2, 4]))
    layers = draw(st.integers(1, 3))
    positions = draw(st.sampled_from(["rope", "learned", "sinusoidal", "none"]))
    norm = draw(st.sampled_from(["rmsnorm", "layernorm"]))
    window = draw(st.sampled_from([None, 2 if family == "decoder" else 1, 3, 40]))
    layer_types = None
    if window is not None:
        kinds = st.sampled_from(["full_attention", "sliding_attention"])
        layer_types = draw(st.lists(kinds, min_size=layers, max_size=layers))
        assume("sliding_attention" in layer_types)
    fields = dict(
        vocab_size=97,
        hidden_size=draw(st.sampled_from([16, 24])),
        intermediate_size=draw(st.sampled_from([None, 20])),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=draw(st.sampled_from([n for n in (1, 2, 4) if heads % n == 0])),
        head_dim=draw(st.sampled_from([2, 8])),
        hidden_act=draw(st.sampled_from(sorted(ACTIVATIONS))),
        norm_type=norm,
        norm_bias=norm == "layernorm" and draw(st.booleans()),
        norm_position=draw(st.sampled_from(["pre", "post"])),
        position_embedding_type=positions,
        max_position_embeddings=48,
        sliding_window=window,
        layer_types=layer_types,
        type_vocab_size=draw(st.sampled_from([0, 2])),
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        **{
            name: draw(st.booleans())
            for name in ("gated_mlp", "mlp_bias", "attention_bias", "qk_norm", "attention_gate",
                         "value_residual", "embedding_norm", "scale_embeddings", "tie_word_embeddings")
        },
    )  # fmt: skip
    if family == "decoder":
        fields["final_logit_softcapping"] = draw(st.sampled_from([None, 5.0]))
    else:
        fields.update(cls_token_id=CLS, sep_token_id=SEP, mask_token_id=MASK, decoder_bias=draw(st.booleans()))
    return fields


def train_save_reload(config, model_class, auto_class) -> torch.nn.Module:
    """Check that a training step lowers the loss and that a saved folder gives the same logits; return its model."""
    torch.manual_seed(0)
    model = model_class(config)
    ids = torch.randint(7, config.vocab_size, (2, 12))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing or missing == ["model.segment_embeddings.weight"], missing
    optimizer.step()
    assert model(input_ids=ids, labels=ids).loss < loss
    model.eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        again = auto_class.from_pretrained(folder)
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
        # Padding does not change outputs.
        mask = torch.ones(1, 12, dtype=torch.long)
        padded, padded_mask = torch.full((1, 15), PAD), torch.zeros(1, 15, dtype=torch.long)
        padded[:, :12], padded_mask[:, :12] = ids[:1], mask
        close = dict(atol=2e-5, rtol=2e-5)
        alone = again(input_ids=ids[:1], attention_mask=mask).logits
        torch.testing.assert_close(again(input_ids=padded, attention_mask=padded_mask).logits[:, :12], alone, **close)
    return again


@examples(25)
@given(switches("decoder"))
def test_any_decoder_trains_saves_reloads_and_generates(fields):
    config = TfmDecoderConfig(**fields)
    model = train_save_reload(config, hf_tfm.TfmDecoderForCausalLM, AutoModelForCausalLM)
    ids = torch.randint(7, config.vocab_size, (2, 5))
    ways = [model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=cached) for cached in (True, False)]
    assert ways[0].shape[1] <= 11 and torch.equal(*ways)


@examples(25)
@given(switches("encoder"))
def test_any_encoder_trains_saves_reloads_and_fills_masks(fields):
    config = TfmEncoderConfig(**fields)
    model = train_save_reload(config, hf_tfm.TfmEncoderForMaskedLM, AutoModelForMaskedLM)
    filled = model.generate(torch.tensor([[CLS, 20, MASK, MASK, 30, SEP]]))
    assert MASK not in filled[0]


@examples(60)
@given(
    st.sampled_from([TfmDecoderConfig, TfmEncoderConfig]),
    st.dictionaries(
        st.sampled_from(["hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "num_hidden_layers",
                         "sliding_window", "max_position_embeddings", "pad_token_id", "norm_eps", "hidden_dropout",
                         "hidden_act", "norm_type", "rope_parameters", "layer_types"]),
        st.one_of(st.integers(-3, 70), st.floats(-1, 2), st.text(max_size=5), st.none(), st.lists(st.text(max_size=3))),
        min_size=1, max_size=3,
    ),
)  # fmt: skip
def test_a_wrong_config_is_refused_in_one_line_or_works(config_class, fields):
    size = dict(vocab_size=97, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    try:
        config = config_class(**{**size, **fields})
    except Exception as error:  # any error must say in one line what to change
        assert isinstance(error, ValueError | TypeError) and len(str(error).strip().splitlines()) == 1, repr(error)
        return
    assume(config.hidden_size * config.num_hidden_layers < 4000)
    model_class = {TfmDecoderConfig: hf_tfm.TfmDecoderModel, TfmEncoderConfig: hf_tfm.TfmEncoderModel}[config_class]
    assert torch.isfinite(model_class(config).eval()(torch.tensor([[7]])).last_hidden_state).all()


# Any Unicode without lone surrogates (no file contains them), empty lines, NUL bytes, long lines.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
HARD = [
    "",
    "\n",
    "\n\n \t\r\n",
    "\x00",
    "a\x00b",
    "👩‍👩‍👧‍👦 ﷽ e\u0301",
    "x" * 5000,
    "\ufeff",
    "[MASK] <|pad|> [CLS]",
    "\u202eabc",
    "ß" * 300,
]


@pytest.fixture(scope="module")
def tokenizers() -> dict:
    texts = [
        "The king lived in a castle by the sea.",
        "“Who are you?” asked the fox – and ran.",
        "Æther, naïve, 北京",
    ] * 20
    return {
        style: train_tokenizer(texts, vocab_size=400, style=style) for style in ("decoder", "encoder")
    } | {"bytes": train_tokenizer(texts, vocab_size=300, style="decoder", kind="bytes")}  # fmt: skip


@pytest.mark.parametrize("style", ["decoder", "bytes"])
@examples(120)
@given(text=st.one_of(TEXT, st.sampled_from(HARD)))
def test_byte_level_tokenizers_restore_any_text(tokenizers, style, text):
    tokenizer = tokenizers[style]
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize("style", ["decoder", "encoder"])
@examples(40)
@given(texts=st.lists(st.one_of(TEXT, st.sampled_from(HARD)), min_size=1, max_size=8), seed=st.integers(0, 3))
def test_any_text_goes_through_store_packing_and_objective(tokenizers, style, texts, seed):
    tokenizer = tokenizers[style]
    try:
        store = TokenStore.from_texts(texts, tokenizer)
    except InputError as error:
        assert not any(text.strip() for text in texts), error
        return
    blocks = PackedBlocks(store, 32, seed=seed, pad_token_id=tokenizer.pad_token_id)
    rows = blocks.rows(np.arange(blocks.num_blocks))
    real = rows["sequence_ids"] > 0
    # Every token occurs once.
    assert np.array_equal(np.sort(rows["input_ids"][real]), np.sort(np.asarray(store.tokens)))
    inputs = causal(rows) if style == "decoder" else Masked(tokenizer, 0.3, seed=seed)(rows)
    predicted = inputs["labels"] != -100
    assert not predicted[torch.from_numpy(~real)].any()
    if style == "encoder":
        assert not np.isin(rows["input_ids"][predicted.numpy()], tokenizer.all_special_ids).any()


def test_a_line_of_a_megabyte(tokenizers):
    text = "It was a dark night, and nobody spoke. " * 27_000
    store = TokenStore.from_texts([text], tokenizers["decoder"])
    assert tokenizers["decoder"].decode(np.asarray(store.tokens).tolist(), skip_special_tokens=True) == text


COMMANDS = [
    "generate",
    "chat",
    "fill-mask",
    "predict",
    "inspect",
    "convert",
    "export",
    "merge",
    "verify",
    "plan",
    "card",
]
ARGUMENT = st.one_of(
    st.sampled_from(["nowhere", "/nowhere", ".", "", "--help-me", "--to", "qwen3", "--max-new-tokens", "-1", "0", "nan",
                     "--temperature", "--top-k", "--seed", "--gpu", "none", "--tokens", "1e400", "--length",
                     "--picture"]),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8),
)  # fmt: skip


@examples(80)
@given(st.sampled_from(COMMANDS), st.lists(ARGUMENT, max_size=5))
def test_any_command_line_ends_with_an_exit_code_and_one_line(command, arguments):
    """No traceback, and no file is written, because no argument names a model."""
    import contextlib
    import io

    out, err, here = io.StringIO(), io.StringIO(), os.getcwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        os.chdir(folder)
        try:
            code = cli.main([command, *arguments])
        except SystemExit as exit_:  # argparse's way
            code = exit_.code
        finally:
            os.chdir(here)
        assert list(Path(folder).iterdir()) == []
    assert code in (0, 2), (code, err.getvalue())
    if code == 2:
        assert err.getvalue().strip().splitlines()[-1].count("error:") == 1, err.getvalue()
