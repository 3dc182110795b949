"""What is predicted: labels, masks and sentence pairs, each row a function of its number alone."""

import copy
from unicodedata import category

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

import hf_tfm
from hf_tfm import InputError, TfmDecoderConfig, TfmEncoderConfig
from hf_tfm.cpu.attention import enable_blockwise_attention, enable_unpadded_training
from hf_tfm.data.objectives import (
    CausalFirst,
    DrawnRate,
    Hybrid,
    Masked,
    RateSchedule,
    TokenNoise,
    causal,
    masked_next_token,
    spread_labels,
    uniform,
)
from hf_tfm.data.packed_blocks import PackedBlocks
from hf_tfm.data.sentence_pairs import SentencePairs
from hf_tfm.data.tokenizer import train_tokenizer
from hf_tfm.data.tokens import TokenStore
from hf_tfm.data.vocabulary import _begins_unspaced_word, token_texts, word_starts


pytestmark = pytest.mark.quick


TEXTS = [
    " ".join(f"The {animal} number {i} went to the river. It drank! Did it see {animal}s there?" for i in range(12))
    for animal in ("fox", "crow", "hare", "wolf")
]


@pytest.fixture(scope="module")
def encoder_tokenizer():
    return train_tokenizer(TEXTS * 5, vocab_size=300, style="encoder", num_spare_tokens=2)


@pytest.fixture(scope="module")
def batch(encoder_tokenizer):
    store = TokenStore.from_texts(TEXTS, encoder_tokenizer, wrap=False)
    ids = (encoder_tokenizer.cls_token_id, encoder_tokenizer.sep_token_id)
    return PackedBlocks(store, 64, pad_token_id=0, piece_ids=ids).rows(np.arange(12))


def test_causal_predicts_all_but_first_tokens_and_padding():
    batch = {
        "input_ids": np.array([[5, 6, 7, 5, 8, 0, 0]]),
        "position_ids": np.array([[0, 1, 2, 0, 1, 0, 1]]),
        "sequence_ids": np.array([[1, 1, 1, 2, 2, 0, 0]]),
    }
    out = causal(batch)
    assert out["labels"].tolist() == [[-100, 6, 7, -100, 8, -100, -100]]
    assert out["input_ids"].tolist() == batch["input_ids"].tolist()


def test_uniform_is_even_and_independent_over_rows_columns_streams_and_seeds():
    u = uniform(0, np.arange(400), 300, stream=0)
    assert 0 <= u.min() and u.max() < 1
    assert abs(u.mean() - 0.5) < 0.003 and abs(u.std() - 12**-0.5) < 0.003
    for other in (
        uniform(1, np.arange(400), 300, 0),
        uniform(0, np.arange(400), 300, 1),
        np.roll(u, 1, 0),
        np.roll(u, 1, 1),
    ):
        assert abs(np.corrcoef(u.ravel(), other.ravel())[0, 1]) < 0.02
    assert np.array_equal(u[7:9], uniform(0, np.array([7, 8]), 300, stream=0))


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_masked_share_fates_and_labels(encoder_tokenizer, batch, unit):
    objective = Masked(encoder_tokenizer, 0.3, unit)
    special = np.isin(batch["input_ids"], encoder_tokenizer.all_special_ids) | (batch["sequence_ids"] == 0)
    shares, kept, replaced, total = [], 0, 0, 0
    for round_ in range(40):
        rows = {**batch, "rows": batch["rows"] + 100 * round_}
        out = {name: tensor.numpy() for name, tensor in objective(rows).items()}
        chosen = out["labels"] != -100
        assert not (chosen & special).any()
        assert (out["input_ids"][~chosen] == batch["input_ids"][~chosen]).all()
        assert (out["labels"][chosen] == batch["input_ids"][chosen]).all()
        shares.append(chosen.sum() / (~special).sum())
        masked = out["input_ids"][chosen] == encoder_tokenizer.mask_token_id
        same = out["input_ids"][chosen] == batch["input_ids"][chosen]
        kept, replaced, total = kept + same.sum(), replaced + (~masked & ~same).sum(), total + chosen.sum()
    assert abs(np.mean(shares) - 0.3) < 0.005
    assert abs(kept / total - 0.1) < 0.02 and abs(replaced / total - 0.1) < 0.02


