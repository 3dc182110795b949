"""The mixture of denoisers: what becomes of a text, that nothing of it is lost, that a model learns to fill gaps."""

import json
import os
import signal
import sys

import numpy as np
import pretrain_clm
import pytest
import torch
from pretraining_runs import OVERRIDES, TEXTS, assert_equal_weights
from tiny import build
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_tfm import InputError, TfmDecoderConfig, TfmDecoderForCausalLM
from hf_tfm.data.denoisers import SPANS, Denoisers, DenoisingTokens, fill_gaps, infill, parse_shares
from hf_tfm.data.objectives import causal
from hf_tfm.data.packed_blocks import PackedBlocks
from hf_tfm.data.step_batches import StepBatches, shorten
from hf_tfm.data.tokenizer import encode_text, train_tokenizer
from hf_tfm.data.tokens import TokenStore
from hf_tfm.train.callbacks import ProgressLine


MIXTURE = {"causal": 0.4, "R": 0.2, "S": 0.2, "X": 0.2}
LENGTH = 96


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=340, num_spare_tokens=16)


@pytest.fixture(scope="module")
def blocks(tokenizer):
    # Long texts, cut at the end of a row, and short ones, several in a row.
    texts = ["".join(TEXTS[i : i + 1 + 3 * (i % 2)]) for i in range(0, len(TEXTS) - 4)]
    return PackedBlocks(TokenStore.from_texts(texts, tokenizer), LENGTH, pad_token_id=tokenizer.pad_token_id)


def segments(batch: dict[str, np.ndarray]):
    """Row, and columns of every piece of text in a batch."""
    for row, numbers in enumerate(batch["sequence_ids"]):
        for number in np.unique(numbers[numbers > 0]):
            columns = np.flatnonzero(numbers == number)
            yield row, slice(columns[0], columns[-1] + 1)


def kind_of(ids: list[int], prefix: np.ndarray, tokens: DenoisingTokens) -> str:
    if not prefix.any():
        return "causal"
    place = int(ids[0] == tokens.begin)
    return next(name for name, number in tokens.modes.items() if number == ids[place])


def restored(ids: list[int], num_inputs: int, kind: str, tokens: DenoisingTokens) -> list[int]:
    """The text that inputs and targets were made of."""
    inputs, targets = ids[:num_inputs], ids[num_inputs:]
    inputs.remove(tokens.modes[kind])
    if kind == "S":
        return inputs + targets
    assert targets[-1] == tokens.end
    spans, current = {}, None
    for token in targets[:-1]:
        if token in tokens.sentinels:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    assert list(spans) == list(tokens.sentinels[: len(spans)]) and all(spans.values())
    assert [token for token in inputs if token in tokens.sentinels] == list(spans)
    return [filler for token in inputs for filler in spans.get(token, [token])]


@pytest.mark.parametrize("kind", ["R", "S", "X", "causal"])
def test_inputs_and_targets_give_the_text_back(tokenizer, blocks, kind):
    objective = Denoisers(tokenizer, {kind: 1.0}, seed=1)
    tokens, starts_cut, ends_cut, hidden, whole = objective.tokens, 0, 0, 0, 0
    for step in range(20):
        batch = blocks.batch(step, 8)
        out = objective(batch)
        ids, prefix = out["input_ids"].numpy(), out["prefix_mask"].numpy()
        for row, here in segments(batch):
            before, after = batch["input_ids"][row, here].tolist(), ids[row, here].tolist()
            if len(before) < 16 or kind == "causal":
                assert after == before and not prefix[row, here].any()
                continue
            num_inputs = int(prefix[row, here].sum())
            assert prefix[row, here][:num_inputs].all(), "the inputs come first"
            text = restored(after, num_inputs, kind, tokens)
            front, back = before[: len(text)] == text, before[len(before) - len(text) :] == text
            assert front or back
            starts_cut, ends_cut = starts_cut + back, ends_cut + front
            hidden, whole = hidden + len(after) - num_inputs, whole + len(text)
        labels = out["labels"].numpy()
        assert (labels[prefix] == -100).all() and (labels[batch["sequence_ids"] == 0] == -100).all()
        predicted = ~prefix & (batch["sequence_ids"] > 0) & (batch["position_ids"] > 0)
        assert (labels[predicted] == ids[predicted]).all() and (labels != -100).sum() == predicted.sum()
        assert (out["position_ids"].numpy() == batch["position_ids"]).all()
    if kind != "causal":
        assert min(starts_cut, ends_cut) > 0.35 * (starts_cut + ends_cut)
        low, high = {"R": (0.2, 0.35), "S": (0.45, 0.55), "X": (0.35, 0.65)}[kind]
        assert low < hidden / whole < high


