"""
A folder onto the Hub: looked through for what must not leave the machine, opened by a stranger, then pushed in one
commit. Models, adapters and results of evaluations; `hf-tfm push`, `model.push_to_hub` and `Trainer` come here.
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

from ..artifacts.card import EVALUATION_FILE, render_card, write_card, write_results_card
from ..artifacts.compare import outputs_of
from ..artifacts.open import ADAPTER_FILE, auto_class_of, head_of_adapter, open_model
from ..artifacts.record import RECORD_FILE, model_facts, read_record
from ..artifacts.tokenizer_files import mend_tokenizer_files
from ..artifacts.verify import Broken, Subject, compare
from ..core.clean_process import DoesNotLoad, outputs_for_a_stranger
from ..core.errors import InputError, explain
from ..core.files import write_atomically
from ..core.privacy import private_part


# What a run keeps beside a model to go on with: no part of it.
_STATE = re.compile(
    r"(optimizer|scheduler|scaler|rng_state.*)\.(pt|pth|bin)|trainer_state\.json|training_args\.bin|"
    r"checkpoint_complete\.json|events\.out\.tfevents.*"
)
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".h5", ".msgpack")
# What tells what a folder holds.
_KINDS = {"adapter": ADAPTER_FILE, "model": "config.json", "results": EVALUATION_FILE}
_HIDDEN_BUT_WANTED = (".eval_results", ".gitattributes")
# The base of what fails on the way: httpx's own class, or that of whatever this huggingface_hub stands on.
_NETWORK: type[Any] = HfHubHTTPError.__mro__[1]


@dataclass
class Checked:
    """
    What is to be pushed.

    Attributes:
        kind: `model`, `adapter` or `results`.
        files: local file by its name in the repository.
        opener: the call that opens it, with `{}` for the name; empty for results.
        difference: largest one between outputs here and in a clean process; None if none was started.
    """

    folder: Path
    kind: str
    files: dict[str, Path]
    opener: str = ""
    difference: float | None = None

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(path.stat().st_size for path in self.files.values())


@dataclass
class Pushed:
    """Where it is now."""

    url: str
    revision: str
    commit: CommitInfo


def files_to_push(folder: Path) -> dict[str, Path]:
    """The files of a folder that belong to it, by name: neither checkpoints nor a run's state nor hidden files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        folders = name.parts[:-1]
        hidden = any(part.startswith(".") and part not in _HIDDEN_BUT_WANTED for part in name.parts)
        aside = any(part.startswith("checkpoint-") or part == "__pycache__" for part in folders)
        if path.is_file() and not hidden and not aside and not _STATE.fullmatch(path.name):
            found[name.as_posix()] = path
    return found


def check_files(files: dict[str, Path]) -> None:
    """
    Look through files for what must not be published.

    Raises:
        InputError: a file is pickled, damaged, or has an absolute path or an access token in it.
    """
    for name, path in files.items():
        if path.suffix in _PICKLED:
            raise InputError(
                f"{name}: a pickled file, which can run code where it is opened; keep weights as safetensors"
            )
        if found := private_part(path):
            raise InputError(f"{name}: {found}; take it out")