def test_compact_labels_say_the_same(encoder_tokenizer, batch):
    full = Masked(encoder_tokenizer, 0.3)(batch)
    compact = Masked(encoder_tokenizer, 0.3, compact=True)(batch)
    assert (compact["input_ids"] == full["input_ids"]).all()
    predicted = compact["labels"] != -100
    assert compact["labels"].shape == compact["masked_positions"].shape and len(predicted) % 64 == 0
    where = compact["masked_positions"][predicted]
    assert (where == (full["labels"].flatten() != -100).nonzero().flatten()).all()
    assert (full["labels"].flatten()[where] == compact["labels"][predicted]).all()
    spread = spread_labels(compact)
    assert spread.keys() == full.keys() and torch.equal(spread["labels"], full["labels"])


def test_a_row_is_masked_alike_in_any_batch(encoder_tokenizer, batch):
    objective = Masked(encoder_tokenizer, 0.15, "span", seed=3)
    whole = objective(batch)
    for part in (slice(0, 5), slice(5, 12)):
        alone = objective({name: array[part] for name, array in batch.items()})
        for name in alone:
            assert (alone[name] == whole[name][part]).all()


def test_words_are_masked_whole_and_spans_are_longer_than_words(encoder_tokenizer, batch):
    starts = word_starts(encoder_tokenizer)[batch["input_ids"]] | (batch["position_ids"] == 0)
    special = np.isin(batch["input_ids"], encoder_tokenizer.all_special_ids)
    word = np.cumsum((starts | special).ravel()).reshape(starts.shape)
    cut_words, runs = {}, {}
    for unit in ("token", "word", "span"):
        cut, lengths = 0, []
        for round_ in range(20):
            chosen = Masked(encoder_tokenizer, 0.2, unit, seed=round_).choose(batch)
            of_words = [chosen[(word == w) & ~special] for w in np.unique(word)]
            cut += sum(w.any() and not w.all() for w in of_words)
            edges = np.diff(np.pad(chosen, ((0, 0), (1, 1))).astype(int), axis=1)
            lengths += list(np.flatnonzero(edges.ravel() == -1) - np.flatnonzero(edges.ravel() == 1))
        cut_words[unit], runs[unit] = cut, np.mean(lengths)
    # At most the last unit of each row is taken in part.
    assert cut_words["word"] <= 20 * len(batch["rows"]) < cut_words["token"]
    assert runs["token"] < runs["word"] < runs["span"]


def test_spans_are_as_long_as_the_papers(encoder_tokenizer):
    """A geometric distribution renormalised over 1 to 10 words: one with its tail put on 10 has a mean of 4.5."""
    starts = Masked(encoder_tokenizer, unit="span")._span_starts(np.ones((400, 500), bool), np.arange(400))
    lengths = np.concatenate([np.diff(np.flatnonzero(row)) for row in starts])
    expected = 0.2 * 0.8 ** np.arange(10) / (1 - 0.8**10)
    assert np.abs(np.bincount(lengths, minlength=11)[1:] / len(lengths) - expected).max() < 0.005
    assert abs(lengths.mean() - 3.8) < 0.05 and lengths.max() == 10


