"""Fine-tuning for extractive question answering: windows, spans, no answer, errors for wrong input."""

import json
import random
from pathlib import Path

import finetune_qa
import numpy as np
import pytest
import torch
from finetune_checks import (
    arguments,
    check_adapter,
    check_equal_training,
    check_evaluation_batches,
    check_refusal,
    check_resumption,
    check_whole_folder,
    record_of,
    write,
)
from peft import AutoPeftModelForQuestionAnswering
from tiny import build, build_tokenizer
from tokenizers import normalizers, pre_tokenizers, processors
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, ModernBertConfig, ModernBertForMaskedLM

from hf_tfm.core.checkpoints import complete_checkpoints
from hf_tfm.core.errors import InputError
from hf_tfm.data.forms.form import Reading
from hf_tfm.data.forms.reader import read_records, read_rows
from hf_tfm.data.records import Records
from hf_tfm.data.tables import ReadingOptions
from hf_tfm.evaluate.labelled import measure_head, open_task
from hf_tfm.tasks.question_answering import QuestionAnswering, answer_by_rules, choose_threshold, score_answers
from hf_tfm.tasks.spans import ContextWindow, Span, SpanAnswer, encode_questions, find_answers, span_columns
from hf_tfm.tasks.squad import Question, read_questions
from hf_tfm.tasks.task import Split
from hf_tfm.train.adapters import add_adapter, merge_adapter
from hf_tfm.train.base_model import load_base_model
from hf_tfm.train.recipe import FinetuningRecipe, parse_recipe


COLOURS = ["cat", "moon", "rain", "roof", "book"]
FILLERS = ["the", "and", "a", "on", "of", "what", "small", "them"]


def questions(count: int, seed: int, length: int = 6, unanswerable: float = 0.0) -> list[dict]:
    """The answer is the word behind "ships"; without ships there is no answer."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        words = draw.choices(FILLERS, k=draw.randint(2, length))
        answer = draw.choice(COLOURS)
        answered = draw.random() >= unanswerable
        place = draw.randint(0, len(words))
        words[place:place] = ["ships", answer] if answered else [answer]
        context = " ".join(words)
        start = context.index(f"ships {answer}") + 6 if answered else 0
        answers = {"text": [answer] if answered else [], "answer_start": [start] if answered else []}
        rows.append({"id": str(number), "question": "who follows", "context": context, "answers": answers})
    return rows


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("records")
    write(root / "train.jsonl", questions(80, 1))
    write(root / "more.jsonl", questions(80, 3, unanswerable=0.4))
    write(root / "test.jsonl", questions(30, 2, unanswerable=0.4))
    return root


def answers_one_by_one(folder: Path, rows: list[dict], model=None, **sizes) -> list[SpanAnswer]:
    """The answers to each record by the folder's model, without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = (model or AutoModelForQuestionAnswering.from_pretrained(folder)).eval()
    answers = []
    for row in rows:
        question = Question(row["question"], row["context"])
        inputs, windows = encode_questions(tokenizer, model, [question], **{"max_length": 64, "stride": 8, **sizes})
        logits = []
        for inside in inputs:
            with torch.no_grad():
                out = model(**{name: torch.tensor([ids]) for name, ids in inside.items()})
            logits.append(torch.stack([out.start_logits[0], out.end_logits[0]], -1).numpy())
        answers += find_answers(logits, windows, [row["context"]])
    return answers


