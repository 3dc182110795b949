"""Decoding methods side by side: probabilities against a forward pass, cuts recomputed, output as text and HTML."""

import io
import itertools
import re
from pathlib import Path

import pytest
import tiny
import torch
from parity_table import native_model
from rich.console import Console
from tiny import build_tokenizer

from hf_tfm.apps import formatting, html_report, terminal_report
from hf_tfm.apps.cli import main
from hf_tfm.tasks.decoding import (
    Decoding,
    TokenCandidate,
    TokenChoice,
    compare_decodings,
    decoding_methods,
    distinct,
    token_text,
)
from hf_tfm.tasks.generation import encode_prompt


pytestmark = pytest.mark.quick


PROMPT = "the cat sat on"
MODELS = {
    "qwen3": lambda: tiny.build("TfmDecoderForCausalLM", eos_token_id=None),
    "mistral": lambda: tiny.build("TfmDecoderForCausalLM", "mistral", eos_token_id=None),
    "native": lambda: native_model("llama", "CausalLM", vocab_size=tiny.VOCAB_SIZE),
}
SWITCHES = dict(temperature=0.7, top_k=7, top_p=0.6, min_p=0.2, beams=3)


def by_hand(method: str, logits: torch.Tensor) -> torch.Tensor | None:
    """Return a method's probabilities from the logits of one position, step by step."""
    shares = logits.softmax(-1)
    if method.startswith("beam"):
        return None
    if method.startswith("temperature"):
        return (logits / 0.7).softmax(-1)
    if method.startswith("top-k"):
        keep = shares >= shares.sort(descending=True).values[6]
    elif method.startswith("top-p"):
        order = shares.argsort(descending=True)
        enough = next(n for n in range(1, len(order) + 1) if shares[order[:n]].sum() >= 0.6)
        keep = torch.zeros_like(shares, dtype=torch.bool)
        keep[order[:enough]] = True
    elif method.startswith("min-p"):
        keep = shares >= 0.2 * shares.max()
    else:
        keep = torch.ones_like(shares, dtype=torch.bool)
    return shares * keep / (shares * keep).sum()


@pytest.mark.parametrize("name", MODELS)
def test_probabilities_are_those_of_a_forward_pass(name, tokenizer):
    model = MODELS[name]().eval()
    decodings = compare_decodings(model, tokenizer, PROMPT, decoding_methods(**SWITCHES), 12, seed=3, candidates=4)
    ids, _ = encode_prompt(model, tokenizer, PROMPT)
    assert [decoding.method.split()[0] for decoding in decodings] == [
        "greedy", "beam", "temperature", "top-k", "top-p", "min-p",
    ]  # fmt: skip
    for decoding in decodings:
        tokens = torch.tensor([[choice.token for choice in decoding.choices]])
        assert tokens.shape[1] == 12
        with torch.no_grad():
            logits = model(input_ids=torch.cat([ids, tokens], 1)).logits[0, ids.shape[1] - 1 : -1].double()
        for choice, place in zip(decoding.choices, logits, strict=True):
            shares = place.softmax(-1)
            assert choice.probability == pytest.approx(float(shares[choice.token]), rel=1e-3)
            assert choice.entropy == pytest.approx(float(-(shares * shares.log2()).sum()), abs=1e-3)
            assert choice.rank == int((shares > shares[choice.token] * 1.0001).sum()) + 1
            best = shares.topk(4).values.tolist()
            assert [one.probability for one in choice.candidates][:4] == pytest.approx(best, rel=1e-3)
            adjusted = by_hand(decoding.method, place)
            if adjusted is None:
                assert choice.adjusted is None and choice.num_remaining is None
                continue
            assert choice.adjusted == pytest.approx(float(adjusted[choice.token]), rel=1e-3) and choice.adjusted > 0
            assert choice.num_remaining == int((adjusted > 0).sum())
            [own] = [one for one in choice.candidates if one.token == choice.token]
            assert own.adjusted == pytest.approx(choice.adjusted, rel=1e-3)
        if decoding.method == "greedy":
            assert all(choice.rank == 1 for choice in decoding.choices)


def test_a_repetition_penalty_changes_adjusted_probabilities_only(tokenizer):
    model = MODELS["qwen3"]()
    [plain] = compare_decodings(model, tokenizer, PROMPT, {"greedy": decoding_methods()["greedy"]}, 1)
    methods = decoding_methods(repetition_penalty=5.0)
    [penalised] = compare_decodings(model, tokenizer, PROMPT, {"greedy": methods["greedy"]}, 1)
    assert plain.choices[0].candidates[0].probability == penalised.choices[0].candidates[0].probability
    ids, _ = encode_prompt(model, tokenizer, PROMPT)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, -1]
    seen = ids[0].unique()
    logits[seen] = torch.where(logits[seen] > 0, logits[seen] / 5, logits[seen] * 5)
    first = penalised.choices[0]
    assert first.token == int(logits.argmax())
    assert first.adjusted == pytest.approx(float(logits.softmax(-1).max()), rel=1e-4)


def test_enough_beams_find_the_likeliest_text(tokenizer):
    """With as many beams as there are tokens the search over two tokens is exhaustive."""
    model = MODELS["qwen3"]()
    methods = {"beam": dict(decoding_methods(beams=tiny.VOCAB_SIZE), greedy=0)[f"beam search, {tiny.VOCAB_SIZE} beams"]}
    [found] = compare_decodings(model, tokenizer, PROMPT, methods, 2)
    ids, _ = encode_prompt(model, tokenizer, PROMPT)
    firsts = torch.arange(tiny.VOCAB_SIZE)[:, None]
    with torch.no_grad():
        logs = model(input_ids=torch.cat([ids.repeat(len(firsts), 1), firsts], 1)).logits[:, -2:].log_softmax(-1)
    total = logs[0, 0][:, None] + logs[:, 1]
    best = divmod(int(total.argmax()), tiny.VOCAB_SIZE)
    assert tuple(choice.token for choice in found.choices) == best
    assert len(found.alternatives) == 2 and len({found.text, *found.alternatives}) == 3