def test_spans_stay_within_their_text(encoder_tokenizer):
    """Whether a text's last token is masked says nothing about the next text's first."""
    rows, length, text = 400, 48, 12
    rng = np.random.default_rng(0)
    batch = {
        "input_ids": rng.choice(np.flatnonzero(word_starts(encoder_tokenizer))[20:], (rows, length)),
        "position_ids": np.tile(np.arange(length) % text, (rows, 1)),
        "sequence_ids": np.tile(1 + np.arange(length) // text, (rows, 1)),
        "rows": np.arange(rows),
    }
    chosen = Masked(encoder_tokenizer, 0.15, "span").choose(batch)
    last, first = chosen[:, text - 1 : -1 : text], chosen[:, text::text]
    inside = chosen[:, 5::text][chosen[:, 4::text]].mean()
    assert abs(first[last].mean() - 0.15) < 0.12 and inside > 0.5
    assert abs(chosen.mean() - 0.15) < 0.01


def test_rate_schedule_falls_with_the_rows(encoder_tokenizer, batch):
    rate = RateSchedule([0.4, 0.1], rows=1000)
    assert rate(np.array([0, 500, 1000, 2000])).tolist() == pytest.approx([0.4, 0.25, 0.1, 0.1])
    three = RateSchedule([0.3, 0.15, 0.05], rows=1000)
    assert three(np.array([0, 250, 500, 750, 1000, 2000])).tolist() == pytest.approx(
        [0.3, 0.225, 0.15, 0.1, 0.05, 0.05]
    )
    assert RateSchedule([0.2], rows=1000)(np.array([0, 2000])).tolist() == [0.2, 0.2]
    for wrong in ([], [0.3, 1.5]):
        with pytest.raises(InputError, match="masking rates must lie between 0 and 1"):
            RateSchedule(wrong, rows=1000)
    objective = Masked(encoder_tokenizer, rate)
    early = objective(batch)["labels"].ne(-100).sum()
    late = objective({**batch, "rows": batch["rows"] + 1000})["labels"].ne(-100).sum()
    assert early > 3 * late


def test_a_drawn_rate_covers_the_whole_range_and_belongs_to_its_row(encoder_tokenizer):
    rows = np.arange(2000)
    rates = DrawnRate(seed=3)(rows)
    assert np.abs(np.quantile(rates, [0.1, 0.5, 0.9]) - [0.1, 0.5, 0.9]).max() < 0.05
    assert np.array_equal(DrawnRate(seed=3)(rows[::-1]), rates[::-1])
    batch = {
        "input_ids": np.full((2000, 40), encoder_tokenizer.convert_tokens_to_ids("a")),
        "position_ids": np.tile(np.arange(40), (2000, 1)),
        "sequence_ids": np.ones((2000, 40), int),
        "rows": rows,
    }
    chosen = Masked(encoder_tokenizer, DrawnRate(seed=3)).choose(batch)
    assert np.abs(chosen.sum(1) - rates * 40).max() <= 1 and chosen.sum(1).min() == 1
    with pytest.raises(InputError, match="range"):
        DrawnRate(0.5, 0.2)


def test_sentence_pairs(encoder_tokenizer):
    tokenizer = encoder_tokenizer
    store = TokenStore.from_texts(TEXTS, tokenizer, wrap=False)
    pairs = SentencePairs(store, tokenizer, 48, seed=1)
    batch = pairs.batch(np.arange(200))
    assert batch["input_ids"].shape == (200, 48)
    assert 70 < batch["next_sentence_label"].sum() < 130
    documents = [tokenizer.decode(store[i]) for i in range(len(store))]
    cuts_at_sentences = strangers = 0
    for row, label in zip(batch["input_ids"], batch["next_sentence_label"]):
        assert row[0] == tokenizer.cls_token_id and (row == tokenizer.sep_token_id).sum() == 2
        first_sep = int(np.argmax(row == tokenizer.sep_token_id))
        end = int(np.flatnonzero(row == tokenizer.sep_token_id)[1])
        a, b = tokenizer.decode(row[1:first_sep]), tokenizer.decode(row[first_sep + 1 : end])
        together = any(a + b in document for document in documents)
        assert together or label == 1
        strangers += label == 1 and not together
        cuts_at_sentences += a.rstrip()[-1] in ".!?"
    assert cuts_at_sentences > 150
    assert strangers > 0.7 * batch["next_sentence_label"].sum()  # short segments may fit by chance
    assert ((batch["token_type_ids"] == 1) <= (batch["sequence_ids"] == 1)).all()
    for name, array in pairs.batch(np.array([150])).items():
        assert (array[0] == batch[name][150]).all()

    order = SentencePairs(store, tokenizer, 48, seed=1, task="sentence_order").batch(np.arange(40))
    for row, label in zip(order["input_ids"], order["next_sentence_label"]):
        first_sep, end = np.flatnonzero(row == tokenizer.sep_token_id)
        a, b = tokenizer.decode(row[1:first_sep]), tokenizer.decode(row[first_sep + 1 : end])
        assert any((b + a if label else a + b) in document for document in documents)


@pytest.mark.parametrize("documents", ["short", "long", "unequal"])
def test_no_length_and_no_end_tells_strangers_from_the_next_sentence(encoder_tokenizer, documents):
    """The segments' lengths are alike, and how often the second one ends with a sentence."""
    rng = np.random.default_rng(0)
    words = "the fox saw a crow and one hare in the river by a wolf".split()
    sentences = [" ".join(rng.choice(words, rng.integers(4, 12))) + "." for _ in range(6000)]
    size = {"short": 6, "long": 600, "unequal": 3}[documents]
    cuts = np.cumsum(rng.integers(size, size + 20 if documents == "unequal" else size + 1, 1000))
    texts = [" ".join(several) for several in np.split(sentences, cuts[cuts < len(sentences)])]
    store = TokenStore.from_texts(texts, encoder_tokenizer, wrap=False)
    pairs = SentencePairs(store, encoder_tokenizer, 128)
    batch = pairs.batch(np.arange(3000))
    foreign = batch["next_sentence_label"] == 1
    total, second = batch["attention_mask"].sum(1), batch["token_type_ids"].sum(1)
    ends = pairs._ends_sentence[batch["input_ids"][np.arange(3000), total - 2]]
    assert (total.mean() > 124) == (documents == "long")
    for lengths in (total, second):
        assert abs(lengths[foreign].mean() - lengths[~foreign].mean()) < 4
        above = lengths[:, None] >= np.arange(128)
        assert np.abs(above[foreign].mean(0) - above[~foreign].mean(0)).max() < 0.15
    assert abs(ends[foreign].mean() - ends[~foreign].mean()) < 0.07


def test_a_token_of_no_bytes_starts_no_character():
    """As SentencePiece's, whose blank is no byte-level letter."""
    assert not _begins_unspaced_word("\ufffd", "\u2581\ufffd") and _begins_unspaced_word("\ufffd", "ä½")


def test_no_end_tells_the_order_of_sentences(encoder_tokenizer):
    rng = np.random.default_rng(0)
    words = "the fox saw a crow and one hare in the river by a wolf".split()
    sentences = [" ".join(rng.choice(words, rng.integers(6, 14))) + "." for _ in range(2000)]
    texts = [" ".join(sentences[i : i + 500]) for i in range(0, 2000, 500)]
    store = TokenStore.from_texts(texts, encoder_tokenizer, wrap=False)
    pairs = SentencePairs(store, encoder_tokenizer, 96, task="sentence_order")
    batch = pairs.batch(np.arange(600))
    last = batch["attention_mask"].sum(1) - 2
    swapped = batch["next_sentence_label"] == 1
    for of_segment in (np.argmax(batch["token_type_ids"], axis=1) - 2, last):
        ends = pairs._ends_sentence[batch["input_ids"][np.arange(600), of_segment]]
        assert abs(ends[swapped].mean() - ends[~swapped].mean()) < 0.05
    assert abs(last[swapped].mean() - last[~swapped].mean()) < 3


@pytest.mark.parametrize("end, blank", [(".", " "), ("。", ""), ("؟", " "), ("", " ")])
def test_sentence_pairs_come_from_all_of_the_text(end, blank):
    """Whatever ends its sentences, and if nothing does; the first sentence too."""
    letters = "abcdefghij"
    words = [["".join(letters[int(d)] for d in f"{n * 61 % 997:03}") for n in range(i, 900, 3)] for i in range(3)]
    texts = [blank.join(w + end * (i % 6 == 5) for i, w in enumerate(several)) for several in words]
    tokenizer = train_tokenizer(texts, vocab_size=400, style="encoder", num_spare_tokens=0)
    store = TokenStore.from_texts(texts, tokenizer, wrap=False)
    batch = SentencePairs(store, tokenizer, 48, task="sentence_order").batch(np.arange(1500))
    six = np.lib.stride_tricks.sliding_window_view(batch["input_ids"], 6, axis=1)
    rows = {tuple(tokens) for tokens in six.reshape(-1, 6)}
    seen = [tuple(store[i][j : j + 6]) in rows for i in range(3) for j in range(0, len(store[i]) - 6, 3)]
    assert np.mean(seen) > 0.9
    assert all(tuple(store[i][:6]) in rows for i in range(3))
    if end:
        in_order = batch["input_ids"][batch["next_sentence_label"] == 0]
        cuts = [row[: int(np.argmax(row == tokenizer.sep_token_id))] for row in in_order]
        assert np.mean([end in tokenizer.decode(row[-2:]) for row in cuts]) > 0.6


def test_words_begin_where_they_do_in_any_script():
    headings = ["## one\n### two two two\n" * 50, "the miller and the river and the sea\n" * 50]
    markdown = train_tokenizer(headings, vocab_size=340, style="encoder", num_spare_tokens=0)
    assert any(token.startswith("##") for token in markdown.get_vocab())  # which WordPiece alone means otherwise
    text = train_tokenizer((), kind="bytes", style="encoder", num_spare_tokens=0)
    for tokenizer, line, words in (
        (markdown, "the miller x", 3),
        (text, "café — naïve", 3),
        (text, "мельник и река", 3),
        (text, "हिन्दी भाषा", 2),
        (text, "كِتَاب جديد", 2),
    ):
        ids = np.array(tokenizer(line, add_special_tokens=False)["input_ids"])
        starts = word_starts(tokenizer)[ids]
        starts[0] = True
        assert starts.sum() <= words and len(ids) > words, (line, starts)


def byte_level(*merges):
    """Byte-level BPE of a few merges, written in the letters that stand for bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*letters, *map("".join, merges)])}
    backend = Tokenizer(models.BPE(vocabulary, list(merges)))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def wordpiece(*pieces):
    backend = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token=pieces[0]))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def words(tokenizer, text):
    """The tokens of a text, with a bar in front of those that begin a word."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return "".join(
        "|" * int(start) + token for start, token in zip(word_starts(tokenizer)[ids], tokenizer.tokenize(text))
    )