def test_answers_and_no_answers_with_an_encoder(models, files, tmp_path, capsys):
    out = tmp_path / "run"
    argv = arguments(
        models / "encoder", files / "train.jsonl", out, validation_file=files / "more.jsonl",
        test_file=files / "test.jsonl", num_train_epochs=5, baselines="true", max_length=32, stride=4,
    )  # fmt: skip
    argv[argv.index("--train_file") + 1 : argv.index("--train_file") + 2] = [
        str(files / "train.jsonl"), str(files / "more.jsonl"),
    ]  # fmt: skip
    assert finetune_qa.main(argv) == 0
    shown = capsys.readouterr().out
    assert "160 questions" in shown and "without an answer" in shown and "best sentence" in shown and "%)" in shown

    record, rows = record_of(out), questions(30, 2, unanswerable=0.4)
    threshold = record["no_answer_threshold"]
    texts = [answer.text(threshold) for answer in answers_one_by_one(out, rows, max_length=32, stride=4)]
    right = np.mean([text == "".join(row["answers"]["text"]) for text, row in zip(texts, rows)])
    assert record["results"]["exact_match"]["value"] == pytest.approx(100 * right) and right > 0.7
    assert "" in texts and record["results"]["f1 of unanswerable"]["value"] > 50
    assert record["max_length"] == 32 and record["stride"] == 4
    assert record["data"][0]["name"].endswith("more.jsonl") and " + " in record["data"][0]["name"]
    assert record["baselines"]["no answer"]["f1 of unanswerable"]["value"] == 100
    for folder in (out, *complete_checkpoints(out)):
        check_whole_folder(folder)


@pytest.mark.parametrize("base", ["decoder", "llama"])
def test_decoders_find_answers(models, files, tmp_path, base):
    out = tmp_path / "run"
    argv = arguments(
        models / base, files / "train.jsonl", out, test_file=files / "train.jsonl", num_train_epochs=4, bf16="true",
        stride=8,
    )  # fmt: skip
    assert finetune_qa.main(argv) == 0
    record, rows = record_of(out), questions(80, 1)
    assert record["no_answer_threshold"] is None, "all questions have answers"
    texts = [answer.text() for answer in answers_one_by_one(out, rows)]
    right = np.mean([text == row["answers"]["text"][0] for text, row in zip(texts, rows)])
    assert record["results"]["exact_match"]["value"] == pytest.approx(100 * right) and right > 0.4


@pytest.mark.parametrize(("variant", "base"), [("lora", "encoder"), ("rslora", "decoder")])
def test_adapters_are_saved_with_the_whole_head(models, files, tmp_path, variant, base):
    out = tmp_path / "run"
    argv = arguments(
        models / base, files / "train.jsonl", out, test_file=files / "test.jsonl", lora="true", lora_variant=variant,
        lora_rank=4, learning_rate=2e-2, stride=8,
    )  # fmt: skip
    assert finetune_qa.main(argv) == 0
    check_adapter(out, "qa_outputs")
    rows = questions(30, 2, unanswerable=0.4)
    auto = AutoPeftModelForQuestionAnswering.from_pretrained(out)
    texts = [answer.text() for answer in answers_one_by_one(out, rows, auto)]
    right = np.mean([text == "".join(row["answers"]["text"]) for text, row in zip(texts, rows)])
    assert record_of(out)["results"]["exact_match"]["value"] == pytest.approx(100 * right)
    assert [answer.text() for answer in answers_one_by_one(out, rows, merge_adapter(auto))] == texts


def test_the_evaluation_loss_does_not_depend_on_its_batches(models, files, tmp_path):
    def run(out: Path, **more) -> list[str]:
        files_ = dict(train=files / "train.jsonl", validation_file=files / "test.jsonl")
        return arguments(models / "encoder", out=out, stride=8, **files_, **more)

    check_evaluation_batches(finetune_qa, run, tmp_path)


