"""Gaps in held-out text: their places, how each method fills them, which fillings are right, and the script."""

import json

import evaluate_infilling
import pytest
import torch
from pretraining_runs import TEXTS
from tiny import build

from hf_tfm import InputError
from hf_tfm.data.tokenizer import encode_text, train_tokenizer
from hf_tfm.tasks import infilling
from hf_tfm.tasks.infilling import FILL_METHODS, EncodedGaps, GappedText, cut_gaps, measure_infilling


DOCUMENTS = ["  ".join(TEXTS[i : i + 3]) for i in range(0, 60, 3)]


@pytest.fixture(scope="module")
def tokenizers():
    return {
        style: train_tokenizer(TEXTS, vocab_size=340, style=style, num_spare_tokens=10)
        for style in ("decoder", "encoder")
    }


def model_for(way: str, tokenizers):
    """Return a model for a method, with random weights, and its tokenizer."""
    tokenizer = tokenizers["encoder" if way in ("once", "iterative") else "decoder"]
    name = "TfmEncoderForMaskedLM" if way in ("once", "iterative") else "TfmDecoderForCausalLM"
    ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("pad", "bos", "eos", "mask")}
    ids |= {} if tokenizer.cls_token_id is None else {"cls_token_id": 2, "sep_token_id": 3}
    if name.startswith("TfmDecoder"):
        ids.pop("mask_token_id")
    return build(name, vocab_size=len(tokenizer), max_position_embeddings=256, **ids), tokenizer


def test_gaps_are_whole_words_and_the_same_for_every_model():
    cutting = dict(words=30, gaps=3, longest_gap=4, per_text=1)
    texts = list(cut_gaps(DOCUMENTS, **cutting, seed=1))
    assert len(texts) == len(DOCUMENTS) and texts == list(cut_gaps(DOCUMENTS, **cutting, seed=1))
    assert texts != list(cut_gaps(DOCUMENTS, **cutting, seed=2))
    lengths = [len(gap.split()) for text in texts for gap in text.missing]
    assert set(lengths) == {1, 2, 3, 4}
    for text, document in zip(texts, DOCUMENTS):
        whole = "".join(part + gap for part, gap in zip(text.parts, [*text.missing, ""], strict=True))
        assert document.startswith(whole) and len(whole.split()) == 30
        assert all(part.strip() for part in text.parts[:-1]), "gaps touch"
        assert all(gap.startswith(" ") for gap in text.missing)
    assert list(cut_gaps(["few words", DOCUMENTS[0]], 30)) == list(cut_gaps(DOCUMENTS[:1], 30))
    several = list(cut_gaps(DOCUMENTS[:1], words=20, per_text=3))
    whole = "".join(part + gap for text in several for part, gap in zip(text.parts, [*text.missing, ""], strict=True))
    assert len(several) == 3 and DOCUMENTS[0].startswith(whole)
    with pytest.raises(InputError, match="leave nothing of 30"):
        next(cut_gaps(DOCUMENTS, 30, gaps=6, longest_gap=4))


def test_a_gap_is_right_if_all_of_its_tokens_are(tokenizers, monkeypatch):
    model, tokenizer = model_for("left", tokenizers)
    texts = [GappedText(["Once there", " a", "."], [" was", " miller lived"])] * 3 + [
        GappedText(["Once", " was a", "."], [" there by the", " hunter"])
    ]

    def nearly(model, tokenizer, passages: list[EncodedGaps]):
        filled = [[list(ids) for ids in passage.missing] for passage in passages]
        for passage in filled:
            passage[-1][-1] = 5  # the last token of each passage's last gap is wrong
        return filled

    monkeypatch.setitem(FILL_METHODS, "nearly", nearly)
    figures = measure_infilling(model, tokenizer, texts, "nearly", batch_size=3)
    tokens = [len(ids) for text in texts for ids in encode_text(tokenizer, text.missing)]
    assert figures["gaps_right"].value == 0.5 and figures["gaps_right"].n == 8
    assert figures["tokens_right"].value == pytest.approx(1 - 4 / sum(tokens))
    by_words = {name: (figure.value, figure.n) for name, figure in figures.items() if "word" in name}
    assert by_words == {"gaps_right, 1 word": (0.75, 4), "gaps_right, 2 words": (0.0, 3), "gaps_right, 3 words": (1, 1)}