def test_each_character_is_a_word_in_scripts_without_spaces():
    """Whether it is a token, pieces of UTF-8, or stands behind WordPiece's prefix; marks belong to the one before."""
    for text in ("我们昨天去了北京看朋友。他很高兴。", "ひらがなとカタカナと漢字。"):
        assert words(byte_level(), text).count("|") == len(text)
    assert words(byte_level(("æ", "Ī"), ("æĪ", "ĳ")), "a我") == "a|æĪĳ"
    # What ends one character and begins the next is of the first one's word.
    assert words(byte_level(("ä", "»"), ("¬", "æ")), "们我") == "|ä»¬æĪĳ"
    # The first byte of Thai, Khmer and Burmese letters is that of others' too; the second tells.
    pieces = byte_level(("à", "¸"), ("à", "¤"), ("á", "ŀ"), ("á", "Ģ"), ("á", "º"))
    assert words(pieces, "กนहनកမế") == "|à¸ģ|à¸Ļà¤¹à¤¨|áŀĢ|áĢĻáº¿"
    pieces = wordpiece("[UNK]", "去", "ฉ", "##ั", "##น", "コ", "##ー", "##ヒ", "go", "##ing")
    assert words(pieces, "going 去 ฉัน コーヒー") == "|go##ing|去|ฉ##ั|##น|コ##ー|##ヒ##ー"


