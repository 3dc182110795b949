"""
Pushes folders of models, adapters and evaluation results to the Hub, for `hf-tfm push`, `push_to_hub` and Trainer.

A folder is searched for private data, opened in a process without this package, and pushed in one commit.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    get_token,
    snapshot_download,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from ..artifacts.card import card_code, describes_model, render_card, write_card, write_results_card
from ..artifacts.compare import outputs_of
from ..artifacts.measurements import EVALUATION_FILE
from ..artifacts.open import auto_class_of, head_of_adapter, open_model
from ..artifacts.record import RECORD_FILE, model_facts, read_record
from ..artifacts.tokenizer_files import mend_tokenizer_files
from ..artifacts.verify_subject import Broken, Subject, largest_difference
from ..core.atomic_files import write_atomically
from ..core.clean_process import DoesNotLoad, outputs_for_a_stranger, run_for_a_stranger
from ..core.errors import InputError, explain
from ..core.model_files import ADAPTER_FILE
from ..core.secret_scan import private_part


# Files with the state of a run, which do not belong to the model.
_STATE = re.compile(
    r"(optimizer|scheduler|scaler|rng_state.*)\.(pt|pth|bin)|trainer_state\.json|training_args\.bin|"
    r"checkpoint_complete\.json|events\.out\.tfevents.*"
)
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".h5", ".msgpack")
# The file that identifies the kind of a folder.
_KINDS = {"adapter": ADAPTER_FILE, "model": "config.json", "results": EVALUATION_FILE}
_PUBLIC_HIDDEN_FILES = (".eval_results", ".gitattributes")
# The base class of network errors, that of httpx or of another library under huggingface_hub.
_NETWORK: type[Any] = HfHubHTTPError.__mro__[1]


@dataclass
class CheckedFolder:
    """
    A folder that may be pushed.

    Attributes:
        kind: `model`, `adapter` or `results`.
        files: local files by name in the repository.
        opener: the call that opens the model, with `{}` for its name; empty for adapters and results.
        difference: largest difference between outputs here and in a clean process; None if none was started.
    """

    folder: Path
    kind: str
    files: dict[str, Path]
    opener: str = ""
    difference: float | None = None

    @property
    def size(self) -> int:
        """Size of all files in bytes."""
        return sum(path.stat().st_size for path in self.files.values())


@dataclass
class PushResult:
    """Address and commit of a pushed folder."""

    url: str
    revision: str
    commit: CommitInfo


def files_to_push(folder: Path) -> dict[str, Path]:
    """Return the files of a folder by name, without checkpoints, state of a run and hidden files."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        is_hidden = any(part.startswith(".") and part not in _PUBLIC_HIDDEN_FILES for part in name.parts)
        is_aside = any(part.startswith("checkpoint-") or part == "__pycache__" for part in name.parts[:-1])
        if path.is_file() and not is_hidden and not is_aside and not _STATE.fullmatch(path.name):
            files[name.as_posix()] = path
    return files


def check_files(files: dict[str, Path]) -> None:
    """
    Search files for data that must not be published.

    Raises:
        InputError: a file is pickled, damaged, or contains an absolute path or an access token.
    """
    for name, path in files.items():
        if path.suffix in _PICKLED:
            raise InputError(
                f"{name}: a pickled file, which can run code when it is opened; save weights as safetensors"
            )
        if problem := private_part(path):
            raise InputError(f"{name}: {problem}; remove it")