def test_samples_depend_on_the_seed(tokenizer):
    model, methods = MODELS["qwen3"](), decoding_methods(temperature=2.0)
    tokens = [
        [
            [choice.token for choice in one.choices]
            for one in compare_decodings(model, tokenizer, PROMPT, methods, 8, seed)
        ]
        for seed in (0, 0, 1)
    ]
    assert tokens[0] == tokens[1]
    same = [first == other for first, other in zip(tokens[0], tokens[2])]
    assert same[:2] == [True, True] and not all(same[2:]), "greedy and beams draw nothing"


def test_generation_settings_of_the_model_are_ignored(tokenizer):
    model = MODELS["qwen3"]()
    methods = decoding_methods()
    expected = compare_decodings(model, tokenizer, PROMPT, methods, 12)
    model.generation_config.update(
        no_repeat_ngram_size=1, typical_p=0.3, min_new_tokens=9, suppress_tokens=[5, 6, 7, 8], length_penalty=-2.0
    )
    own = model.generation_config
    assert compare_decodings(model, tokenizer, PROMPT, methods, 12) == expected
    assert model.generation_config is own


def test_texts_of_tokens_join_to_the_whole_text(tokenizer):
    text = "naïve 漢字 — the  cat\nsat 🦜 on"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    before = tokenizer("the", add_special_tokens=False)["input_ids"]
    pieces = [token_text(tokenizer, [*before, *ids[:n]], token) for n, token in enumerate(ids)]
    assert "".join(pieces) == text
    assert "" in pieces, "part of a character is nothing yet"


def test_figures_measure_repetition():
    assert distinct([1, 2, 1, 2, 1], 1) == 2 / 5 and distinct([1, 2, 1, 2, 1], 2) == 2 / 4 and distinct([1], 2) == 1

    def choice(token: int, probability: float) -> TokenChoice:
        return TokenChoice(token, "x", probability, None, 3.0, 1, None, ())

    text = Decoding("any", tuple(choice(n % 4, 0.25 if n else 0.5) for n in range(12)))
    figures = text.figures()
    assert figures["tokens"] == 12 and figures["distinct-1"] == 4 / 12 and figures["distinct-3"] == 4 / 10
    assert figures["surprise"] == pytest.approx((1 + 11 * 2) / 12) and figures["entropy"] == 3
    assert figures["repeat-4"] == pytest.approx(1 - 4 / 9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    tiny.build("TfmDecoderForCausalLM", eos_token_id=None).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def test_the_command_prints_and_writes_a_comparison(folder, tmp_path, capsys):
    page = tmp_path / "compared.html"
    arguments = ["generate", str(folder), "<b>the cat", "--max-new-tokens", "6", "--compare", "--min-p", "0.1"]
    assert main([*arguments, "--beams", "2", "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown, "no colours where nobody sees them"
    for said in (
        "greedy",
        "beam search, 2 beams",
        "temperature 0.8",
        "top-k 50",
        "top-p 0.9",
        "min-p 0.1",
        "distinct-2",
    ):
        assert said in shown
    assert shown.count("<b>the cat") == 6
    html = page.read_text()
    assert "<b>the cat" not in html and html.count("&lt;b&gt;the cat") == 6
    assert html.count('class="tok" tabindex="0"') == 36 and "http" not in html, "the page needs nothing else"
    assert main([*arguments, "--candidates"]) == 0
    assert "entropy" in (listed := capsys.readouterr().out) and len(listed.splitlines()) > len(shown.splitlines()) + 36


@pytest.mark.parametrize(
    "options, message",
    [
        (["--html", "x.html"], "--html and --candidates need --compare"),
        (["--top-p", "1.5"], "'--top-p': must be at most 1, not 1.5"),
        (["--compare", "--html", "{folder}/nowhere/x.html"], "cannot be written"),
        (["--compare", "--temperature", "0"], "--temperature 0: with --compare"),
        (["--compare", "--beams", "1"], "--beams 1: with --compare"),
    ],
)
def test_invalid_options_are_refused(folder, capsys, options, message):
    arguments = ["generate", str(folder), "the cat", "--max-new-tokens", "2"]
    code = main([*arguments, *(option.format(folder=folder) for option in options)])
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_colours_range_from_likely_to_unlikely():
    colours = [formatting.colour_of(share) for share in (1.0, 0.5, 0.1, 0.01, 1e-4, 1e-9)]
    assert all(one != other for one, other in itertools.pairwise(colours[:5])) and colours[4:] == [colours[4]] * 2
    assert colours[0][1] > colours[0][0] and colours[-1][0] > colours[-1][1], "from green to red"


def test_generated_text_cannot_control_the_terminal():
    evil = TokenChoice(1, "\x1b[2Jboo\nline", 0.5, 0.5, 1.0, 1, 3, (TokenCandidate(1, "\x1b[2J", 0.5, 0.5),))
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", markup=False)
    terminal_report.print_comparison("a\x1b]0;", [Decoding("any", (evil,))], candidates=True, console=console)
    shown = console.file.getvalue()
    assert "\x1b[38;2;31;35;40;48;2;" in shown
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert "\x1b" not in plain and "\\x1b[2Jboo" in plain
    html = html_report.comparison_as_html("a\x1b]0;", [Decoding("any", (evil,))])
    assert "\x1b" not in html.replace("a\x1b]0;", "")
