"""Writing text with a causal LM: the switches of sampling, text as it is made, and ways of decoding side by side."""

import contextlib
import math
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any, NamedTuple

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    set_seed,
)

from .. import cpu
from ..core.errors import InputError
from ..core.limits import longest_input, refuse_unknown_tokens


# Every switch as if it were not there.
_NEUTRAL = {"do_sample": False, "num_beams": 1, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def sampling_options(
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    beams: int | None = None,
) -> dict[str, Any]:
    """
    What `generate` takes for the switches that people set; None leaves what the model's own settings say.

    Temperature 0 (or below a millionth) takes the likeliest token, whatever the cuts; any other temperature or cut
    draws. Several beams search rather than draw, unless a temperature or a cut says otherwise.
    """
    given = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if temperature is not None and temperature < 1e-6:  # logits divided by less are infinite
        options = {"do_sample": False}
    elif options:
        options["do_sample"] = True
    elif beams is not None and beams > 1:
        options["do_sample"] = False
    if repetition_penalty is not None:
        options["repetition_penalty"] = repetition_penalty
    if beams is not None:
        options["num_beams"] = beams
    return options


def encode_prompt(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> tuple[torch.Tensor, int]:
    """
    Ids `(1, length)` of a text to continue, and how many tokens may follow.

    Raises:
        InputError: there is nothing to begin with, or no room behind it, or the model does not know the tokens.
    """
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    if ids.numel() == 0:
        raise InputError("the prompt is empty and this tokenizer begins texts with nothing; give a word")
    refuse_unknown_tokens(model, ids)
    longest = longest_input(model.config) or 1 << 20
    if ids.shape[1] >= longest:
        raise InputError(f"the prompt leaves no room: it has {ids.shape[1]} tokens and the model reads {longest}")
    return ids.to(model.device), longest - ids.shape[1]


def stream_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: torch.Tensor,
    skip_prompt: bool = True,
    **options: Any,
) -> Iterator[str]:
    """
    Text in pieces, as `generate` makes it; in one piece where it searches with beams, which know it at the end only.

    The model works in a thread of its own. Whoever closes the iterator, or interrupts it, stops the model after the
    token that it is at.

    Args:
        input_ids: of the prompt, `(1, length)`.
        skip_prompt: whether the prompt is left out.
        options: as `generate` takes them.
    """
    options |= {"attention_mask": torch.ones_like(input_ids), "pad_token_id": tokenizer.pad_token_id}
    beams = options.get("num_beams") or model.generation_config.num_beams or 1
    if beams > 1:
        [ids] = cpu.generate(model, input_ids, **options)
        yield tokenizer.decode(ids[input_ids.shape[1] if skip_prompt else 0 :], skip_special_tokens=True)
        return
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=skip_prompt, skip_special_tokens=True)
    stop = _Stop()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            cpu.generate(model, input_ids, streamer=streamer, stopping_criteria=StoppingCriteriaList([stop]), **options)
        except BaseException as error:  # it is raised where the text is read
            failures.append(error)
        finally:
            streamer.text_queue.put(streamer.stop_signal)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield from streamer
    finally:
        stop.asked.set()
        thread.join()
    if failures:
        raise failures[0]


class _Stop(StoppingCriteria):
    """Ends generation when somebody asks for it."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.asked.is_set(), dtype=torch.bool, device=input_ids.device)


@contextlib.contextmanager
def plain_settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **options: Any
) -> Iterator[PreTrainedModel]:
    """
    The model with settings for generation that say where texts begin and end, and `options`, and nothing else: what a
    call of `generate` leaves open it takes from there. An adapter stays where it is.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id,
        eos_token_id=own.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,  # Trainer switches it off in the model's configuration
        **options,
    )
    try:
        yield model
    finally:
        model.generation_config = own


class Candidate(NamedTuple):
    """A token that could have come: the model's probability, and the adjusted one as in [`Choice`]."""

    token: int
    text: str
    probability: float
    adjusted: float | None