@contextlib.contextmanager
def checked_folder(
    folder: str | Path,
    base: str | Path | None = None,
    hub_base: str | None = None,
    trust_remote_code: bool = False,
    clean_process: bool = True,
) -> Iterator[CheckedFolder]:
    """
    Collect the public files of a folder in a temporary one and check them there.

    A model without a card gets one from its configuration, results get one from their figures.

    Args:
        base: folder of an adapter's base model; by default that in the adapter's configuration.
        hub_base: the base model's name on the Hub, if the adapter names a local folder.
        trust_remote_code: run the code in a model's folder; not needed for models of this package.
        clean_process: also open the model in a process without this package, and compare outputs.

    Raises:
        InputError: there is nothing to push, or a file must not be published; the message names it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    files = files_to_push(folder)
    kind = next((k for k, name in _KINDS.items() if name in files), None)
    if kind is None:
        raise InputError(f"{folder}: none of {', '.join(_KINDS.values())} is there: no model and no results to push")
    with tempfile.TemporaryDirectory() as place:
        staging = Path(place) / folder.resolve().name
        link_files(files, staging)
        checked = CheckedFolder(folder, kind, {})
        try:
            _complete(staging, kind, hub_base)
            check_files(files_to_push(staging))  # before any file is opened
            if kind != "results":
                _open(checked, staging, base, trust_remote_code, clean_process)
        except InputError as error:
            raise InputError(str(error).replace(str(staging), str(folder))) from error
        checked.files = files_to_push(staging)
        yield checked


def _complete(staging: Path, kind: str, hub_base: str | None) -> None:
    """Write a missing card, and rewrite files that are valid on this machine only."""
    with explain(staging / "tokenizer_config.json"):
        mend_tokenizer_files(staging)
    if kind == "adapter":
        _name_base(staging, hub_base)
    if kind == "results":
        with explain(staging / EVALUATION_FILE):
            write_results_card(staging)
    elif (staging / RECORD_FILE).is_file() and not (staging / "README.md").is_file():
        write_card(staging)
    if (staging / "README.md").is_file():
        with explain(staging / "README.md"):
            ModelCard.load(staging / "README.md")


def push_folder(folder: str | Path, repo: str, checks: dict[str, Any] | None = None, **options: Any) -> PushResult:
    """Check a folder with `checks` (arguments of [`checked_folder`]), and [`upload`] it with `options`."""
    check_name(repo)
    with checked_folder(folder, **(checks or {})) as checked:
        return upload(checked, repo, **options)


def upload(
    checked: CheckedFolder,
    repo: str,
    private: bool | None = None,
    revision: str | None = None,
    tag: str | None = None,
    message: str | None = None,
    token: str | None = None,
    **commit: Any,
) -> PushResult:
    """
    Push a checked folder in one commit.

    After an interruption the same call continues: files that arrived are not sent again, and the repository never
    contains a part of them. Weights and code in the repository that are not in the folder are deleted.

    Args:
        repo: `USER/NAME`; created if it does not exist, as a dataset for results.
        private: create a private repository; an existing public one is an error.
        revision: branch to push to, created from `main` if it does not exist.
        tag: name for the commit.
        commit: for `create_commit`, such as `create_pr`.

    Raises:
        InputError: the Hub refused the commit, or a file did not arrive.
    """
    token = token or get_token()
    api, branch = HfApi(token=token), revision or "main"
    repository: dict[str, Any] = {"repo_id": repo, "repo_type": "dataset" if checked.kind == "results" else "model"}
    with explain_hub_errors(repo, token):
        _prepare_repository(api, repository, private, branch, tag)
        existing = set(api.list_repo_files(**repository, revision=branch))
        stale = [
            name
            for name in existing - checked.files.keys()
            if name.endswith((".safetensors", ".safetensors.index.json", ".py"))
        ]
        operations: list[Any] = [CommitOperationAdd(name, path) for name, path in checked.files.items()]
        operations += [CommitOperationDelete(name) for name in stale]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about metadata, whose faults are errors here
            message = message or f"Upload {checked.folder.resolve().name}"
            settings = {**repository, **commit, "commit_message": message, "revision": branch}
            created = retry_if_closed(lambda: api.create_commit(operations=operations, **settings))
        listed = api.list_repo_tree(**repository, recursive=True, revision=created.oid)
        sizes = {entry.path: entry.size for entry in listed if hasattr(entry, "size")}
        if missing := [name for name, path in checked.files.items() if sizes.get(name) != path.stat().st_size]:
            raise InputError(f"{repo}: {missing[0]} did not arrive completely; push again")
        if tag is not None:
            api.create_tag(**repository, tag=tag, revision=created.oid)
        url = f"{api.endpoint}/{'datasets/' if repository['repo_type'] == 'dataset' else ''}{repo}"
    return PushResult(url, branch, created)


def check_name(repo: str) -> None:
    """Raise `InputError` if this is no valid name of a repository."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"{repo}: {str(error).splitlines()[0]}") from error
    if repo.count("/") != 1:
        raise InputError(f"{repo}: give the repository as USER/NAME")


def retry_if_closed(call: Callable[[], Any]) -> Any:
    """
    Call the Hub, and call again if another thread closed the connection.

    The threads in which huggingface_hub sends files share a client, and a thread that loses its connection closes it
    for all of them.
    """
    for _ in range(3):
        try:
            return call()
        except RuntimeError as error:
            if "client has been closed" not in str(error.__cause__ or error):
                raise
    return call()


def explain_hub_errors(repo: str, token: str | None = None) -> contextlib.AbstractContextManager[None]:
    """Turn errors of the Hub and of the network into an `InputError` of one line without the token."""

    def hint(error: Exception) -> str:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        if secret := token or get_token():
            reason = reason.replace(secret, "…")
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set; unset it to push"
        if "xet-write-token" in reason:
            return f"{reason}; a Hub without xet needs HF_HUB_DISABLE_XET=1"
        if status in (401, 403):
            login = "log in with `hf auth login` or set HF_TOKEN to a token with write access"
            return f"the Hub refused ({status}): {login}"
        if status is None and not isinstance(error, ValueError):
            return f"{reason}; the same command continues where it stopped"
        return reason

    return explain(repo, hint, _NETWORK, OfflineModeIsEnabled, OSError, ValueError, RuntimeError)