@pytest.mark.parametrize("kind", ["bytes", "bpe", "wordpiece"])
def test_words_of_text_with_spaces_begin_where_they_did(kind):
    """Pieces of dashes, accents and emoji are not taken for letters that need no spaces."""
    text = "I ❤️ it 😀 — a café… “naïve” Ωmega мельник 안녕 Tiếng Việt हिन्दी ქართული (x), 3 km²"
    tokenizer = train_tokenizer([text] * 3, kind, vocab_size=400, style="encoder", num_spare_tokens=0)
    texts = [token_texts(tokenizer)[number] for number in tokenizer(text, add_special_tokens=False)["input_ids"]]
    starts = word_starts(tokenizer)[tokenizer(text, add_special_tokens=False)["input_ids"]]
    if kind == "wordpiece":
        assert starts.tolist() == [not piece.startswith("##") for piece in texts]
    else:
        within = [piece[0].isalnum() or piece[0] == "\ufffd" or category(piece[0])[0] == "M" for piece in texts]
        assert starts.tolist() == [not inside for inside in within]


def test_sentence_pairs_of_other_tokenizers(encoder_tokenizer):
    store = TokenStore.from_texts(TEXTS, encoder_tokenizer, wrap=False)
    bare = copy.deepcopy(encoder_tokenizer)
    bare.pad_token = None
    assert (SentencePairs(store, bare, 48).batch(np.arange(4))["input_ids"] >= 0).all()
    bare.cls_token = None
    with pytest.raises(InputError, match="a cls and a sep token"):
        SentencePairs(store, bare, 48)


def test_mistakes_are_named(encoder_tokenizer):
    with pytest.raises(InputError, match="rate must lie between 0 and 1"):
        Masked(encoder_tokenizer, 1.5)
    with pytest.raises(InputError, match="unit must be"):
        Masked(encoder_tokenizer, 0.15, "sentence")
    store = TokenStore.from_texts(TEXTS[:1], encoder_tokenizer, wrap=False)
    with pytest.raises(InputError, match="two documents"):
        SentencePairs(store, encoder_tokenizer, 48)


