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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import InputError
from .conversations import Message
from .tokenizer import CHAT_TEMPLATE, CHAT_TOKENS, encode_chat


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


def stop_at(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ends: set[int]) -> None:
    """Make `generate` stop at the tokens that answers end with, and pad with the tokenizer's pad token."""
    config = model.generation_config
    known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    # The end-of-text token stays one: what was learned in pretraining is not unlearned everywhere.
    every = sorted(({tokenizer.eos_token_id, *known} | ends) - {None, tokenizer.pad_token_id} | ends)
    config.eos_token_id = every[0] if len(every) == 1 else every
    config.pad_token_id = tokenizer.pad_token_id