@dataclass(frozen=True)
class Choice:
    """
    One token of a text, and what it was chosen from.

    Attributes:
        text: what the token adds to the text.
        probability: the model's own, before penalty, temperature and cuts.
        adjusted: the one behind them, with which it was drawn or, without draws, of which it was the likeliest; None
            where whole texts of beams were compared.
        entropy: of the model's own distribution, in bits.
        rank: 1 if the model found no other token likelier.
        left: how many tokens the cuts left; None where beams were compared.
        candidates: the model's likeliest tokens, the likeliest first, and the chosen one if it is not among them.
    """

    token: int
    text: str
    probability: float
    adjusted: float | None
    entropy: float
    rank: int
    left: int | None
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Decoding:
    """A continuation by one method; `others` are the texts that a beam search found second to it."""

    method: str
    choices: tuple[Choice, ...]
    others: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return "".join(choice.text for choice in self.choices)

    def figures(self) -> dict[str, float]:
        """
        Tokens, mean surprise and entropy in bits a token, and how much is repeated: distinct-n is the share of
        different ones among all n-grams of tokens (Li et al. 2016, https://huggingface.co/papers/1510.03055), and the
        last figure the share of 4-grams that were there before (Welleck et al. 2019,
        https://huggingface.co/papers/1908.04319).
        """
        tokens, number = [choice.token for choice in self.choices], len(self.choices)
        surprise = -sum(math.log2(choice.probability) for choice in self.choices)
        return {
            "tokens": number,
            "surprise": surprise / number,
            "entropy": sum(choice.entropy for choice in self.choices) / number,
            **{f"distinct-{n}": distinct(tokens, n) for n in (1, 2, 3)},
            "repeat-4": 1.0 - distinct(tokens, 4),
        }


def distinct(tokens: Sequence[int], n: int) -> float:
    """Share of different n-grams among all; 1 where there is none."""
    grams = Counter(zip(*(tokens[first:] for first in range(n))))
    return len(grams) / grams.total() if grams else 1.0


def decoding_methods(
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    beams: int | None = None,
) -> dict[str, dict[str, Any]]:
    """
    The usual ways of decoding by name, as `generate` takes them, each alone: cuts draw at temperature 1.

    Args:
        temperature, top_k, top_p, beams: of their own method; 0.8, 50, 0.9 and 4 where they are None or 0.
        min_p: adds this method.
        repetition_penalty: in all of them.
    """
    temperature, top_k, top_p, beams = temperature or 0.8, top_k or 50, top_p or 0.9, max(beams or 4, 2)
    methods: dict[str, dict[str, Any]] = {
        "greedy": {},
        f"beam search, {beams} beams": {"num_beams": beams, "num_return_sequences": min(beams, 3)},
        f"temperature {temperature:g}": {"do_sample": True, "temperature": temperature},
        f"top-k {top_k}": {"do_sample": True, "top_k": top_k},
        f"top-p {top_p:g}": {"do_sample": True, "top_p": top_p},
    }
    if min_p:
        methods[f"min-p {min_p:g}"] = {"do_sample": True, "min_p": min_p}
    shared = {**_NEUTRAL, "repetition_penalty": repetition_penalty or 1.0}
    return {name: {**shared, **options} for name, options in methods.items()}


def compare_decodings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    methods: dict[str, dict[str, Any]],
    max_new_tokens: int = 50,
    seed: int = 0,
    candidates: int = 5,
) -> list[Decoding]:
    """
    One prompt continued by each method alone, every draw from the same seed. Of the model's own settings for
    generation (penalties, cuts, shortest lengths) only the tokens that end a text count.

    Args:
        methods: options of `generate` by the methods' names, as [`decoding_methods`] gives them.
        candidates: how many of the likeliest tokens are kept for each place.

    Raises:
        InputError: the prompt is empty or too long.
    """
    ids, room = encode_prompt(model, tokenizer, prompt)
    decodings = []
    for name, options in methods.items():
        set_seed(seed)
        with torch.inference_mode(), plain_settings(model, tokenizer) as plain:
            out = plain.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=min(max_new_tokens, room),
                return_dict_in_generate=True,
                output_logits=True,
                output_scores=True,
                **options,
            )
        # Which row of a step's logits the token came from; of a beam's text, the beam that it grew on.
        beams = getattr(out, "beam_indices", None)
        rows = [0] * len(out.logits) if beams is None else [row for row in beams[0].tolist() if row >= 0]
        tokens, choices = out.sequences[0].tolist(), []
        for step, row in enumerate(rows):
            before, token = tokens[: ids.shape[1] + step], tokens[ids.shape[1] + step]
            scores = None if beams is not None else out.scores[step][row]
            choices.append(_choice(tokenizer, before, token, out.logits[step][row], scores, candidates))
        others = [tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True) for row in out.sequences[1:]]
        decodings.append(Decoding(name, tuple(choices), tuple(others)))
    return decodings


