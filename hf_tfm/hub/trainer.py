"""
What `push_to_hub` of a model and of a Trainer does here: the same whole folder as `hf-tfm push`, checked alike.

`hub.py` is imported where something is pushed: it stands on nearly all of the package.
"""

import contextlib
import filecmp
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo, HfApi, ModelCard
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..artifacts.card import render_card, write_card
from ..artifacts.record import RECORD_FILE, model_facts, save_generation, with_cache
from ..artifacts.tokenizer_files import save_tokenizer
from ..core.errors import InputError


if TYPE_CHECKING:
    from transformers import Trainer as _Trainer  # in front of which the mixin stands
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
    Push a model as it is in memory as a whole folder: what `model.push_to_hub` does.

    The tokenizer is the one given, or that of the folder that the model was loaded from. Record, card and curve of that
    folder come along as well if the weights are still those in it; else the card says what the configuration says.

    Raises:
        InputError: as [`push_folder`]; there is no tokenizer.
    """
    from .push import files_to_push, hub_errors, push_folder

    if "/" not in repo_id:
        with hub_errors(repo_id, token):
            repo_id = f"{HfApi(token=token).whoami()['name']}/{repo_id}"
    source = Path(model.config._name_or_path or ".")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / repo_id.rpartition("/")[2]
        with with_cache(model):
            model.save_pretrained(folder, max_shard_size=max_shard_size)
        save_generation(model, folder)
        same = model.config._name_or_path and _same_weights(source, folder)
        if tokenizer is not None:
            save_tokenizer(tokenizer, folder)
        elif model.config._name_or_path:
            _copy_tokenizer(source, folder)
        if same:
            for name, path in files_to_push(source).items():
                if not (folder / name).exists() and not path.suffix == ".safetensors":
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, folder / name)
        if not (folder / "tokenizer_config.json").is_file():
            raise InputError(f"{repo_id}: no tokenizer is known for this model: pass tokenizer=")
        if not (folder / "README.md").is_file():
            (folder / "README.md").write_text(render_card({"model": model_facts(model)}), encoding="utf-8")
        card = ModelCard.load(folder / "README.md")
        card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *(tags or []), *(model.model_tags or [])]))
        card.save(folder / "README.md")
        where: dict[str, Any] = {"private": private, "revision": revision, "token": token, "create_pr": create_pr}
        told: dict[str, Any] = {"message": commit_message, "commit_description": commit_description}
        return push_folder(folder, repo_id, **where, **told).commit


class PushMixin(_Trainer):
    """
    For any Trainer: `push_to_hub` pushes the whole folder that the run wrote, with its own card and without what a
    Trainer leaves beside a model: pickled arguments, which hold the token, and the recipe with this machine's paths.
    Of a checkpoint the model is pushed, whatever `hub_strategy` says of the optimizer's state.
    """

    def init_hf_repo(self, token: str | None = None, **options: Any) -> None:
        from .push import hub_errors

        with hub_errors(str(self.args.hub_model_id or self.args.output_dir), token or self.args.hub_token):
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
        """Push the output folder, written first if the run has not done so. It returns when all is there."""
        from .push import push_folder

        if self.hub_model_id is None:
            # transformers 5.20 has no `private` there
            self.init_hf_repo(token, **({} if private is None else {"private": private}))
        folder = Path(self.args.output_dir)
        if not (folder / RECORD_FILE).is_file():
            self.save_model(_internal_call=True)
            if self.is_world_process_zero():
                self._write_card(folder)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        where: dict[str, Any] = {
            "revision": revision or self.args.hub_revision, "token": token or self.args.hub_token
        }  # fmt: skip
        return push_folder(folder, self.hub_model_id, private=private, message=commit_message, **where).commit

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: the checkpoint has neither its card nor its name yet. [`push_checkpoint`] comes after that."""

    def push_checkpoint(self, checkpoint: Path) -> None:
        """Push a whole checkpoint as the model so far, in the background, as `hub_strategy` says."""
        args = self.args
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if args.hub_strategy == "end" or (busy and not args.hub_always_push):
            return
        from transformers.utils import PushInProgress

        from .push import files_to_push, gather, push_folder

        # Its files may be deleted by a later checkpoint before they are sent.
        place = tempfile.TemporaryDirectory()
        folder = Path(place.name) / Path(args.output_dir).resolve().name
        gather(files_to_push(checkpoint), folder, copy=True)
        message = f"Training in progress, step {checkpoint.name.rpartition('-')[2]}"

        def push() -> None:
            with place, contextlib.suppress(InputError):  # the run is worth more than this push; the last one is told
                where = {"revision": args.hub_revision, "token": args.hub_token}
                push_folder(folder, self.hub_model_id, {"clean_process": False}, message=message, **where)

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