def test_spans_are_as_long_and_as_many_as_asked_for(tokenizer):
    """Over texts long enough for the mean to be met, one setting at a time, and where sentinels run out."""
    objective, rng = Denoisers(tokenizer, {"R": 1.0}), np.random.default_rng(0)
    ordinary, sentinels = np.arange(60, 320), objective.tokens.sentinels
    for kind in ("R", "X"):
        for number, (mean, rate) in enumerate(SPANS[kind]):
            lengths, shares, edges = [], [], 0
            for _ in range(100):
                ids, decisions = rng.choice(ordinary, 200), rng.random(200)
                decisions[1] = (number + 0.5) / len(SPANS[kind])
                inputs, targets = objective.denoise(ids, kind, decisions, rng.random(200))
                assert len(inputs) + len(targets) == 200
                marks = np.flatnonzero(np.isin(targets, sentinels))
                lengths += np.diff([*marks, len(targets) - 1]).tolist()
                shares.append((len(targets) - 1 - len(marks)) / (200 - 2 - 2 * len(marks)))
                edges += inputs[1] in sentinels or inputs[-1] in sentinels
            fitting = min(max(mean, 200 * rate / len(sentinels)), 200 * rate)
            assert abs(np.mean(shares) - rate) < 0.03
            assert 0.7 * fitting < np.mean(lengths) - 1 < 1.3 * fitting
            assert 0 < edges < 100, "gaps at the ends of a text are rare or missing"


def test_shares_of_the_mixture(tokenizer, blocks):
    objective, counts = Denoisers(tokenizer, MIXTURE), dict.fromkeys(MIXTURE, 0)
    for step in range(60):
        batch = blocks.batch(step, 8)
        out = objective(batch)
        for row, here in segments(batch):
            if here.stop - here.start >= 16:
                ids, prefix = out["input_ids"][row, here].tolist(), out["prefix_mask"][row, here].numpy()
                counts[kind_of(ids, prefix, objective.tokens)] += here.stop - here.start
    for kind, share in MIXTURE.items():
        assert abs(counts[kind] / sum(counts.values()) - share) < 0.05


def test_a_row_is_the_same_in_any_batch_and_process(tokenizer, blocks):
    objective = Denoisers(tokenizer, MIXTURE, seed=3)
    whole = objective(blocks.batch(7, 12))
    for parts in (2, 3):
        made = [objective(blocks.batch(7, 12, rank=rank, world_size=parts)) for rank in range(parts)]
        for name in whole:
            assert torch.equal(torch.cat([part[name] for part in made]), whole[name])
    again = StepBatches(blocks.rows, 12, 10, transform=Denoisers(tokenizer, MIXTURE, seed=3))[7]
    other = Denoisers(tokenizer, MIXTURE, seed=4)(blocks.batch(7, 12))
    assert torch.equal(again["input_ids"], whole["input_ids"])
    assert not torch.equal(other["input_ids"], whole["input_ids"])
    assert not torch.equal(objective(blocks.batch(8, 12))["prefix_mask"], whole["prefix_mask"])


def test_shortened_rows_are_texts_of_their_own(tokenizer, blocks):
    batch = shorten(blocks.batch(0, 8), 32)
    out = Denoisers(tokenizer, {"R": 1.0})(batch)
    long = [out["prefix_mask"][row, here].any() for row, here in segments(batch) if here.stop - here.start >= 16]
    assert out["input_ids"].shape == (24, 32) and len(long) > 12 and all(long)


def test_the_loss_is_the_sum_over_targets_however_it_is_split(tokenizer, blocks):
    model = build("TfmDecoderForCausalLM", vocab_size=len(tokenizer), max_position_embeddings=128)
    inputs = Denoisers(tokenizer, MIXTURE)(blocks.batch(0, 6))
    logits = model(**inputs).logits[:, :-1]
    following = inputs["labels"][:, 1:]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), following.flatten(), ignore_index=-100)
    count = (following != -100).sum()
    parts = [{name: value[rows] for name, value in inputs.items()} for rows in (slice(0, 1), slice(1, 6))]
    for skip_logits in (False, True):
        losses = [model(**part, num_items_in_batch=count, skip_logits=skip_logits).loss for part in parts]
        assert_close(sum(losses), expected)
        assert_close(model(**inputs, skip_logits=skip_logits).loss, expected)