def _prepare_repository(
    api: HfApi, repository: dict[str, Any], private: bool | None, branch: str, tag: str | None
) -> None:
    """Create repository and branch if they are missing, and make sure that the tag is not used."""
    repo = repository["repo_id"]
    try:
        info = api.repo_info(**repository)
    except RepositoryNotFoundError:
        info = None
    if info is None:
        api.create_repo(**repository, private=private, exist_ok=True)
    elif private and not info.private:
        raise InputError(f"{repo}: exists and is public; make it private on the Hub, or omit --private")
    refs = api.list_repo_refs(**repository)
    tags = {ref.name for ref in refs.tags}
    if tag in tags:
        raise InputError(f"{repo}: tag {tag} exists already; choose another --tag")
    if branch in tags:
        raise InputError(f"{repo}: {branch} is a tag, not a branch; choose another --revision")
    if branch not in {ref.name for ref in refs.branches}:
        api.create_branch(**repository, branch=branch)


def link_files(files: dict[str, Path], folder: Path, copy: bool = False) -> None:
    """Link files, or copy them, under their names in a new folder."""
    for name, path in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if copy:
                os.link(path, target)
            else:
                target.symlink_to(path.resolve())
        except OSError:  # another disk, or a system without links
            shutil.copyfile(path, target)


def _name_base(staging: Path, hub_base: str | None) -> None:
    """Make an adapter name its base model by the name on the Hub instead of a local folder."""
    config = json.loads((staging / ADAPTER_FILE).read_text(encoding="utf-8"))
    record = read_record(staging) if (staging / RECORD_FILE).is_file() else {}
    current = config.get("base_model_name_or_path") or ""
    recorded = record.get("base_model") or ""
    name = hub_base or (recorded if "/" in recorded and not Path(recorded).exists() else current)
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or (hub_base is None and Path(name).exists()):
        raise InputError(
            f"{ADAPTER_FILE}: its base model {Path(current).name!r} is a folder of this machine; push it and give its "
            "name as --base-model USER/NAME"
        )
    if name != current:
        text = json.dumps({**config, "base_model_name_or_path": name}, indent=2)
        write_atomically(staging / ADAPTER_FILE, text + "\n")
    if record and name != recorded:
        text = json.dumps({**record, "base_model": name}, indent=1, ensure_ascii=False)
        write_atomically(staging / RECORD_FILE, text + "\n")
        (staging / "README.md").unlink(missing_ok=True)
        write_card(staging)


def _open(
    checked: CheckedFolder, staging: Path, base: str | Path | None, trust_remote_code: bool, clean_process: bool
) -> None:
    """Open a model here and in a clean process, and compare outputs; write a card if there is none."""
    if checked.kind == "adapter":
        config = json.loads((checked.folder / ADAPTER_FILE).read_text(encoding="utf-8"))
        base = str(base or config.get("base_model_name_or_path"))
        if not Path(base).is_dir():
            with explain(f"{ADAPTER_FILE}: its base model {base!r} is missing; name its folder with --base"):
                base = snapshot_download(base)
    else:
        base = None
    auto_class = auto_class_of(str(staging), trust_remote_code)
    model, tokenizer = open_model(str(staging), auto_class, base, trust_remote_code)
    options = head_of_adapter(str(staging)) | {"ignore_mismatched_sizes": True} if base else {}
    if clean_process:
        subject = Subject(str(staging), auto_class, model, tokenizer, trust_remote_code)
        inputs = subject.inputs(subject.ids(2, 12))
        try:
            actual = outputs_for_a_stranger(staging, auto_class, inputs, base, options)
            checked.difference = largest_difference(actual, outputs_of(model, **inputs), "in a clean process")
        except (DoesNotLoad, Broken) as error:
            raise InputError(f"{staging}: in a clean process {_relative(str(error), staging)}") from None
    card = staging / "README.md"
    record = read_record(staging) if (staging / RECORD_FILE).is_file() else {}
    if not describes_model(record):
        record = {"model": model_facts(model)}
        if checked.kind == "adapter":
            config = json.loads((staging / ADAPTER_FILE).read_text(encoding="utf-8"))
            record |= {"adapter": {}, "base_model": config["base_model_name_or_path"]}
    rendered = render_card(record)
    if not card.is_file():
        write_atomically(card, rendered)
    if clean_process and (code := card_code(rendered)) and code == card_code(card.read_text(encoding="utf-8")):
        named_base = "PeftConfig.from_pretrained(path).base_model_name_or_path"
        try:
            run_for_a_stranger(code.replace(named_base, repr(str(base and Path(base).absolute()))), staging)
        except DoesNotLoad as error:
            raise InputError(f"{card}: its example does not run: {_relative(str(error), staging)}") from None
    trust = ", trust_remote_code=True" if getattr(model.config, "auto_map", None) else ""
    checked.opener = f'{auto_class}.from_pretrained("{{}}"{{}}{trust})' if base is None else ""


def _relative(text: str, staging: Path) -> str:
    return " ".join(text.replace(f"{staging}/", "").replace(str(staging), "it").split())[:300]