def test_hybrid_masks_its_share_of_the_batches(encoder_tokenizer, batch):
    """The same ones whatever the number of processes, and rows that a schedule cut into pieces."""

    def kinds(rows, world_size=1):
        objective = Hybrid(Masked(encoder_tokenizer), 0.25, world_size)
        steps = []
        for step in range(12):
            inputs = objective({**batch, "rows": np.arange(rows) + step * rows * world_size})
            steps.append("is_causal" in inputs)
        return steps

    rows = len(batch["input_ids"])
    assert kinds(rows) == [False, False, False, True] * 3 == kinds(rows, world_size=2)
    with pytest.raises(InputError, match="between 0 and 1"):
        Hybrid(Masked(encoder_tokenizer), 1.0)


def test_masked_next_tokens_are_the_masked_lms(encoder_tokenizer, batch):
    """The causal LM's shifted loss on a masked batch is the loss of its weights as a masked LM."""
    inputs = masked_next_token(Masked(encoder_tokenizer), batch)
    config = TfmDecoderConfig(vocab_size=len(encoder_tokenizer), hidden_size=32, num_hidden_layers=2,
                              num_attention_heads=2)  # fmt: skip
    torch.manual_seed(0)
    causal_lm = hf_tfm.TfmDecoderForCausalLM(config).eval()
    masked_lm = hf_tfm.TfmDecoderForMaskedLM(config).eval()
    masked_lm.load_state_dict(causal_lm.state_dict())
    expected = causal_lm(**inputs).loss
    inputs.pop("is_causal")
    torch.testing.assert_close(masked_lm(**inputs).loss, expected)
    # What follows is in sight: another last token changes the logits at the start.
    ids = inputs["input_ids"][:1, :8].clone()
    before = masked_lm(ids).logits[:, 1]
    ids[:, -1] += 1
    assert not torch.allclose(masked_lm(ids).logits[:, 1], before)


@pytest.mark.parametrize("head", ["TfmEncoderForMaskedLM", "TfmEncoderForPreTraining"])
def test_models_give_the_same_loss_for_compact_labels(head):
    model = getattr(hf_tfm, head)(TfmEncoderConfig.preset("nano", vocab_size=100)).eval()
    input_ids = torch.randint(100, (3, 20))
    positions = torch.tensor([1, 5, 22, 41, 59])
    labels = torch.full((60,), -100).index_copy(0, positions, input_ids.flatten()[positions]).view(3, 20)
    pairs = {"next_sentence_label": torch.tensor([0, 1, 0])} if head.endswith("PreTraining") else {}
    full = model(input_ids, labels=labels, **pairs)
    labels = F.pad(input_ids.flatten()[positions], (0, 2), value=-100)
    compact = model(input_ids, labels=labels, masked_positions=F.pad(positions, (0, 2)), **pairs)
    torch.testing.assert_close(compact.loss, full.loss)
    assert compact[1].shape == (7, 100)
    parameters = [parameter for name, parameter in model.named_parameters() if "embed_token_types" not in name]
    for actual, expected in zip(*(torch.autograd.grad(out.loss, parameters) for out in (compact, full)), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-4)
    assert enable_blockwise_attention(model) and enable_unpadded_training(model)
    flattened = model.train()(input_ids, labels=labels, masked_positions=F.pad(positions, (0, 2)), **pairs)
    torch.testing.assert_close(flattened.loss, full.loss)


@pytest.mark.parametrize("compact", [False, True])
def test_next_tokens_come_first_then_masked_ones(encoder_tokenizer, compact):
    batch = {
        "input_ids": np.array([[1, 50, 51, 2, 1, 60, 2, 0]]),
        "position_ids": np.array([[0, 1, 2, 3, 0, 1, 2, 0]]),
        "sequence_ids": np.array([[1, 1, 1, 1, 2, 2, 2, 0]]),
        "rows": np.array([31]),
    }
    assert {1, 2} < set(encoder_tokenizer.all_special_ids)
    masked = Masked(encoder_tokenizer, 0.3, compact=compact)
    inputs = CausalFirst(masked, rows=32)(batch)
    labels = [
        50,
        51,
        -100,
        -100,
        60,
        -100,
        -100,
        -100,
    ]  # cls, sep and what stands in another document are not predicted
    if compact:
        kept = inputs["labels"] != -100
        assert inputs["labels"][kept].tolist() == [50, 51, 60]
        assert inputs["masked_positions"][kept].tolist() == [0, 1, 4]
        assert len(inputs["labels"]) == 64
    else:
        assert inputs["labels"].tolist() == [labels]
    assert inputs["input_ids"].tolist() == batch["input_ids"].tolist()
    assert inputs["attention_mask"][0, 0].int().tolist()[2] == [1, 1, 1, 0, 0, 0, 0, 0]
    assert inputs["attention_mask"][0, 0].int().tolist()[5] == [0, 0, 0, 0, 1, 1, 0, 0]

    later = {**batch, "rows": np.array([32])}
    for name, expected in masked(later).items():
        assert torch.equal(CausalFirst(masked, rows=32)(later)[name], expected)


