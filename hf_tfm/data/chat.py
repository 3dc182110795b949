"""
Conversations into tokens: records of three shapes, any chat template, and which tokens the assistant says.

    record      {"instruction": …, "input": …, "output": …}   {"prompt": …, "response": …}   {"messages": [...]}
    messages    user, assistant, user, assistant, …
    tokens      <|user|> Why? <|end|> <|assistant|> Because. <|eos|>      trained: ................. ⟦Because. <|eos|>⟧
    rows        one conversation each, or several packed by best fit: position_ids start again with each of them

The chat template is the tokenizer's. Templates with `{% generation %}` say themselves what the assistant says; for the
others the text is rendered turn by turn and the difference taken.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import InputError
from .batches import IGNORED
from .block_plan import best_fit_decreasing
from .records import Records
from .tokenizer import CHAT_TEMPLATE, CHAT_TOKENS, encode_chat


Message = dict[str, str]

ROLES = ("system", "user", "assistant", "tool")

# For tokenizers without chat tokens: an answer ends with the end-of-text token, which they all have.
PLAIN_TEMPLATE = """\
{{- bos_token if bos_token else '' -}}
{%- for message in messages -%}
    {{- '### ' + message['role'] | capitalize + ':\\n' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}{{- '\\n' -}}
    {%- else -%}
        {{- message['content'] + '\\n\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '### Assistant:\\n' -}}{%- endif -%}
"""

# Names of fields, by shape of the record: prompt, what is added to it, answer.
_SHAPES = (
    ("instruction", "input", "output"),
    ("prompt", None, "response"),
    ("prompt", None, "completion"),
    ("prompt", None, "output"),
)


def read_conversations(records: Records) -> list[list[Message]]:
    """
    The messages of records with `messages`, `prompt` and `response`, or `instruction`, `input` and `output`.

    Raises:
        InputError: a field is missing or blank, or a turn is malformed; the message names the record.
    """
    conversations = []
    for record, place in zip(records, records.places):
        if "messages" in record:
            conversations.append(read_messages(record["messages"], f"{place}: messages"))
            if not any(message["role"] == "assistant" for message in conversations[-1]):
                raise InputError(f"{place}: no message of the assistant, so nothing to train on; mend or drop it")
            continue
        shape = next((shape for shape in _SHAPES if shape[0] in record and shape[2] in record), None)
        if shape is None:
            there = ", ".join(map(str, record)) or "nothing"
            raise InputError(
                f"{place}: fields are {there}; give messages, or prompt and response, or instruction, input and output"
            )
        answer = {"role": "assistant", "content": text_of(record[shape[2]], f"{place}: field {shape[2]!r}")}
        conversations.append([*read_prompt(record, place), answer])
    return conversations


def read_prompt(record: Mapping[str, Any], place: str) -> list[Message]:
    """What an answer follows on: `prompt` (text or messages), `question`, `instruction` with `input`, or `messages`."""
    if "messages" in record:
        return up_to_answer(read_messages(record["messages"], f"{place}: messages"))
    name = next((name for name in ("prompt", "instruction", "question") if name in record), None)
    if name is None:
        there = ", ".join(map(str, record)) or "nothing"
        raise InputError(f"{place}: fields are {there}; give prompt, instruction, question or messages")
    if isinstance(record[name], (list, tuple)):
        return read_messages(record[name], f"{place}: {name}")
    text = text_of(record[name], f"{place}: field {name!r}")
    if name == "instruction" and not _is_nothing(record.get("input")):
        text += "\n\n" + text_of(record["input"], f"{place}: field 'input'")
    return [{"role": "user", "content": text}]


def up_to_answer(messages: Sequence[Message]) -> list[Message]:
    """A conversation without the assistant's last turn, if it ends with that."""
    return list(messages[:-1] if messages[-1]["role"] == "assistant" and len(messages) > 1 else messages)


def read_messages(value: Any, where: str) -> list[Message]:
    """Checked messages: role and content of each. Raises `InputError` naming `where` and the message."""
    if not isinstance(value, (list, tuple)) or not value:
        raise InputError(f"{where}: must be a list of messages with role and content, not {value!r:.60}")
    messages = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise InputError(f"{where}: message {number} is {message!r:.60}, it needs role and content")
        if message["role"] not in ROLES:
            raise InputError(f"{where}: message {number} has role {message['role']!r}, not one of {', '.join(ROLES)}")
        content = text_of(message["content"], f"{where}: message {number}: content")
        messages.append({"role": message["role"], "content": content})
    return messages


def text_of(value: Any, where: str) -> str:
    """A text that says something. Raises `InputError` naming `where` if it is none."""
    if not isinstance(value, str):
        kind = "missing" if value is None else f"{value!r:.40}, not text"
        raise InputError(f"{where} is {kind}; mend or drop this record")
    if not value.strip():
        raise InputError(f"{where} is blank; mend or drop this record")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"{where} has half of a surrogate pair; mend or drop this record")
    return value


def _is_nothing(value: Any) -> bool:
    """An `input` left open: missing, null (NaN from a table), or blank."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def ensure_chat_template(tokenizer: PreTrainedTokenizerBase, file: str | None = None) -> None:
    """
    Give the tokenizer the chat template of a file; or, if it has none, one that suits its tokens.

    Raises:
        InputError: the file cannot be read, or the tokenizer has no end-of-text token to end an answer with.
    """
    if file is not None:
        try:
            tokenizer.chat_template = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--chat_template {file}: cannot be read ({error})") from None
    elif not tokenizer.chat_template:
        has_chat_tokens = set(CHAT_TOKENS) <= set(tokenizer.get_vocab())
        tokenizer.chat_template = CHAT_TEMPLATE if has_chat_tokens else PLAIN_TEMPLATE
    if tokenizer.eos_token is None:
        raise InputError("the tokenizer has no end-of-text token, so that no model could learn to stop; set eos_token")


def add_tokens(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, tokens: Sequence[str], adapter: bool = False
) -> list[int]:
    """
    Make tokens of these, which records may hold and answers show, and give the model embeddings for them; their ids.

    Args:
        tokens: new ones, or spare ones that the tokenizer has without a meaning.
        adapter: whether an adapter is to be trained: it fits on its base only if the embeddings keep their size.

    Raises:
        InputError: with an adapter, the embeddings have no rows left for the new tokens.
    """
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
    if any(token in known for token in tokens):
        # What was special goes on being taken for text, or left out of answers, until the tokenizer is built anew.
        tokenizer._tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        tokenizer.extra_special_tokens = [token for token in tokenizer.extra_special_tokens if token not in tokens]
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        if adapter:
            spare = [token for token in known if re.fullmatch(r"<\|?(spare|reserved)[^>]*>", token)]
            raise InputError(
                f"new_tokens: the model's {rows} embeddings are all taken, and an adapter cannot add any: "
                + (f"use tokens that are spare, as {spare[0]}" if spare else "train all weights, without --lora")
            )
        model.resize_token_embeddings(len(tokenizer))
    return tokenizer.convert_tokens_to_ids(list(tokens))


@dataclass
class Tokens:
    """A conversation: its token ids, and for each whether the assistant says it."""

    ids: list[int]
    spoken: list[bool]

    def answer_start(self) -> int:
        """Where the last thing that the assistant says begins."""
        last = max(place for place, spoken in enumerate(self.spoken) if spoken)
        return next((place + 1 for place in range(last, -1, -1) if not self.spoken[place]), 0)

    def split(self) -> tuple[list[int], list[int]]:
        """The last answer, with the token that ends it, and what it follows on."""
        start = self.answer_start()
        end = len(self.spoken) - self.spoken[::-1].index(True)
        return self.ids[:start], self.ids[start:end]


class ChatEncoder:
    """
    Encodes conversations by a tokenizer's chat template.

    Attributes:
        ends: ids of the tokens that the answers encoded so far end with; whoever generates must stop at them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        if not tokenizer.is_fast:
            raise InputError("this tokenizer is a slow one, which cannot tell which tokens belong to an answer")
        self.tokenizer = tokenizer
        self.ends: set[int] = set()
        self._own = tokenizer.chat_template == CHAT_TEMPLATE
        self._marked = re.search(r"{%-?\s*generation\b", tokenizer.chat_template or "") is not None
        added = tokenizer.added_tokens_decoder
        self._special = {*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)}
        words = sorted((tokenizer.convert_ids_to_tokens(number) for number in self._special), key=len, reverse=True)
        self._markup = re.compile("|".join(map(re.escape, words)) or r"(?!)")

    def __call__(self, messages: Sequence[Message], place: str) -> Tokens:
        """
        Token ids and what of them the assistant says, the token that ends an answer included.

        Raises:
            InputError: the template refuses the turns, or its answers end with nothing to stop at.
        """
        try:
            if self._own:
                encoded = encode_chat(self.tokenizer, messages)
                tokens = Tokens(encoded["input_ids"], [mask == 1 for mask in encoded["assistant_masks"]])
            else:
                self._refuse_markup(messages, place)
                tokens = self._by_marks(messages) if self._marked else self._by_rendering(messages)
        except InputError as error:
            raise error if str(error).startswith(place) else InputError(f"{place}: {error}") from None
        except Exception as error:
            raise _refused(place, error) from error
        self._check_ends(tokens, place)
        return tokens

    def prompt(self, messages: Sequence[Message], place: str) -> list[int]:
        """Ids up to where the assistant's answer begins."""
        if self._own:
            return self([*messages, {"role": "assistant", "content": "."}], place).split()[0]
        self._refuse_markup(messages, place)
        try:
            return list(
                self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
            )
        except Exception as error:
            raise _refused(place, error) from error

    def without_markup(self, text: str) -> str:
        """A text in which the template reads no special token: a blank behind the first character of each."""
        return text if self._own else self._markup.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    def _by_marks(self, messages: Sequence[Message]) -> Tokens:
        encoded = self.tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        ids, spoken = list(encoded["input_ids"]), [mask == 1 for mask in encoded["assistant_masks"]]
        for place in range(1, len(ids)):
            # Many templates leave the token that ends the turn out of their marks, and nobody would learn to stop.
            if spoken[place - 1] and not spoken[place] and ids[place] in self._special:
                spoken[place] = ids[place - 1] not in self._special
        return Tokens(ids, spoken)

    def _by_rendering(self, messages: Sequence[Message]) -> Tokens:
        def render(first: int, **options: Any) -> str:
            return self.tokenizer.apply_chat_template(messages[:first], tokenize=False, **options)

        text, spans = render(len(messages)), []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                before, after = render(number, add_generation_prompt=True), render(number + 1)
                if not (text.startswith(after) and after.startswith(before)):
                    raise InputError(
                        f"message {number + 1}: the chat template writes it otherwise when more follows, so that its "
                        "tokens cannot be found; put {% generation %} around the answers in a --chat_template"
                    )
                # A line end that the template puts behind the end of a turn is not the assistant's.
                spans.append((len(before), len(after.rstrip())))
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spoken = [any(start < right and right <= end for start, end in spans) for _, right in encoded["offset_mapping"]]
        return Tokens(encoded["input_ids"], spoken)

    def _refuse_markup(self, messages: Sequence[Message], place: str) -> None:
        for number, message in enumerate(messages, 1):
            if found := self._markup.search(message["content"]):
                raise InputError(
                    f"{place}: message {number} holds {found[0]!r}, which this tokenizer reads as a token of its own; "
                    "take it out or drop this record"
                )

    def _check_ends(self, tokens: Tokens, place: str) -> None:
        for here, following in zip(range(len(tokens.ids)), [*tokens.spoken[1:], False]):
            if tokens.spoken[here] and not following:
                if tokens.ids[here] not in self._special:
                    raise InputError(
                        f"{place}: the chat template ends an answer with {self.tokenizer.decode(tokens.ids[here])!r}, "
                        "at which nothing can stop; put the end-of-text token behind it in a --chat_template"
                    )
                self.ends.add(tokens.ids[here])
        if not any(tokens.spoken):
            raise InputError(f"{place}: no token to train on: the chat template marks nothing as the assistant's")


def _refused(place: str, error: Exception) -> Exception:
    """A template's own complaint as an `InputError`; other errors as they are."""
    from jinja2 import TemplateError

    if isinstance(error, (TemplateError, TypeError, KeyError, IndexError)):
        return InputError(f"{place}: the chat template refuses it: {' '.join(str(error).split())}")
    return error


@dataclass
class Encoded:
    """
    Rows of `input_ids` and `labels`, and what did not fit.

    Attributes:
        numbers: which conversation each row comes from.
        turns: how many of its messages each row has.
        shortened: conversations that lost their last turns.
        left_out: conversations whose first answer does not fit either.
    """

    rows: list[dict[str, list[int]]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    shortened: int = 0
    left_out: int = 0

    @property
    def trained(self) -> int:
        """Tokens that are predicted."""
        return sum(label != IGNORED for row in self.rows for label in row["labels"])

    @property
    def tokens(self) -> int:
        return sum(len(row["input_ids"]) for row in self.rows)


def encode_conversations(
    encoder: ChatEncoder,
    conversations: Sequence[Sequence[Message]],
    places: Sequence[str],
    max_length: int,
    train_on_prompts: bool = False,
) -> Encoded:
    """
    Rows for training; conversations that are too long lose their last turns, so that each answer stays whole.

    Args:
        max_length: in tokens.
        train_on_prompts: predict all tokens, not the assistant's alone.

    Raises:
        InputError: a conversation is malformed, or none fits.
    """
    encoded = Encoded()
    for number, (messages, place) in enumerate(zip(conversations, places)):
        tokens, kept = encoder(messages, place), len(messages)
        while len(tokens.ids) > max_length and kept:
            kept -= 1
            answered = any(message["role"] == "assistant" for message in messages[:kept])
            if not answered:
                break
            if messages[kept - 1]["role"] == "assistant":
                tokens = encoder(messages[:kept], place)
        if len(tokens.ids) > max_length:
            encoded.left_out += 1
            continue
        encoded.shortened += kept < len(messages)
        labels = [token if spoken or train_on_prompts else IGNORED for token, spoken in zip(tokens.ids, tokens.spoken)]
        # Nothing stands before the first token that could predict it, but in a packed row the neighbour would.
        labels[0] = IGNORED
        encoded.rows.append({"input_ids": tokens.ids, "labels": labels})
        encoded.numbers.append(number)
        encoded.turns.append(kept)
    if not encoded.rows:
        raise InputError(f"max_length {max_length}: no conversation fits, not even to its first answer; raise it")
    return encoded


def pack(rows: Sequence[Mapping[str, list[int]]], length: int, pad_token_id: int) -> list[dict[str, list[int]]]:
    """
    Rows of exactly `length` tokens, filled by best fit. `position_ids` start again with each conversation and with the
    padding, which is how models know that these must not see one another.
    """
    bins, count = best_fit_decreasing(np.array([len(row["input_ids"]) for row in rows]), length)
    packed: list[dict[str, list[int]]] = [{"input_ids": [], "labels": [], "position_ids": []} for _ in range(count)]
    for row, target in zip(rows, bins.tolist()):
        _append(packed[target], row["input_ids"], row["labels"])
    for row in packed:
        room = length - len(row["input_ids"])
        _append(row, [pad_token_id] * room, [IGNORED] * room)
    return packed


def _append(row: dict[str, list[int]], ids: list[int], labels: list[int]) -> None:
    row["input_ids"] += ids
    row["labels"] += labels
    row["position_ids"] += range(len(ids))


class ConversationCollator:
    """
    Batches of rows. Packed ones come without an attention mask, since with one transformers' models overlook that
    positions start again; others are padded on the right.
    """

    def __init__(self, pad_token_id: int, multiple_of: int = 8):
        self.pad_token_id, self.multiple_of = pad_token_id, multiple_of

    def __call__(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, torch.Tensor]:
        if "position_ids" in rows[0]:
            return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
        longest = max(len(row["input_ids"]) for row in rows)
        longest = -(-longest // self.multiple_of) * self.multiple_of

        def padded(name: str, filling: int) -> torch.Tensor:
            return torch.tensor([[*row[name], *[filling] * (longest - len(row[name]))] for row in rows])

        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        return {
            "input_ids": padded("input_ids", self.pad_token_id),
            "labels": padded("labels", IGNORED),
            "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
        }


@torch.no_grad()
def check_packing(model: PreTrainedModel, packed: Sequence[Mapping[str, list[int]]]) -> None:
    """
    Raise `InputError` if a model lets packed conversations see one another: many of the less known ones do.

    A conversation packed with others must give the outputs that it gives alone.
    """
    row = next((row for row in packed if row["position_ids"].count(0) > 1), None)
    if row is None:
        return
    starts = [place for place, position in enumerate(row["position_ids"]) if position == 0]
    start, end = starts[1], [*starts, len(row["input_ids"])][2]
    was_training = model.training
    model.eval()
    whole = {name: torch.tensor([row[name]], device=model.device) for name in ("input_ids", "position_ids")}
    alone = {name: values[:, start:end] for name, values in whole.items()}
    difference = (model(**whole).logits[:, start:end] - (expected := model(**alone).logits)).abs().max().item()
    model.train(was_training)
    if not difference <= 1e-3 * max(1.0, expected.abs().max().item()):
        raise InputError(
            f"{type(model).__name__} lets packed conversations see one another (outputs differ by {difference:.2g}): "
            "add --packing false"
        )


def stop_at(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ends: set[int]) -> None:
    """Make `generate` stop at the tokens that answers end with, and pad with the tokenizer's pad token."""
    config = model.generation_config
    known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    # The end-of-text token stays one: what was learned in pretraining is not unlearned everywhere.
    every = sorted(({tokenizer.eos_token_id, *known} | ends) - {None, tokenizer.pad_token_id} | ends)
    config.eos_token_id = every[0] if len(every) == 1 else every
    config.pad_token_id = tokenizer.pad_token_id


def show(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, list[int]], most: int = 160) -> str:
    """The start of a row as text, with ⟦what is trained⟧ marked."""
    ids, labels = row["input_ids"][:most], row["labels"][:most]
    parts, start = [], 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or (labels[end] == IGNORED) != (labels[start] == IGNORED):
            text = tokenizer.decode(ids[start:end])
            parts.append(text if labels[start] == IGNORED else f"⟦{text}⟧")
            start = end
    return "".join(parts).replace("\n", "⏎") + (" …" if len(row["input_ids"]) > most else "")