@contextlib.contextmanager
def checked_folder(
    folder: str | Path,
    base: str | Path | None = None,
    hub_base: str | None = None,
    trust_remote_code: bool = False,
    clean_process: bool = True,
) -> Iterator[Checked]:
    """
    What of a folder is to be pushed, gathered in a temporary place and checked there.

    A model without a card gets one from what its configuration says, results get one from their figures.

    Args:
        base: folder of an adapter's base model, if it is not where the adapter says.
        hub_base: the base model's name on the Hub, if the adapter says a local folder.
        trust_remote_code: run the code that a model's folder carries; not needed for this package's own.
        clean_process: also open the model in a process of its own, and compare what comes out.

    Raises:
        InputError: there is nothing to push or something must not be; the line names the file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    files = files_to_push(folder)
    kind = next((k for k, name in _KINDS.items() if name in files), None)
    if kind is None:
        raise InputError(f"{folder}: neither {', '.join(_KINDS.values())} is there: no model and no results to push")
    with tempfile.TemporaryDirectory() as place:
        staging = Path(place) / folder.resolve().name
        gather(files, staging)
        checked = Checked(folder, kind, {})
        try:
            _complete(staging, kind, hub_base)
            check_files(files_to_push(staging))  # before anything in it is opened
            if kind != "results":
                _open(checked, staging, base, trust_remote_code, clean_process)
        except InputError as error:
            raise InputError(str(error).replace(str(staging), str(folder))) from error
        checked.files = files_to_push(staging)
        yield checked


def _complete(staging: Path, kind: str, hub_base: str | None) -> None:
    """Write what a folder lacks, or what its own files say for this machine alone."""
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


def push_folder(folder: str | Path, repo: str, checks: dict[str, Any] | None = None, **options: Any) -> Pushed:
    """Check a folder, with `checks` as [`checked_folder`] takes them, and [`upload`] it with `options`."""
    check_name(repo)
    with checked_folder(folder, **(checks or {})) as checked:
        return upload(checked, repo, **options)


def upload(
    checked: Checked,
    repo: str,
    private: bool | None = None,
    revision: str | None = None,
    tag: str | None = None,
    message: str | None = None,
    token: str | None = None,
    **commit: Any,
) -> Pushed:
    """
    Push a checked folder in one commit. Broken off, the same call goes on: files that arrived are not sent again,
    and nobody sees half of them. Weights and code in the repository that are not in the folder are deleted there.

    Args:
        repo: `USER/NAME`; made if it is not there, as a dataset for results.
        private: make it so. One that is public already is refused.
        revision: branch to push to, made from `main` if it is not there.
        tag: name to give to the commit.
        commit: for `create_commit`, such as `create_pr`.

    Raises:
        InputError: the Hub refused, or something did not arrive.
    """
    token = token or get_token()
    api, branch = HfApi(token=token), revision or "main"
    where: dict[str, Any] = {"repo_id": repo, "repo_type": "dataset" if checked.kind == "results" else "model"}
    with hub_errors(repo, token):
        _ready(api, where, private, branch, tag)
        there = set(api.list_repo_files(**where, revision=branch))
        stale = [
            n for n in there - checked.files.keys() if n.endswith((".safetensors", ".safetensors.index.json", ".py"))
        ]
        operations: list[Any] = [CommitOperationAdd(name, path) for name, path in checked.files.items()]
        operations += [CommitOperationDelete(name) for name in stale]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of the metadata's: what is wrong is an error
            message = message or f"Upload {checked.folder.resolve().name}"
            settings = {**where, **commit, "commit_message": message, "revision": branch}
            made = again_if_closed(lambda: api.create_commit(operations=operations, **settings))
        listed = api.list_repo_tree(**where, recursive=True, revision=made.oid)
        sizes = {entry.path: entry.size for entry in listed if hasattr(entry, "size")}
        if missing := [name for name, path in checked.files.items() if sizes.get(name) != path.stat().st_size]:
            raise InputError(f"{repo}: {missing[0]} did not arrive whole; push again")
        if tag is not None:
            api.create_tag(**where, tag=tag, revision=made.oid)
        url = f"{api.endpoint}/{'datasets/' if where['repo_type'] == 'dataset' else ''}{repo}"
    return Pushed(url, branch, made)


def check_name(repo: str) -> None:
    """Raise `InputError` if a repository cannot have this name."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"{repo}: {str(error).splitlines()[0]}") from error
    if repo.count("/") != 1:
        raise InputError(f"{repo}: give the repository as USER/NAME")


def again_if_closed(call: Callable[[], Any]) -> Any:
    """
    What a call to the Hub gives. The threads in which huggingface_hub sends files share a client, and one that loses
    its connection closes it for all; what the others were about to send is sent when it is asked for once more.
    """
    for _ in range(3):
        try:
            return call()
        except RuntimeError as error:
            if "client has been closed" not in str(error.__cause__ or error):
                raise
    return call()


def hub_errors(repo: str, token: str | None = None) -> contextlib.AbstractContextManager[None]:
    """Turns errors of the Hub and of the connection to it into one line without the token."""

    def hint(error: Exception) -> str:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        if secret := token or get_token():
            reason = reason.replace(secret, "…")
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set; unset it to push"
        if "xet-write-token" in reason:
            return f"{reason}; a Hub without xet wants HF_HUB_DISABLE_XET=1"
        if status in (401, 403):
            return f"the Hub refused ({status}): log in with `hf auth login` or set HF_TOKEN to one that may write"
        if status is None and not isinstance(error, ValueError):
            return f"{reason}; the same command goes on where it stopped"
        return reason

    return explain(repo, hint, _NETWORK, OfflineModeIsEnabled, OSError, ValueError, RuntimeError)


