"""
Checks a command's arguments and the heads of its files before torch is imported, so that a mistake is answered at once.

`hf_tfm_command.py` loads this module without `hf_tfm/__init__.py`. It finds wrong names of files and of fields, and
files without a form of the job. What it cannot judge it leaves to the full check, which reads every row.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.declared_fields import fields_of_script
from ...core.errors import InputError
from ...core.package_data import find_packaged, refuse_missing_folder
from ...core.quiet import is_verbose
from ...core.recipe_file import as_arguments, check_field, read_recipe
from ..files import TABLES, DataFile
from ..records import record_files
from ..sources import parse_sources
from ..tables import ReadingOptions
from .form import Reading, forms_of
from .jobs import JOBS
from .pairs import is_beir
from .reader import RecordReader


Settings = dict[str, list[str]]

_HEAD, _ANY, _TASK = "the model's head", "any table", "the task"
_SPLITS = ("train_file", "validation_file", "test_file")
# The options of each script that name files, with the job that they are read for.
SCRIPT_FILES: dict[str, dict[str, str]] = {
    "finetune_classification": dict.fromkeys(_SPLITS, "classification"),
    "finetune_tokens": dict.fromkeys(_SPLITS, "tags"),
    "finetune_qa": dict.fromkeys(_SPLITS, "questions"),
    "finetune_multiple_choice": dict.fromkeys(_SPLITS, "choices"),
    "finetune_embeddings": dict.fromkeys(_SPLITS, "pairs"),
    "finetune_translation": dict.fromkeys(_SPLITS, "translation"),
    "finetune_instruct": dict.fromkeys(_SPLITS, "chat"),
    "finetune_preference": dict.fromkeys(_SPLITS, "preferences"),
    "finetune_rlvr": dict.fromkeys(_SPLITS, "prompts"),
    "distill": {**dict.fromkeys((*_SPLITS, "unlabelled"), _TASK), "data": "text", "validation_data": "text"},
    "train_tokenizer": {"data": "text"},
    "pretrain_clm": {"data": "text", "validation_data": "text"},
    "pretrain_mlm": {"data": "text", "validation_data": "text"},
    "ablate": {"data": "text", "validation_data": "text"},
    "evaluate_model": {"text": "text", "minimal_pairs": _ANY, "test_file": _HEAD, "train_file": _HEAD},
    "evaluate_infilling": {"text": "text"},
    "evaluate_retrieval": {"questions": "questions"},
    "compare_representations": {"train_file": "classification", "test_file": "classification"},
}
# The job of the files that a model with a head reads, by the end of its class's name.
_JOBS_OF_HEADS = {
    "ForSequenceClassification": "classification",
    "ForNextSentencePrediction": "classification",
    "ForTokenClassification": "tags",
    "ForQuestionAnswering": "questions",
    "ForMultipleChoice": "choices",
}

# The job of the files that a task of distill.py reads.
_JOBS_OF_TASKS = {
    "classification": "classification",
    "tokens": "tags",
    "qa": "questions",
    "multiple_choice": "choices",
    "embeddings": "pairs",
}

_CHECKED_FILES = 20  # of each option
_LARGE_JSON = 16 << 20  # bytes; a larger array takes long to read


def _answer(check: Callable[..., None]) -> Callable[..., str | None]:
    """Make a check return the message of its `InputError`."""

    @functools.wraps(check)
    def find(*args: Any, **kwargs: Any) -> str | None:
        try:
            check(*args, **kwargs)
        except InputError as error:
            return str(error)
        except Exception:  # the command itself will meet it, and say more
            if is_verbose():
                raise
        return None

    return find


@_answer
def find_mistake(script: Path, arguments: Sequence[str]) -> None:
    """Returns what is wrong with a script's arguments in one line, as far as the heads of its files show it."""
    if {"-h", "--help"} & set(arguments):
        return
    settings = read_settings(script, arguments)
    for option, job in SCRIPT_FILES.get(script.stem, {}).items():
        if files := [file for file in settings.get(option, []) if file]:
            if script.stem == "evaluate_retrieval" and is_beir(Path(files[0])):
                continue
            split = option.removesuffix("_file") if option in _SPLITS else "train"
            # A reward function of the user's needs no answer in the records.
            labelled = _one(settings.get("reward", "number")) in ("number", "pattern") or job != "prompts"
            labelled &= option != "unlabelled"
            job = _job(job, settings)
            if option == "unlabelled" and job == "pairs":
                job = "text"
            check_files(files, job, settings, split, labelled)


@_answer
def find_mistake_of_prediction(model: str, files: Sequence[str], options: Mapping[str, Any]) -> None:
    """Returns what is wrong with the files that a model in a folder shall predict on, as [`find_mistake`] does."""
    refuse_missing_folder(model)
    config, record = (_read_json(Path(model) / name) for name in ("config.json", "run_record.json"))
    job = (_job_of_head(config) or "text") if config else _ANY
    check_files(files, job, options, "train", labelled=False, dashed=True, trained=record.get("fields", {}))