def test_no_state_knows_the_next_token_while_it_is_predicted(encoder_tokenizer, batch):
    config = TfmEncoderConfig.preset(
        "nano", vocab_size=300, sliding_window=3, layer_types=["sliding_attention"] * 3 + ["full_attention"]
    )
    torch.manual_seed(0)
    model = hf_tfm.TfmEncoderModel(config).eval()
    first = CausalFirst(Masked(encoder_tokenizer, 0.3), rows=1000)
    inputs = {name: value for name, value in first(batch).items() if name != "labels"}
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
        inputs["input_ids"] = inputs["input_ids"].clone()
        inputs["input_ids"][:, 30:] = 99
        changed = model(**inputs).last_hidden_state
    torch.testing.assert_close(states[:, :30], changed[:, :30])
    assert not torch.allclose(states[:, 30:], changed[:, 30:])


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_weights_choose_tokens_more_often_and_keep_the_rate(encoder_tokenizer, batch, unit):
    plain, weighted = (Masked(encoder_tokenizer, 0.3, unit) for _ in range(2))
    weighted.weights = np.full(len(encoder_tokenizer), 0.7)
    assert np.array_equal(weighted.choose(batch), plain.choose(batch)), "equal weights change nothing"
    favoured = encoder_tokenizer.convert_tokens_to_ids("Ġriver")
    weighted.weights[favoured] = 7.0
    rounds = [{**batch, "rows": batch["rows"] + 100 * number} for number in range(30)]
    chosen, chosen_plain = (np.array([each.choose(rows) for rows in rounds]) for each in (weighted, plain))
    assert np.array_equal(chosen.sum(2), chosen_plain.sum(2))
    at_favoured = batch["input_ids"] == favoured
    assert chosen[:, at_favoured].mean() > 1.5 * chosen_plain[:, at_favoured].mean()
    part = {name: array[3:7] for name, array in batch.items()}
    assert np.array_equal(weighted.choose(part), weighted.choose(batch)[3:7])


def test_token_noise_replaces_a_share_of_ordinary_inputs_and_no_label(encoder_tokenizer, batch):
    noise = TokenNoise(causal, encoder_tokenizer, 0.2, seed=3)
    inputs, clean = noise(batch), causal(batch)
    assert torch.equal(inputs["labels"], clean["labels"])
    ordinary = ~torch.isin(clean["input_ids"], torch.tensor(encoder_tokenizer.all_special_ids))
    changed = inputs["input_ids"] != clean["input_ids"]
    assert not changed[~ordinary].any()
    assert 0.15 < float(changed[ordinary].float().mean()) < 0.25
    assert not torch.isin(inputs["input_ids"][changed], torch.tensor(encoder_tokenizer.all_special_ids)).any()

    # Each row depends on its number alone, and the next pass has other noise.
    part = {name: values[3:5] for name, values in batch.items()}
    assert torch.equal(noise(part)["input_ids"], inputs["input_ids"][3:5])
    later = noise({**batch, "rows": batch["rows"] + 1000})
    assert not torch.equal(later["input_ids"], inputs["input_ids"])


def test_token_noise_leaves_masked_batches_as_they_are(encoder_tokenizer, batch):
    hybrid = Hybrid(Masked(encoder_tokenizer), 0.5)
    noise = TokenNoise(hybrid, encoder_tokenizer, 0.5)
    rows = len(batch["input_ids"])
    masked = {**batch, "rows": np.arange(rows) + rows}
    assert torch.equal(noise(masked)["input_ids"], hybrid(masked)["input_ids"])
    assert not torch.equal(noise(batch)["input_ids"], hybrid(batch)["input_ids"])
    with pytest.raises(InputError, match="share of replaced tokens"):
        TokenNoise(causal, encoder_tokenizer, 1.0)
