"""The jobs that files are read for, and the fields of their records."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Field:
    """
    A field of a job's records.

    Args:
        option: The option that names it in a user's file, in scripts; None if there is none.
        aliases: Names under which it is looked for if the user names none, besides its own.
        required: Whether a record needs it; "label" for fields that only training and measuring need.
    """

    option: str | None
    aliases: tuple[str, ...] = ()
    required: bool | str = True


@dataclass(frozen=True)
class Job:
    """
    A kind of records.

    Args:
        fields: The fields of its records by their names.
        meaningful: Fields of the users' files that change what a record means. A form that does not read one of them
            refuses it by this reason, unless the user leaves it out by `--ignore_fields`.
    """

    summary: str
    fields: Mapping[str, Field]
    meaningful: Mapping[str, str] = field(default_factory=dict)


_LABEL = "label"
# Fields that belong to a prompt; forms of conversations whose prompt is a text read them.
_PROMPT_FIELDS = {
    "system": "is a system prompt, which this form does not read",
    "system_prompt": "is a system prompt, which is not read beside another",
    "history": "has earlier turns, which this form does not read",
    "input": "belongs to the prompt, and this form does not read it",
    "context": "belongs to the prompt, and this form does not read it",
    "tools": "has tools, which this form does not read",
    "functions": "has tools, which are not read beside others",
    **dict.fromkeys(
        ("image", "images", "audio", "audios", "video", "videos"),
        "belongs to the prompt, and a model of texts cannot read it",
    ),
}
JOBS: dict[str, Job] = {
    "classification": Job(
        "texts or pairs of texts with a label, several labels or a number",
        {
            "text": Field(
                "text_field",
                (
                    *(
                        "sentence",
                        "content",
                        "review",
                        "review_body",
                        "comment",
                        "comment_text",
                        "tweet",
                        "message",
                        "body",
                    ),
                    *("utterance", "sms", "headline", "abstract", "description", "title", "question", "query"),
                ),
            ),
            "text_pair": Field("text_pair_field", required=False),
            "label": Field(
                "label_field", ("labels", "class", "category", "intent", "sentiment", "target", "cats"), _LABEL
            ),
        },
    ),
    "tags": Job(
        "words with a tag each, or texts with spans",
        {
            "tokens": Field("words_field", ("words", "word", "token", "text", "sentence")),
            "text": Field("text_field", required=False),
            "tags": Field(
                "tags_field",
                ("ner_tags", "labels", "pos_tags", "upos", "ner", "tag", "ner_tag", "word_labels", "pos", "label"),
                _LABEL,
            ),
        },
    ),
    "questions": Job(
        "questions about a context, with answers in it",
        {
            "question": Field("question_field"),
            "context": Field("context_field", ("passage", "paragraph")),
            "answers": Field("answers_field", required=_LABEL),
        },
    ),
    "choices": Job(
        "questions with options, of which one is right",
        {
            "question": Field("question_field", ("question_stem", "sentence", "goal", "query", "problem")),
            "context": Field("context_field", ("article", "passage", "story"), required=False),
            "options": Field("options_fields", ("choices", "endings", "answers", "candidates")),
            "answer": Field(
                "answer_field",
                (
                    "label",
                    "answerKey",
                    "answer_key",
                    "answer_idx",
                    "answer_index",
                    "correct_answer_id",
                    "correct",
                    "gold",
                    "cop",
                ),
                _LABEL,
            ),
        },
    ),
    "pairs": Job(
        "pairs of texts, perhaps with a score or negatives",
        {
            "text": Field(
                "text_field",
                ("sentence1", "question1", "text1", "anchor", "query", "question", "sentence_A", "premise", "text"),
            ),
            "text_pair": Field(
                "text_pair_field",
                (
                    "sentence2",
                    "question2",
                    "text2",
                    "positive",
                    "pos",
                    "answer",
                    "document",
                    "passage",
                    "sentence_B",
                    "hypothesis",
                    "text_pair",
                ),
            ),  # fmt: skip
            "negative": Field("negative_field", ("negative", "neg", "negatives", "hard_negatives"), required=False),
            "score": Field(
                "score_field",
                ("score", "similarity", "similarity_score", "relatedness_score", "label", "gold_label", "is_duplicate"),
                required=False,
            ),
        },
    ),
    "translation": Job(
        "texts with their translations",
        {
            "source": Field("source_field", ("src", "source_text", "input", "text")),
            "target": Field("target_field", ("tgt", "trg", "target_text", "translation", "output"), _LABEL),
        },
    ),
    "chat": Job(
        "conversations: lists of messages with role and content",
        {
            "messages": Field("messages_field"),
            "prompt": Field("prompt_field"),
            "response": Field("response_field"),
            "system": Field("system_field", required=False),
            "tools": Field("tools_field", required=False),
        },
        _PROMPT_FIELDS | {"weight": "weighs records, which the training does not"},
    ),
    "preferences": Job(
        "prompts with a better and a worse answer",
        {
            "prompt": Field("prompt_field"),
            "chosen": Field("chosen_field"),
            "rejected": Field("rejected_field"),
            "system": Field("system_field", required=False),
            "tools": Field("tools_field", required=False),
        },
        _PROMPT_FIELDS,
    ),
    "prompts": Job(
        "prompts with an answer that can be verified",
        {
            "prompt": Field("prompt_field"),
            "answer": Field("answer_field", required=_LABEL),
            "system": Field("system_field", required=False),
            "tools": Field("tools_field", required=False),
        },
        _PROMPT_FIELDS,
    ),
    "text": Job("documents", {"text": Field("text_field", ("content",))}),
}