def test_stopped_and_resumed_run_equals_one_without_a_stop(models, files, tmp_path, monkeypatch, capsys):
    def run(out: Path, **more) -> list[str]:
        files_ = dict(train=files / "train.jsonl", validation_file=files / "test.jsonl")
        return arguments(models / "encoder", out=out, stride=8, **files_, **more)

    check_resumption(finetune_qa, run, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("base", ["bert", "decoder"])
def test_accumulated_batches_and_the_padding_side_change_nothing(models, files, tmp_path, base):
    check_equal_training(finetune_qa, models / base, files / "more.jsonl", tmp_path, stride=8)


@pytest.mark.parametrize("name", ["TfmEncoderForQuestionAnswering", "TfmDecoderForQuestionAnswering"])
@pytest.mark.parametrize("stride", [0, 5])
def test_windows_have_every_token_and_labels_mark_the_answer(name, stride):
    tokenizer, model = build_tokenizer(), build(name)
    rows = questions(12, 5, length=40)
    asked = [
        Question(row["question"], row["context"], tuple(row["answers"]["text"]), row["answers"]["answer_start"][0])
        for row in rows
    ]
    inputs, windows = encode_questions(tokenizer, model, asked, 24, stride)
    labels = span_columns(inputs, windows, asked)
    assert len(windows) > 24 and tokenizer.backend_tokenizer.truncation is None
    for number, question in enumerate(asked):
        mine = [part for part in zip(inputs, windows, labels) if part[1].question == number]
        tokens = tokenizer(question.context, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        assert {span for _, window, _ in mine for span in window.spans} == set(tokens)
        found = 0
        for row, window, (start, end, length) in mine:
            assert len(row["input_ids"]) <= 24
            assert length == len(row["input_ids"])
            if (start, end) == (window.null, window.null):
                continue
            found += 1
            inside = window.spans[start - window.first][0], window.spans[end - window.first][1]
            assert question.context[slice(*inside)].strip() == question.answers[0]
        assert found or stride == 0, "an overlap longer than the answer leaves it whole somewhere"
    assert windows[0].null == (0 if "Encoder" in name else len(inputs[0]["input_ids"]) - 1)


@pytest.mark.parametrize(
    ("context", "answer", "words"),
    [(" the cat sat", " the cat", "the cat"), ("a cat ", "cat ", "cat"), ("\ufffda cat", "\ufffda", "a")],
)
def test_answers_may_have_characters_without_a_token_at_the_ends_of_a_context(context, answer, words):
    tokenizer, model = build_tokenizer(), build("TfmEncoderForQuestionAnswering")
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    asked = [Question("who?", context, (answer,), context.index(answer))]
    rows, [window] = encode_questions(tokenizer, model, asked, 40, 4)
    [(start, end, _)] = span_columns(rows, [window], asked)
    assert start > window.null, "the label is not that of no answer"
    assert context[window.spans[start - window.first][0] : window.spans[end - window.first][1]] == words


def test_the_token_for_no_answer_is_no_span():
    """In a causal model this is the last token of a row, which may belong to the context."""
    tokenizer, model = build_tokenizer(), build("TfmDecoderForQuestionAnswering")
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    context = "the cat sat on the mat and looked at the moon " * 3
    asked = [Question("who?", context, ("cat",), 4)]
    rows, windows = encode_questions(tokenizer, model, asked, 20, 4)
    labels = span_columns(rows, windows, asked)
    assert len(rows) > 3 and windows[1].null - windows[1].first == len(windows[1].spans) - 1
    logits = np.zeros((len(rows), 20, 2))
    # The right columns have the highest logits, in some rows higher than in others.
    for row, (start, end, _), logit in zip(logits, labels, [5.0, 9.0, 9.0, *[0.0] * len(rows)]):
        row[[start, end], [0, 1]] = logit
    [answer] = find_answers(logits, windows, [context])
    assert answer.spans[0].text == "cat"


def test_answers_keep_an_accent_that_the_tokenizer_drops():
    [answer] = find_answers(np.zeros((1, 2, 2)), [ContextWindow(0, 1, [(0, 4)], 0)], ["cafe\u0301 noir"])
    assert answer.spans[0].text == "cafe\u0301"


def test_a_head_of_another_name_is_saved_with_the_adapter(tmp_path):
    """PEFT knows only `qa_outputs`; ModernBERT's head is called `classifier`."""
    size = dict(vocab_size=320, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    config = ModernBertConfig(**size, pad_token_id=0, bos_token_id=4, eos_token_id=5, cls_token_id=4, sep_token_id=5)
    ModernBertForMaskedLM(config).save_pretrained(tmp_path / "base")
    recipe = FinetuningRecipe(model=str(tmp_path / "base"), train_file="", lora=True)
    model, new = load_base_model(AutoModelForQuestionAnswering, recipe, build_tokenizer())
    adapted = add_adapter(model, recipe, "QUESTION_ANS", new)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    adapted.save_pretrained(tmp_path / "adapter")
    again = AutoPeftModelForQuestionAnswering.from_pretrained(tmp_path / "adapter").eval()
    ids = torch.arange(8, 20)[None]
    torch.testing.assert_close(again(input_ids=ids).start_logits, adapted.eval()(input_ids=ids).start_logits)


def test_spans_are_the_best_of_all_possible_ones():
    draw = np.random.default_rng(0)
    context = " ".join(f"w{n:02d}" for n in range(45))
    spans = [(4 * n, 4 * n + 3) for n in range(45)]
    windows = [ContextWindow(0, 5, spans[:30], 0), ContextWindow(0, 5, spans[15:], 0)]
    logits = draw.normal(size=(2, 40, 2)).astype(np.float32)
    [answer] = find_answers(logits, windows, [context], best=7)
    every = {}
    for row, window in zip(logits.astype(np.float64), windows):
        for i in range(30):
            for j in range(i, 30):
                place = window.spans[i][0], window.spans[j][1]
                every[place] = max(every.get(place, -9e9), row[5 + i, 0] + row[5 + j, 1])
    best = sorted(every.items(), key=lambda item: -item[1])[:7]
    assert [((span.start, span.end), pytest.approx(span.score)) for span in answer.spans] == best
    assert all(context[span.start : span.end] == span.text for span in answer.spans)
    assert answer.null == pytest.approx(logits[:, 0].astype(np.float64).sum(-1).min() - best[0][1])
    assert answer.text() == answer.spans[0].text and answer.text(answer.null - 1e-9) == ""
    shares = answer.probabilities()
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) < 1
    [nothing] = find_answers(logits[:1], [ContextWindow(0, 5, [], 0)], ["\u200b"])
    assert nothing.spans == nothing.probabilities() == [] and nothing.text() == ""


@pytest.mark.parametrize("seed", range(5))
def test_threshold_has_the_highest_f1(seed):
    draw = random.Random(seed)
    asked = [Question("?", "x y", ("x",) if draw.random() < 0.5 else ()) for _ in range(20)]
    answers = [SpanAnswer([Span(draw.choice("xy"), 0, 1, 0.0)], draw.gauss(0, 1)) for _ in asked]

    def f1_at(threshold) -> float:
        return score_answers([answer.text(threshold) for answer in answers], asked)[:, 0].mean()

    chosen = choose_threshold(answers, asked)
    tried = [answer.null for answer in answers] + [-9.0, 9.0]
    assert f1_at(chosen) == pytest.approx(max(map(f1_at, tried)))
    assert choose_threshold(answers, [Question("?", "a", ("a",))] * 20) is None

    # A question asked twice, with and without an answer, is on one side of any threshold.
    asked = [Question("?", "x y", answers) for answers in (("x",), (), ())]
    answers = [SpanAnswer([Span("x", 0, 1, 0.0)], 0.5)] * 3
    assert f1_at(choose_threshold(answers, asked)) == pytest.approx(2 / 3)


def split(questions: list[Question]) -> Split:
    return Split(Records([], [], ""), questions)


def test_scores_are_the_squad_metrics():
    from hf_tfm.evaluate.metrics.squad.squad import Squad

    asked = [Question("?", "", answers) for answers in (("The cat.", "dog"), ("fox runs",), ("something",))]
    given = ["cat", "a red fox", "nothing"]
    expected = Squad()._compute(
        [{"id": n, "prediction_text": text} for n, text in enumerate(given)],
        [{"id": n, "answers": {"text": list(question.answers)}} for n, question in enumerate(asked)],
    )
    assert QuestionAnswering().figures(given, split(asked)) == pytest.approx(expected)
    assert score_answers(["", "x"], [Question("?", "")] * 2).tolist() == [[1, 1], [0, 0]]
    estimates = QuestionAnswering().estimates([*given, ""], split([*asked, Question("?", "")]))
    assert estimates["f1 of unanswerable"].value == 100 and estimates["f1 of answerable"].n == 3


def test_baselines_answer_by_rules():
    context = "Rain fell. Seven ships sailed to Norway in 1901. The cat slept."
    asked = [Question("Where did the ships sail?", context, ("Norway",), 33)]
    guesses = answer_by_rules(asked, asked)
    assert guesses["best sentence"] == ["Seven ships sailed to Norway in 1901."]
    assert guesses["best sentence's new words"] == ["Seven"] and guesses["random words"][0] in context
    wrapped = Question("Where did ships sail?", "No one knew. “Seven ships\nsailed far.” It was late.\n\nShips")
    assert answer_by_rules([wrapped], asked)["best sentence"] == ["“Seven ships\nsailed far.”"]
    assert "no answer" not in guesses and answer_by_rules(asked, [Question("?", "a")])["no answer"] == [""]


CONTEXT = "a cat, a dog, and nobody else"


def records_of(*answers, **options) -> Records:
    rows = [{"question": "q", "context": CONTEXT, "answers": answer} for answer in answers]
    return read_rows(rows, Reading("questions", options=ReadingOptions(**options)), "f")


def test_every_form_of_answers_is_read():
    forms = [
        {"text": ["cat", "a dog"], "answer_start": [2, 7]},
        {"text": ["cat"], "answer_start": []},
        {"text": "cat", "answer_start": 2},
        [{"text": "cat", "answer_start": 2}],
        ["cat"],
        "cat",
        json.dumps({"text": ["cat"], "answer_start": [2]}),
    ]
    for form in forms:
        [question] = read_questions(records_of(form))
        assert question.answers[0] == "cat" and question.start == 2 and question.end == 5, form
    for form in ({"text": [], "answer_start": []}, [], "", {"text": None}):
        [question] = read_questions(records_of(form))
        assert question.answers == (), form
    kept = records_of("cat", "cow", "dog", skip_bad=True)
    assert kept.places == ["f, row 1", "f, row 3"]
    assert [question.answers for question in read_questions(kept)] == [("cat",), ("dog",)]


def test_files_of_squad_itself_are_unfolded(tmp_path):
    asked = [{"id": "7", "question": "q", "answers": [{"text": "cat", "answer_start": 2}]}]
    asked += [{"id": "8", "question": "r", "answers": [], "is_impossible": True}]
    nested = {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": "a cat", "qas": asked}]}]}
    flat = read_rows(nested["data"], Reading("questions"))
    assert [record["id"] for record in flat] == ["7", "8"]
    assert [question.answers for question in read_questions(flat)] == [("cat",), ()]

    for indent in (None, 2):
        (tmp_path / "squad.json").write_text(json.dumps(nested, indent=indent))
        assert read_records(tmp_path / "squad.json", Reading("questions")) == flat
    model = build("TfmEncoderForQuestionAnswering")
    task = open_task("AutoModelForQuestionAnswering", {})
    measured = measure_head(model, build_tokenizer(), task, read_records(tmp_path, task.reading()))
    assert measured["f1"].n == 2


BAD_ANSWERS = {
    "not there": ({"text": ["cow"], "answer_start": [2]}, "an answer is not in its context ('cow')"),
    "elsewhere": ({"text": ["cat"], "answer_start": [20]}, "in the context ('cat' is not at 20 but at 2)"),
    "second one not there": ({"text": ["cat", "cow"], "answer_start": [2, 3]}, "is not in its context ('cow')"),
    "counts differ": ({"text": ["cat"], "answer_start": [2, 7]}, "in field 'answers' (1 answers, 2 starts)"),
    "blank": ({"text": [" "], "answer_start": [1]}, "an answer in field 'answers' is blank"),
    "null": (None, "field 'answers' is null"),
    "NaN": (float("nan"), "field 'answers' is nan"),
    "a number": (5, "has no 'text'"),
    "no text": ({"answer": "cat"}, "has no 'text'"),
    "a start before": (
        {"text": ["cat"], "answer_start": [-2]},
        "an answer_start in field 'answers' is no place in a text (-2)",
    ),
    "broken JSON": ('{"text": ', "is broken JSON"),
    "numbers": ([5], "field 'answers' holds something else than answers' texts (5)"),
}


@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_bad_answers_end_in_one_line(case):
    answer, complaint = BAD_ANSWERS[case]
    with pytest.raises(InputError) as error:
        read_questions(records_of("cat", answer))
    assert str(error.value).startswith("f, row 2: ") and complaint in str(error.value) and "\n" not in str(error.value)


def test_wrong_input_ends_in_one_line_and_bad_answers_can_be_skipped(models, files, tmp_path, capsys):
    out, rows = tmp_path / "out", questions(30, 1)
    rows[4]["answers"]["text"] = ["elephant"]
    spoiled = write(tmp_path / "spoiled.jsonl", rows)
    nothing = write(tmp_path / "nothing.jsonl", questions(10, 1, unanswerable=1.0))
    for changes, complaint in (
        (dict(train_file=spoiled), "spoiled.jsonl, line 5: an answer is not in its context ('elephant')"),
        (dict(test_file=spoiled), "spoiled.jsonl, line 5: an answer is not in its context ('elephant')"),
        (dict(train_file=nothing), "no question has an answer"),
        (dict(question_field="ask"), "--question_field"),
        (dict(context_field="text"), "--context_field"),
        (dict(answers_field="answer"), "--answers_field"),
        (dict(stride=64), "stride 64 must be 0 or more and below 30"),
        (dict(metric_for_best_model="accuracy"), "must be one of f1, exact_match, loss"),
        (dict(train_file=tmp_path / "none.jsonl"), "none.jsonl: no such file"),
    ):
        changes = {"train_file": files / "train.jsonl", "stride": 8, **changes}
        argv = arguments(models / "bert", changes.pop("train_file"), out, **changes)
        check_refusal(finetune_qa, argv, complaint, out, capsys)
    argv = arguments(models / "bert", spoiled, out, stride=8, skip_bad="true", max_steps=2, eval_strategy="no",
                     save_strategy="no", load_best_model_at_end="false")  # fmt: skip
    assert finetune_qa.main(argv) == 0
    assert "1 × an answer is not in its context" in capsys.readouterr().out
    assert sum(facts["records"] for facts in record_of(out)["data"]) == 29


@pytest.mark.parametrize("name", ["finetune_fairytaleqa", "finetune_qamr"])
def test_recipes_have_known_fields(name):
    path = Path(__file__).parents[2] / "training" / "recipes" / f"{name}.yaml"
    recipe, args = parse_recipe([str(path)], finetune_qa.QuestionRecipe, finetune_qa.FinetuningArguments)
    assert recipe.test_file and isinstance(recipe.train_file, list) and args.output_dir


def test_an_empty_test_file_takes_back_that_of_the_recipe():
    recipe = finetune_qa.QuestionRecipe(model="m", train_file=["a"], validation_file=["b", ""], test_file=[""])
    assert recipe.test_file is None and recipe.validation_file == ["b"]


def test_adapters_that_cannot_be_loaded_again_are_refused(models, files, tmp_path, capsys):
    """LlamaForQuestionAnswering of transformers does not find the weights of a LlamaForCausalLM."""
    out = tmp_path / "out"
    argv = arguments(models / "llama", files / "train.jsonl", out, lora="true", stride=8)
    check_refusal(finetune_qa, argv, "train without --lora", out, capsys)
