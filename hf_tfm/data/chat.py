"""
Encodes conversations by any chat template, and finds the assistant's tokens.

    record      {"messages": [user, assistant, user, assistant, …], "tools": […]}
    tokens      <|user|> Why? <|end|> <|assistant|> Because. <|eos|>      trained: ................. ⟦Because. <|eos|>⟧
    rows        one conversation each, or several packed by best fit: position_ids start again with each of them

`forms/chat.py` reads records and `chat_rows.py` makes rows. Templates with `{% generation %}` mark the assistant's
tokens; for other templates the text is rendered turn by turn, and the differences are the assistant's.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import InputError, explain
from .conversations import Message, Tools, texts_in
from .tokenizer import (
    ANSWER_TEMPLATE,
    CHAT_TEMPLATE,
    CHAT_TOKENS,
    OLDER_CHAT_TEMPLATE,
    TOOLS_TEMPLATE,
    encode_chat,
    hash_template,
    is_own_template,
)


# For tokenizers without chat tokens: an answer ends with the end-of-text token, which they all have.
PLAIN_TEMPLATE = (
    """\
{{- bos_token if bos_token else '' -}}
{%- if tools -%}
    {{- '### Tools:\\n' -}}
    """
    + TOOLS_TEMPLATE
    + """
    {{- '\\n\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {{- '### ' + message['role'] | capitalize + ':\\n' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}
        """
    + ANSWER_TEMPLATE
    + """
        {{- eos_token -}}
        {%- endgeneration -%}{{- '\\n' -}}
    {%- else -%}
        {{- message['content'] + '\\n\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '### Assistant:\\n' -}}{%- endif -%}
"""
)
# SHA-256 of the templates before they knew tools, which saved tokenizers have.
_OLDER_TEMPLATES = (OLDER_CHAT_TEMPLATE, "d1adb1b28c3f30ee78b3b8a9f2d7275720f51d0000dd76c6a72067bd4f9b8435")
# What a message holds for a template; names under which templates read reasoning.
_MESSAGE_KEYS = ("role", "content", "tool_calls", "tool_call_id", "name")
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


class RefusedConversation(InputError):
    """A conversation that cannot be encoded, while others may be."""


def ensure_chat_template(tokenizer: PreTrainedTokenizerBase, file: str | None = None) -> None:
    """
    Give the tokenizer the chat template of a file or, if it has none, one that suits its tokens.

    An older template of this package is replaced by the one that knows tools.

    Raises:
        InputError: The file cannot be read, or the tokenizer has no end-of-text token to end an answer with.
    """
    if file is not None:
        with explain(f"--chat_template {file}", "cannot be read ({reason})", OSError, UnicodeDecodeError):
            tokenizer.chat_template = Path(file).read_text(encoding="utf-8")
    elif not tokenizer.chat_template or hash_template(tokenizer.chat_template) in _OLDER_TEMPLATES:
        has_chat_tokens = set(CHAT_TOKENS) <= set(tokenizer.get_vocab())
        tokenizer.chat_template = CHAT_TEMPLATE if has_chat_tokens else PLAIN_TEMPLATE
    if tokenizer.eos_token is None:
        raise InputError("the tokenizer has no end-of-text token, so that no model could learn to stop; set eos_token")


def add_tokens(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, tokens: Sequence[str], adapter: bool = False
) -> list[int]:
    """
    Add tokens that records may contain and answers show, with embeddings in the model, and return their ids.

    Args:
        tokens: New tokens, or spare ones of the tokenizer.
        adapter: Whether an adapter is trained, which fits its base only if the embeddings keep their size.

    Raises:
        InputError: With an adapter, the embeddings have no rows left for the new tokens.
    """
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
    if any(token in known for token in tokens):
        # Tokens that were special stay special in the running tokenizer, so it is built anew.
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
    """A conversation as token ids, and for each whether it is the assistant's."""

    ids: list[int]
    spoken: list[bool]

    def runs(self) -> list[range]:
        """Returns the positions of the assistant's tokens, a range for each run of them."""
        edges = [place for place, (before, spoken) in enumerate(zip([False, *self.spoken], [*self.spoken, False]))
                 if before != spoken]  # fmt: skip
        return [range(start, end) for start, end in zip(edges[::2], edges[1::2])]

    def answer_start(self) -> int:
        """Returns the position at which the assistant's last answer begins."""
        last = max(position for position, spoken in enumerate(self.spoken) if spoken)
        return next((position + 1 for position in range(last, -1, -1) if not self.spoken[position]), 0)

    def split(self) -> tuple[list[int], list[int]]:
        """Returns the prompt of the last answer, and the answer with the token that ends it."""
        start = self.answer_start()
        end = len(self.spoken) - self.spoken[::-1].index(True)
        return self.ids[:start], self.ids[start:end]


class ChatEncoder:
    """
    Encodes conversations by a tokenizer's chat template.

    Args:
        reasoning: "keep" or "drop" the reasoning of the messages; by default kept if the template writes it.

    Attributes:
        ends: Ids of the tokens that end the answers encoded so far; generation must stop at them.
        dropped_reasoning: Number of messages encoded without their reasoning.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, reasoning: str | None = None):
        if not tokenizer.is_fast:
            raise InputError("this tokenizer is a slow one, which cannot tell which tokens belong to an answer")
        self.tokenizer, self.reasoning = tokenizer, reasoning
        self.ends: set[int] = set()
        self.dropped_reasoning = 0
        self._written: dict[str, Any] = {}
        self._own = is_own_template(tokenizer.chat_template)
        self._marked = re.search(r"{%-?\s*generation\b", tokenizer.chat_template or "") is not None
        added_tokens = tokenizer.added_tokens_decoder
        self._special = {
            *tokenizer.all_special_ids,
            *(number for number, token in added_tokens.items() if token.special),
        }
        words = sorted((tokenizer.convert_ids_to_tokens(number) for number in self._special), key=len, reverse=True)
        self._markup = re.compile("|".join(map(re.escape, words)) or r"(?!)")

    def __call__(self, messages: Sequence[Message], place: str, tools: Tools = None) -> Tokens:
        """
        Returns token ids, and which are the assistant's, including the token that ends an answer.

        Raises:
            InputError: The template does not write tools, calls or reasoning, or its answers end without a token to
                stop at.
            RefusedConversation: The template refuses the turns, or they hold special tokens.
        """
        messages = self._prepare(messages, tools, place)
        try:
            if self._own:
                encoded = encode_chat(self.tokenizer, messages, tools)
                tokens = Tokens(encoded["input_ids"], [mask == 1 for mask in encoded["assistant_masks"]])
            else:
                self._refuse_markup(messages, tools, place)
                tokens = self._by_marks(messages, tools) if self._marked else self._by_rendering(messages, tools)
        except InputError as error:
            raise error if str(error).startswith(place) else RefusedConversation(f"{place}: {error}") from None
        except Exception as error:
            raise _refused(place, error) from error
        self._check_ends(tokens, place)
        self._check_calls(tokens, messages)
        return tokens

    def prompt(self, messages: Sequence[Message], place: str, tools: Tools = None) -> list[int]:
        """Returns the ids up to the assistant's answer."""
        if self._own:
            return self([*messages, {"role": "assistant", "content": "."}], place, tools).split()[0]
        messages = self._prepare(messages, tools, place)
        self._refuse_markup(messages, tools, place)
        try:
            return list(
                self.tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_dict=True)[
                    "input_ids"
                ]
            )
        except Exception as error:
            raise _refused(place, error) from error

    def _prepare(self, messages: Sequence[Message], tools: Tools, place: str) -> list[Message]:
        """
        Returns messages as the template reads them. Raises `InputError` if it does not write something that they have.
        """
        prepared = [{key: message[key] for key in _MESSAGE_KEYS if key in message} for message in messages]
        if tools:
            renamed = [_renamed(tool) for tool in tools]
            self._require("tools", prepared, tools, prepared, renamed)
        for number, message in enumerate(messages):
            head = prepared[: number + 1]
            if message.get("tool_calls"):
                changed = {**head[-1], "tool_calls": [_renamed(call) for call in message["tool_calls"]]}
                self._require("tool_calls", head, tools, [*head[:-1], changed], tools)
            if message["role"] == "tool":
                changed = {**head[-1], "content": message["content"] + "x"}
                self._require("tool", head, tools, [*head[:-1], changed], tools)
            if "reasoning_content" in message:
                name = self._reasoning_key(head, tools, message["reasoning_content"])
                if name:
                    prepared[number] = {**head[-1], name: message["reasoning_content"]}
                else:
                    self.dropped_reasoning += 1
        return prepared

    def _require(self, name: str, one: Any, tools: Tools, other: Any, other_tools: Tools) -> None:
        """Raise `InputError` unless the template writes two conversations differently, which differ in one thing."""
        if not self._writes_otherwise(name, one, tools, other, other_tools):
            what = "results of tools (role tool)" if name == "tool" else name
            field = "tool_calls" if name == "tool" else name
            raise InputError(
                f"the chat template of this tokenizer does not write {what}: give another by --chat_template, "
                f"or leave them out by --ignore_fields {field}"
            )

    def _writes_otherwise(self, name: str, one: Any, tools: Tools, other: Any, other_tools: Tools) -> bool:
        """Whether the template writes two conversations differently; decided by the first that has `name`."""
        if name not in self._written:
            try:
                self._written[name] = self._render(one, tools) != self._render(other, other_tools)
            except Exception:
                return True  # the encoding will say what the template refuses
        return self._written[name]

    def _reasoning_key(self, messages: Sequence[Message], tools: Tools, reasoning: str) -> str | None:
        """Returns the name under which the template reads the last message's reasoning; None to leave it out."""
        if self.reasoning == "drop":
            return None
        for name in _REASONING_KEYS:
            if self._writes_otherwise(
                name, messages, tools, [*messages[:-1], {**messages[-1], name: reasoning}], tools
            ):
                return name
        if self.reasoning == "keep":
            raise InputError(
                "the chat template of this tokenizer does not write reasoning: give another by --chat_template, or "
                "--reasoning drop"
            )
        return None

    def _render(self, messages: Sequence[Message], tools: Tools, **options: Any) -> str:
        return self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options)

    def without_markup(self, text: str) -> str:
        """Returns a text without special tokens: a space is put behind the first character of each."""
        return text if self._own else self._markup.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    def _by_marks(self, messages: Sequence[Message], tools: Tools) -> Tokens:
        encoded = self.tokenizer.apply_chat_template(
            messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, spoken = list(encoded["input_ids"]), [mask == 1 for mask in encoded["assistant_masks"]]
        for place in range(1, len(ids)):
            # Many templates do not mark the token that ends the turn, so that no model would learn to stop.
            if spoken[place - 1] and not spoken[place] and ids[place] in self._special:
                spoken[place] = ids[place - 1] not in self._special
        return Tokens(ids, spoken)

    def _by_rendering(self, messages: Sequence[Message], tools: Tools) -> Tokens:
        def render(first: int, **options: Any) -> str:
            return self._render(messages[:first], tools, **options)

        text, spans = render(len(messages)), []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt, turns = render(number, add_generation_prompt=True), render(number + 1)
                if not (text.startswith(turns) and turns.startswith(prompt)):
                    raise InputError(
                        f"message {number + 1}: the chat template writes it otherwise when more follows, so that its "
                        "tokens cannot be found; put {% generation %} around the answers in a --chat_template"
                    )
                # A line end behind the end of a turn is not the assistant's.
                spans.append((len(prompt), len(turns.rstrip())))
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spoken = [
            any(start < token_end and token_end <= end for start, end in spans)
            for _, token_end in encoded["offset_mapping"]
        ]
        return Tokens(encoded["input_ids"], spoken)

    def _refuse_markup(self, messages: Sequence[Message], tools: Tools, place: str) -> None:
        for number, value in enumerate([*messages, tools], 1):
            for text in texts_in(value):
                if match := self._markup.search(text):
                    where = f"message {number}" if value is not tools else "tools"
                    raise RefusedConversation(
                        f"{place}: {where} holds {match[0]!r}, which is a special token of this tokenizer; "
                        "take it out or drop this record"
                    )

    def _check_calls(self, tokens: Tokens, messages: Sequence[Message]) -> None:
        """Raise `InputError` if the template does not mark calls of tools as the assistant's."""
        names = [call["function"]["name"] for message in messages for call in message.get("tool_calls", ())]
        if names and "marked" not in self._written:
            spoken = self.tokenizer.decode(
                [token for run in tokens.runs() for token in tokens.ids[run.start : run.stop]]
            )
            if not all(name in spoken for name in names):
                raise InputError(
                    "the chat template of this tokenizer does not mark tool_calls as the assistant's: put "
                    "{% generation %} around them in a --chat_template, or leave them out by --ignore_fields tool_calls"
                )
            self._written["marked"] = True

    def _check_ends(self, tokens: Tokens, place: str) -> None:
        for token, is_spoken, continues in zip(tokens.ids, tokens.spoken, [*tokens.spoken[1:], False], strict=True):
            if is_spoken and not continues:
                if token not in self._special:
                    raise InputError(
                        f"{place}: the chat template ends an answer with {self.tokenizer.decode(token)!r}, "
                        "at which nothing can stop; put the end-of-text token behind it in a --chat_template"
                    )
                self.ends.add(token)
        if not any(tokens.spoken):
            raise RefusedConversation(
                f"{place}: no token to train on: the chat template marks nothing as the assistant's"
            )


def _refused(place: str, error: Exception) -> Exception:
    """Returns a template's own error as an `InputError`; other errors unchanged."""
    from jinja2 import TemplateError

    if isinstance(error, (TemplateError, TypeError, KeyError, IndexError)):
        return RefusedConversation(f"{place}: the chat template refuses it: {' '.join(str(error).split())}")
    return error


def _renamed(called: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a tool, or a call of one, with another name."""
    return {**called, "function": {**called["function"], "name": called["function"]["name"] + "x"}}


def stop_at(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ends: set[int]) -> None:
    """Make `generate` stop at the tokens that end answers, and pad with the tokenizer's pad token."""
    config = model.generation_config
    configured_ids = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    # The end-of-text token remains an end, because some text may still end with it as in pretraining.
    end_ids = sorted(({tokenizer.eos_token_id, *configured_ids} | ends) - {None, tokenizer.pad_token_id} | ends)
    config.eos_token_id = end_ids[0] if len(end_ids) == 1 else end_ids
    config.pad_token_id = tokenizer.pad_token_id