@pytest.mark.parametrize("way", FILL_METHODS)
def test_every_method_fills_every_gap_in_any_batch(way, tokenizers):
    model, tokenizer = model_for(way, tokenizers)
    texts = list(cut_gaps(DOCUMENTS[:3], words=20, gaps=2, longest_gap=2))
    passages = [EncodedGaps.of(tokenizer, text) for text in texts]
    together = FILL_METHODS[way](model, tokenizer, passages)
    assert [FILL_METHODS[way](model, tokenizer, [one])[0] for one in passages] == together
    for passage, filled in zip(passages, together, strict=True):
        assert len(filled) == 2
        if way != "denoise_free":
            assert [len(ids) for ids in filled] == [len(ids) for ids in passage.missing]
        assert not {token for ids in filled for token in ids} & set(tokenizer.all_special_ids)
    figures = measure_infilling(model, tokenizer, texts, way, batch_size=2)
    assert figures["gaps_right"].n == 2 * len(texts) and ("tokens_right" in figures) == (way != "denoise_free")


@torch.no_grad()
def test_left_context_is_greedy_search(tokenizers):
    model, tokenizer = model_for("left", tokenizers)
    text = next(cut_gaps(DOCUMENTS, words=20, gaps=2, longest_gap=2))
    passage = EncodedGaps.of(tokenizer, text)
    (filled,) = infilling.fill_from_left(model, tokenizer, [passage])
    ids = [tokenizer.bos_token_id]
    for part, missing, got in zip(passage.parts, passage.missing, filled):
        ids += part
        for _ in missing:
            logits = model(torch.tensor([ids])).logits[0, -1]
            logits[tokenizer.all_special_ids] = -torch.inf
            ids.append(int(logits.argmax()))
        assert ids[-len(missing) :] == list(got)


@pytest.mark.parametrize("denoise", [False, True])
@torch.no_grad()
def test_what_missing_words_cost(denoise, tokenizers):
    """By hand, one row at a time."""
    model, tokenizer = model_for("left", tokenizers)
    texts = list(cut_gaps(DOCUMENTS, words=20, gaps=2, longest_gap=2))[:4]
    passages = [EncodedGaps.of(tokenizer, text) for text in texts]
    spare = tokenizer.convert_tokens_to_ids([f"<|spare_{i}|>" for i in range(5)])
    expected = []
    for (a, b, c), (x, y) in passages:
        inputs = [tokenizer.bos_token_id, *a, *x, *b, *y, *c]
        places, prefix = [*range(1 + len(a), 1 + len(a + x)), *range(1 + len(a + x + b), 1 + len(a + x + b + y))], 0
        if denoise:
            inputs = [tokenizer.bos_token_id, spare[0], *a, spare[3], *b, spare[4], *c]
            prefix = len(inputs)
            inputs += [spare[3], *x, spare[4], *y]
            places = [*range(prefix + 1, prefix + 1 + len(x)), *range(prefix + 2 + len(x), len(inputs))]
        mask = (torch.arange(len(inputs)) < prefix)[None]
        logits = model(torch.tensor([inputs]), prefix_mask=mask).logits[0]
        logits[:, tokenizer.all_special_ids] = -torch.inf
        expected.append(-sum(float(logits[place - 1].log_softmax(-1)[inputs[place]]) for place in places))
    assert infilling.missing_text_nats(model, tokenizer, passages, denoise) == pytest.approx(expected, rel=1e-4)
    figures = measure_infilling(model, tokenizer, texts, "denoise" if denoise else "left", batch_size=3)
    size = len("".join("".join(text.missing) for text in texts))
    assert figures["missing_bits_per_byte"].value == pytest.approx(sum(expected) / size / 0.6931472, rel=1e-4)


def test_the_script(tokenizers, tmp_path, capsys):
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    fields = ["--text", str(tmp_path / "text.jsonl"), "--words", "20", "--gaps", "2", "--longest_gap", "2"]
    for way, ways in (("left", ["left", "denoise"]), ("once", [])):
        model, tokenizer = model_for(way, tokenizers)
        folder = tmp_path / way
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        given = ["--model", str(folder), "--output_dir", str(tmp_path / f"{way}-results"), *fields]
        assert evaluate_infilling.main([*given, *(["--ways", *ways] if ways else [])]) == 0
        tasks = json.loads((tmp_path / f"{way}-results" / "evaluation.json").read_text())["tasks"]
        assert [task["settings"]["way"] for task in tasks] == (ways or ["once", "iterative"])
        assert all(task["results"]["gaps_right"]["n"] == 120 for task in tasks)
    capsys.readouterr()
    for changes, said in (
        (["--ways", "right"], "--ways right: there are once, iterative"),
        (["--words", "900"], "no document has 900 words"),
        (["--words", "50"], ""),
    ):
        code = evaluate_infilling.main(["--model", str(tmp_path / "left"), *fields, *changes, "--output_dir",
                                        str(tmp_path / "other")])  # fmt: skip
        assert code == (2 if said else 0) and said in capsys.readouterr().err