def test_another_text_in_the_row_changes_nothing(tokenizer, blocks):
    """A row's denoised texts one by one give the losses that they have in the row."""
    model = build("TfmDecoderForCausalLM", vocab_size=len(tokenizer), max_position_embeddings=128)
    objective, batch = Denoisers(tokenizer, {"R": 0.5, "S": 0.5}, seed=2), blocks.batch(1, 4)
    out = objective(batch)
    logits = model(**{name: value for name, value in out.items() if name != "labels"}).logits
    several = 0
    for row, here in segments(batch):
        alone = model(out["input_ids"][row : row + 1, here], prefix_mask=out["prefix_mask"][row : row + 1, here])
        assert_close(alone.logits[0], logits[row, here], atol=2e-5, rtol=1e-4)
        several += batch["sequence_ids"][row].max() > 1
    assert several


def test_a_model_learns_to_fill_gaps(monkeypatch):
    """A few gaps by heart: what `infill` asks is then what was learnt, down to the last token."""
    texts = [
        "the cat sat on the mat and looked at the moon",
        "rain fell on the roof while the kettle sang all day",
        "seven ships sailed south and six of them came home",
    ]
    tokenizer = train_tokenizer(texts * 4, vocab_size=320, num_spare_tokens=7)
    rows = [[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] for ids in encode_text(tokenizer, texts)] * 4
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).numpy()
    lengths = np.array([len(row) for row in rows])[:, None]
    positions = np.tile(np.arange(ids.shape[1]), (len(rows), 1))
    batch = {
        "input_ids": ids, "position_ids": positions, "sequence_ids": (positions < lengths).astype(int),
        "rows": np.arange(len(rows)),
    }  # fmt: skip
    objective = Denoisers(tokenizer, {"R": 0.8, "X": 0.2})
    inputs = objective(batch)
    torch.manual_seed(0)
    model = TfmDecoderForCausalLM(
        TfmDecoderConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, head_dim=32,
            num_attention_heads=2, max_position_embeddings=128, initializer_range=0.05, pad_token_id=0,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for step in range(80):
        optimizer.param_groups[0]["lr"] = 5e-3 * min(1, step / 20, (80 - step) / 40)
        model(**inputs, skip_logits=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()

    tokens, parts, spans, prompts = objective.tokens, [], [], []
    for row, here in segments(batch):
        made, num_inputs = inputs["input_ids"][row, here].tolist(), int(inputs["prefix_mask"][row, here].sum())
        if made[:2] != [tokens.begin, tokens.modes["R"]]:
            continue  # the start was cut off, or it is the other denoiser
        prompts.append((made[: num_inputs + 1], num_inputs))
        for pieces, ids in ((parts, made[2:num_inputs]), (spans, made[num_inputs + 1 : -1])):
            pieces.append([[]])
            for token in ids:
                pieces[-1].append([]) if token in tokens.sentinels else pieces[-1][-1].append(token)
    assert len(parts) >= 3
    asked, generate = [], model.generate
    with monkeypatch.context() as patch:

        def noting(input_ids, **given):
            asked.append((input_ids, given))
            return generate(input_ids, **given)

        patch.setattr(model, "generate", noting)
        assert fill_gaps(model, tokenizer, parts) == spans
    (ids, given), *_ = asked
    for (prompt, num_inputs), row, real, prefix in zip(prompts, ids, given["attention_mask"], given["prefix_mask"]):
        assert row[real.bool()].tolist() == prompt and real[-len(prompt) :].all()
        assert prefix[-len(prompt) : -1].all() and prefix.sum() == num_inputs
    assert fill_gaps(model, tokenizer, parts, num_beams=2) == spans
    assert [fill_gaps(model, tokenizer, [one])[0] for one in parts] == spans, "rows depend on one another"
    for pieces, row in zip(parts, spans, strict=True):
        texts = [tokenizer.decode(piece) for piece in pieces]
        if not any(text.endswith(" ") for text in texts[:-1]):  # a blank in front of a gap is taken for the gap's
            whole = [token for pair in zip(pieces, [*row, []], strict=True) for piece in pair for token in piece]
            assert infill(model, tokenizer, [" <|mask|>".join(texts)]) == [tokenizer.decode(whole)]

    # Whatever is asked for comes out in that shape, from a model that would rather write something else.
    known = [[len(span) for span in row] for row in spans]
    assert fill_gaps(model, tokenizer, parts, lengths=known) == spans
    wrong = [[length + 3 for length in row] for row in known]
    assert [[len(span) for span in row] for row in fill_gaps(model, tokenizer, parts, lengths=wrong)] == wrong
    short = fill_gaps(model, tokenizer, parts, max_gap_tokens=1)
    assert [[len(span) for span in row] for row in short] == [[1] * len(row) for row in known]


def test_mistakes_are_named(tokenizer):
    few = train_tokenizer(TEXTS, vocab_size=320, num_spare_tokens=3)
    with pytest.raises(InputError, match="has 3 in all: train one with --num-spare-tokens"):
        Denoisers(few, {"R": 1.0})
    for text in ("R: 1", '["R"]', '{"R": "1"}', '{"R": 0}', '{"R": -1, "S": 2}', "{}", '{"R": Infinity}'):
        with pytest.raises(InputError, match="write shares as JSON"):
            parse_shares(text)
    with pytest.raises(InputError, match="'T' is none; there are causal, R, S, X"):
        parse_shares('{"T": 1}')
    assert parse_shares('{"causal": 3, "R": 1, "S": 0}') == {"causal": 0.75, "R": 0.25}
    model = build("TfmDecoderForCausalLM", vocab_size=len(tokenizer))
    with pytest.raises(InputError, match="text 2 has 0 gaps"):
        infill(model, tokenizer, ["a <|mask|> b", "a b"])
    assert infill(model, tokenizer, []) == []
    for settings, message in (
        ({"max_gap_tokens": 0}, "max_gap_tokens must be at least 1"),
        ({"max_new_tokens": 3}, "max_new_tokens is decided by the gaps"),
        ({"num_return_sequences": 2}, "num_return_sequences is decided"),
    ):
        with pytest.raises(InputError, match=message):
            infill(model, tokenizer, ["a <|mask|> b"], **settings)
    with pytest.raises(InputError, match="a number for each gap"):
        fill_gaps(model, tokenizer, [[[50], [60], [70]]], lengths=[[2]])
    with pytest.raises(InputError, match="the model has 64 positions"):
        infill(model, tokenizer, ["a <|mask|> b"], max_gap_tokens=60)


@pytest.fixture(scope="module")
def files(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("denoisers")
    for name, texts in (("train", TEXTS), ("held_out", TEXTS[:8])):
        (root / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer.save_pretrained(root / "tokenizer")
    return root


def arguments(files, out, **changes):
    fields = {
        "data": files / "train.jsonl", "validation_data": files / "held_out.jsonl", "tokenizer": files / "tokenizer",
        "model": "nano", "model_overrides": OVERRIDES, "denoisers": json.dumps(MIXTURE), "block_length": 64,
        "max_steps": 8, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "save_steps": 4,
        "eval_steps": 4, "logging_steps": 2, "cache_dir": files / "cache", "output_dir": out, "compile": "off",
        **changes,
    }  # fmt: skip
    return [part for name, value in fields.items() for part in (f"--{name}", str(value))]


def test_the_script_trains_it_and_goes_on_exactly(files, tmp_path, monkeypatch, capsys):
    assert pretrain_clm.main(arguments(files, tmp_path / "whole")) == 0
    said = capsys.readouterr()
    record = json.loads((tmp_path / "whole" / "run_record.json").read_text())
    assert record["results"]["bits_per_byte"] < 8
    assert "lived in the forest" in said.out, "no sample of filled gaps"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "whole")
    assert infill(model, tokenizer, ["Once there was ___."], gap="___")[0].startswith("Once there was")

    real = ProgressLine.on_step_end

    def signalled(self, args, state, control, **kwargs):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ProgressLine, "on_step_end", signalled)
        assert pretrain_clm.main(arguments(files, tmp_path / "stopped")) == 0
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    assert pretrain_clm.main(arguments(files, tmp_path / "stopped")) == 0
    assert_equal_weights(tmp_path / "whole", tmp_path / "stopped")


def test_the_script_evaluates_next_tokens_alone(files, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(pretrain_clm, "prepare_data", lambda *args: seen.append(args) or sys.exit(0))
    with pytest.raises(SystemExit):
        pretrain_clm.main(arguments(files, tmp_path))
    assert isinstance(seen[0][-3], Denoisers) and seen[0][-2] is causal


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"masked_share": 0.5}, "choose one of them"),
        ({"denoisers": "R"}, "write shares as JSON"),
    ],
)
def test_the_script_names_mistakes(files, tmp_path, capsys, changes, said):
    assert pretrain_clm.main(arguments(files, tmp_path / "run", **changes)) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()