def _choice(
    tokenizer: PreTrainedTokenizerBase,
    before: list[int],
    token: int,
    logits: torch.Tensor,
    scores: torch.Tensor | None,
    candidates: int,
) -> Choice:
    """A choice out of the model's logits and what processors made of them, both `(vocabulary,)`."""
    shares = logits.double().softmax(-1)
    adjusted = None if scores is None else scores.double().softmax(-1)

    def candidate(one: int) -> Candidate:
        share = None if adjusted is None else float(adjusted[one])
        return Candidate(one, _piece(tokenizer, before, one), float(shares[one]), share)

    best = shares.topk(min(candidates, len(shares))).indices.tolist()
    return Choice(
        *candidate(token),
        entropy=float(torch.special.entr(shares).sum()) / math.log(2),
        rank=int((shares > shares[token]).sum()) + 1,
        left=None if adjusted is None else int((adjusted > 0).sum()),
        candidates=tuple(map(candidate, best if token in best else [*best, token])),
    )


def _piece(tokenizer: PreTrainedTokenizerBase, before: Sequence[int], token: int) -> str:
    """What a token adds to the text: nothing as long as a character is not whole, and blanks as they stand there."""
    some = [*before[-4:]]  # as many bytes as a character has
    known, whole = (tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (some, [*some, token]))
    return whole[len(commonprefix([known, whole])) :].rstrip("\ufffd")


class Answer(NamedTuple):
    """What a model said; `stopped` if it ended by itself before the tokens ran out."""

    text: str
    stopped: bool


@contextlib.contextmanager
def _at_rest(model: torch.nn.Module) -> Iterator[None]:
    """In evaluation mode, and without gradients."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        yield
    model.train(was_training)


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 128,
    batch_size: int = 16,
) -> list[Answer]:
    """
    The likeliest continuation of each prompt, token by token, as far as the model can take it.

    Args:
        prompts: token ids.
        max_new_tokens: where an answer that does not end is cut.
        batch_size: prompts at once, those of similar length together.

    Returns: answers in the order of the prompts.
    """
    answers: list[Any] = [Answer("", False)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    most = longest_input(model.config) or 1 << 20
    with _at_rest(model), plain_settings(model, tokenizer, do_sample=False) as plain:
        ends = plain.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        while order:
            longest = len(prompts[order[0]])
            room = min(max_new_tokens, most - longest)
            # What the model has no place for is left out, of each prompt by itself, whatever stands beside it.
            numbers = order[: batch_size if room == max_new_tokens else 1]
            del order[: len(numbers)]
            if room < 1:
                continue
            plain.generation_config.max_new_tokens = room
            lengths = torch.tensor([len(prompts[number]) for number in numbers], device=model.device)
            ids = [[tokenizer.pad_token_id] * (longest - len(prompts[n])) + list(prompts[n]) for n in numbers]
            said = cpu.generate(
                plain,
                torch.tensor(ids, device=model.device),
                attention_mask=(torch.arange(longest, device=model.device) >= longest - lengths[:, None]).long(),
            )[:, longest:]
            for number, row in zip(numbers, said.tolist()):
                length = next((place for place, token in enumerate(row) if token in ends), None)
                text = tokenizer.decode(row[:length], skip_special_tokens=True)
                answers[number] = Answer(text.strip(), length is not None)
    return answers