def _ready(api: HfApi, where: dict[str, Any], private: bool | None, branch: str, tag: str | None) -> None:
    """Repository and branch are there, and the tag is not."""
    repo = where["repo_id"]
    try:
        info = api.repo_info(**where)
    except RepositoryNotFoundError:
        info = None
    if info is None:
        api.create_repo(**where, private=private, exist_ok=True)
    elif private and not info.private:
        raise InputError(f"{repo}: is there already and public; make it private on the Hub, or leave --private out")
    refs = api.list_repo_refs(**where)
    tags = {ref.name for ref in refs.tags}
    if tag in tags:
        raise InputError(f"{repo}: has a tag {tag} already; choose another --tag")
    if branch in tags:
        raise InputError(f"{repo}: {branch} is a tag, which stays as it is; choose another --revision")
    if branch not in {ref.name for ref in refs.branches}:
        api.create_branch(**where, branch=branch)


def gather(files: dict[str, Path], folder: Path, copy: bool = False) -> None:
    """Links to files, or copies of them, under their names in a new folder."""
    for name, path in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if copy:
                os.link(path, target)
            else:
                target.symlink_to(path.resolve())
        except OSError:  # another disk, or a system that links not
            shutil.copyfile(path, target)


def _replace(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)  # the link, not what it leads to
    path.write_text(text, encoding="utf-8")


def _name_base(staging: Path, hub_base: str | None) -> None:
    """An adapter says its base model by the name on the Hub: strangers have no folder of ours."""
    config = json.loads((staging / ADAPTER_FILE).read_text(encoding="utf-8"))
    record = read_record(staging) if (staging / RECORD_FILE).is_file() else {}
    said = config.get("base_model_name_or_path") or ""
    known = record.get("base_model") or ""
    name = hub_base or (known if "/" in known and not Path(known).exists() else said)
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or (hub_base is None and Path(name).exists()):
        raise InputError(
            f"{ADAPTER_FILE}: its base model {Path(said).name!r} is a folder of this machine; push that and give its "
            "name as --base-model USER/NAME"
        )
    if name != said:
        write_atomically(
            staging / ADAPTER_FILE, json.dumps({**config, "base_model_name_or_path": name}, indent=2) + "\n"
        )
    if record and name != known:
        text = json.dumps({**record, "base_model": name}, indent=1, ensure_ascii=False)
        write_atomically(staging / RECORD_FILE, text + "\n")
        (staging / "README.md").unlink(missing_ok=True)
        write_card(staging)


def _open(
    checked: Checked, staging: Path, base: str | Path | None, trust_remote_code: bool, clean_process: bool
) -> None:
    """Open a model here and as a stranger, and compare; a card is made if there is none."""
    if checked.kind == "adapter":
        said = json.loads((checked.folder / ADAPTER_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")
        base = str(base or said)
        if not Path(base).is_dir():
            with explain(f"{ADAPTER_FILE}: its base model {base!r} is not here; say with --base where it is"):
                base = snapshot_download(base)
    else:
        base = None
    auto_class = auto_class_of(str(staging), trust_remote_code)
    model, tokenizer = open_model(str(staging), auto_class, base, trust_remote_code)
    options = head_of_adapter(str(staging)) if base else {}
    if clean_process:
        subject = Subject(str(staging), auto_class, model, tokenizer, trust_remote_code)
        inputs = subject.inputs(subject.ids(2, 12))
        try:
            found = outputs_for_a_stranger(staging, auto_class, inputs, base, options)
            checked.difference = compare(found, outputs_of(model, **inputs), "in a clean process")
        except (DoesNotLoad, Broken) as error:
            raise InputError(f"{staging}: in a clean process {_relative(str(error), staging)}") from None
    card = staging / "README.md"
    if not card.is_file():
        write_atomically(card, render_card({"model": model_facts(model)}))
    trust = ", trust_remote_code=True" if getattr(model.config, "auto_map", None) else ""
    checked.opener = f'{auto_class}.from_pretrained("{{}}"{{}}{trust})' if base is None else ""


def _relative(text: str, staging: Path) -> str:
    return " ".join(text.replace(f"{staging}/", "").replace(str(staging), "it").split())[:300]
