"""
Implements `push_to_hub` of models and Trainers: both push a complete, checked folder as `hf-tfm push` does.
"""

import contextlib
import filecmp
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo, HfApi, ModelCard
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import PushInProgress

from ..artifacts.card import render_card, write_card
from ..artifacts.record import RECORD_FILE, model_facts, save_generation, with_cache
from ..artifacts.tokenizer_files import save_tokenizer
from ..core.errors import InputError
from .push import explain_hub_errors, files_to_push, link_files, push_folder


if TYPE_CHECKING:
    from transformers import Trainer as _Trainer  # the class that the mixin precedes
else:
    _Trainer = object


def push_model(
    model: PreTrainedModel,
    repo_id: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "50GB",
    tags: list[str] | None = None,
) -> CommitInfo:
    """
    Push a model in memory as a complete folder, for `model.push_to_hub`.

    The tokenizer is by default that of the folder that the model was loaded from. If the weights are still those of the
    folder, its record, card and curve are pushed too; otherwise the card is written from the configuration.

    Raises:
        InputError: as [`push_folder`]; or there is no tokenizer.
    """
    if "/" not in repo_id:
        with explain_hub_errors(repo_id, token):
            repo_id = f"{HfApi(token=token).whoami()['name']}/{repo_id}"
    source = Path(model.config._name_or_path or ".")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / repo_id.rpartition("/")[2]
        with with_cache(model):
            model.save_pretrained(folder, max_shard_size=max_shard_size)
        save_generation(model, folder)
        is_unchanged = model.config._name_or_path and _same_weights(source, folder)
        if tokenizer is not None:
            save_tokenizer(tokenizer, folder)
        elif model.config._name_or_path:
            _copy_tokenizer(source, folder)
        if is_unchanged:
            for name, path in files_to_push(source).items():
                if not (folder / name).exists() and not path.suffix == ".safetensors":
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, folder / name)
        if not (folder / "tokenizer_config.json").is_file():
            raise InputError(f"{repo_id}: the model has no known tokenizer: pass tokenizer=")
        if not (folder / "README.md").is_file():
            (folder / "README.md").write_text(render_card({"model": model_facts(model)}), encoding="utf-8")
        card = ModelCard.load(folder / "README.md")
        card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *(tags or []), *(model.model_tags or [])]))
        card.save(folder / "README.md")
        options: dict[str, Any] = {"private": private, "revision": revision, "token": token, "create_pr": create_pr}
        options |= {"message": commit_message, "commit_description": commit_description}
        return push_folder(folder, repo_id, **options).commit


class PushMixin(_Trainer):
    """
    Makes `push_to_hub` of any Trainer push the complete folder of the run with its own card.

    Files that a Trainer writes beside a model are not pushed: pickled arguments, which contain the token, and the
    recipe with local paths. Of a checkpoint only the model is pushed, whatever `hub_strategy` is.
    """

    push_in_progress: PushInProgress | None

    def init_hf_repo(self, token: str | None = None, **options: Any) -> None:
        with explain_hub_errors(str(self.args.hub_model_id or self.args.output_dir), token or self.args.hub_token):
            super().init_hf_repo(token, **options)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card: Any,
    ) -> CommitInfo | None:
        """Push the output folder, after writing it if the run has not done so, and wait for the upload."""
        if self.hub_model_id is None:
            # `init_hf_repo` of transformers 5.20 has no `private`.
            self.init_hf_repo(token, **({} if private is None else {"private": private}))
        folder = Path(self.args.output_dir)
        if not (folder / RECORD_FILE).is_file():
            self.save_model(_internal_call=True)
            if self.is_world_process_zero():
                self._write_card(folder)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        options: dict[str, Any] = {
            "revision": revision or self.args.hub_revision, "token": token or self.args.hub_token
        }  # fmt: skip
        return push_folder(folder, self.hub_model_id, private=private, message=commit_message, **options).commit

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Do nothing: [`push_checkpoint`] pushes the checkpoint once it is complete and has its name."""

    def push_checkpoint(self, checkpoint: Path) -> None:
        """Push the model of a complete checkpoint in the background, according to `hub_strategy`."""
        args = self.args
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if args.hub_strategy == "end" or (busy and not args.hub_always_push):
            return
        # A later checkpoint may delete its files before they are sent.
        place = tempfile.TemporaryDirectory()
        folder = Path(place.name) / Path(args.output_dir).resolve().name
        link_files(files_to_push(checkpoint), folder, copy=True)
        message = f"Training in progress, step {checkpoint.name.rpartition('-')[2]}"

        def push() -> None:
            with place, contextlib.suppress(InputError):  # a failed push must not end the run
                options = {"revision": args.hub_revision, "token": args.hub_token}
                push_folder(folder, self.hub_model_id, {"clean_process": False}, message=message, **options)

        self.push_in_progress = PushInProgress([HfApi().run_as_future(push)])

    def _write_card(self, folder: Path) -> None:
        record = getattr(self, "record", None)
        if record is None:
            return
        record.add_model(self.accelerator.unwrap_model(self.model))
        record.add_training(self.state)
        record.write(folder)
        write_card(folder)


def _same_weights(source: Path, saved: Path) -> bool:
    weights = sorted(path.name for path in saved.glob("*.safetensors"))
    return all((source / name).is_file() and filecmp.cmp(source / name, saved / name, False) for name in weights)


def _copy_tokenizer(source: Path, folder: Path) -> None:
    with contextlib.suppress(OSError, ValueError):
        save_tokenizer(AutoTokenizer.from_pretrained(source), folder)