@_answer
def find_mistake_of_documents(
    locations: Sequence[str], list_documents: Callable[[str], Sequence[DataFile]], options: Mapping[str, Any]
) -> None:
    """Returns what is wrong with files of documents, which a function lists, as [`find_mistake`] does."""
    for location in locations:
        if not location.startswith("hub:"):
            files = list_documents(location)
            names = {"text": options["text_field"]} if options.get("text_field") else {}
            _check_tables(files, RecordReader(location, Reading("text", names, read_options(options), dashed=True)))


def read_settings(script: Path, arguments: Sequence[str]) -> Settings:
    """Returns the values of a recipe's fields and of the options. Raises `InputError` for a name that is unknown."""
    arguments, fields = list(arguments), fields_of_script(script)
    names, recipe = [], {}
    if arguments and not arguments[0].startswith("-"):
        path = arguments.pop(0)
        recipe = read_recipe(Path(path))
        names = [(name, path) for name in recipe]
    given = [argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")]
    names += [(name.replace("-", "_"), "the command line") for name in given]
    for name, place in names if fields else ():
        check_field(name, fields or (), place)
    settings = _group([*as_arguments(recipe), *arguments])
    for mapping in ("base", "override"):  # of an ablation
        for value in settings.get(mapping, []) if script.stem == "ablate" else ():
            settings |= _group(as_arguments(json.loads(value)))
    return settings


def _group(arguments: Sequence[str]) -> Settings:
    """The values behind each option; the last one counts."""
    settings: Settings = {}
    values: list[str] = []
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            values = settings[name.replace("-", "_")] = [value] if equals else []
        else:
            values.append(argument)
    return settings


def check_files(
    locations: Sequence[str],
    job: str,
    settings: Mapping[str, Any],
    split: str,
    labelled: bool = True,
    dashed: bool = False,
    trained: Mapping[str, Any] | None = None,
) -> None:
    """
    Recognises the form of files by their heads.

    Args:
        job: one of `JOBS`; for other jobs only the files themselves are looked for.
        settings: names of fields and common options as a user gave them.
        trained: names of fields in the files that a model was trained on.

    Raises:
        InputError: a file is missing or has no form of the job.
    """
    if job not in JOBS or not forms_of(job):
        for location in locations:
            record_files(location, split)
        return
    options = {field.option: name for name, field in JOBS[job].fields.items() if field.option}
    names, defaults = (
        {options[option]: _one(value) for option, value in given.items() if option in options and value}
        for given in (settings, trained or {})
    )
    reading = Reading(job, names, read_options(settings), labelled, dashed, defaults)
    if job != "text":
        if not any(map(_is_large_json, locations)):
            RecordReader(locations, reading, split).recognise(_CHECKED_FILES)
        return
    for source in parse_sources(locations):
        if source.hub:
            continue
        names = {"text": source.text_field} if source.text_field else reading.names
        reader = RecordReader(source.location, Reading("text", names, reading.options, labelled, dashed, defaults))
        _check_tables(source.list_files(), reader)


def _check_tables(files: Sequence[DataFile], reader: RecordReader) -> None:
    for file in files[:_CHECKED_FILES]:
        if file.suffixes[0] in TABLES and not _is_large_json(str(file.path)):
            reader.recognise_file(file)


def read_options(settings: Mapping[str, Any]) -> ReadingOptions:
    """Returns the common options among a command's settings, whose values may be lists of strings."""
    given = {name: value for name, value in settings.items() if value}
    texts: dict[str, Any] = {name: _one(given[name]) for name in ("format", "separator", "encoding") if name in given}
    flags: dict[str, Any] = {name: _is_on(settings[name]) for name in ("no_header", "skip_bad") if name in settings}
    lists: dict[str, Any] = {name: tuple(given[name]) for name in ("columns", "ignore_fields") if name in given}
    return ReadingOptions(**texts, **flags, **lists)


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value


def _is_on(value: Any) -> bool:
    return value if isinstance(value, bool) else _one(value) in ([], "True", "true", "1", "yes", "y", "t")


def _is_large_json(location: str) -> bool:
    """Whether a location has JSON that may be a long array, which is read as a whole."""
    path = Path(find_packaged(str(Path(location).expanduser())))
    files = path.rglob("*.json*") if path.is_dir() else [path]
    return any(".json" in file.suffixes and file.is_file() and file.stat().st_size > _LARGE_JSON for file in files)


def _job(job: str, settings: Settings) -> str:
    if job not in (_HEAD, _TASK):
        return job
    if settings.get("template"):
        return "classification"
    if task := settings.get("task"):
        return _JOBS_OF_TASKS.get(_one(task), _ANY)
    model = "model" if job == _HEAD else "teacher"
    return _job_of_head(_read_json(Path(*settings.get(model, [""])[:1]) / "config.json")) or _ANY


def _job_of_head(config: Mapping[str, Any]) -> str | None:
    name = "".join(config.get("architectures") or [])
    return next((job for ending, job in _JOBS_OF_HEADS.items() if name.endswith(ending)), None)


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a model's folder; empty if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
