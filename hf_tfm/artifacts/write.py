"""Writes a trained model's folder: weights, tokenizer, run record, training curve and card."""

import os
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.atomic_files import atomic_directory, remove_directory
from .card import write_card
from .record import CURVE_FILE, RECORD_FILE, RunRecord, plot_curve, save_generation, with_cache
from .tokenizer_files import save_tokenizer


def write_model_folder(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: RunRecord
) -> None:
    """
    Write a finished model into the folder of its run, beside the checkpoints.

    The folder gets weights, configuration, code, tokenizer, generation settings, loss curve and card, and last the run
    record, whose presence means that the folder is complete.
    """
    folder = Path(folder)
    hint = "earlier checkpoints are kept: free some space and run the same command again"
    with atomic_directory(folder / "finished", replace=True, hint=hint) as staging, with_cache(model):
        model.save_pretrained(staging)
        save_generation(model, staging)
        save_tokenizer(tokenizer, staging)
        if record.fields.get("curve"):
            plot_curve(record.fields, staging / CURVE_FILE)
        record.write(staging)
        write_card(staging)
    finished = folder / "finished"
    for path in sorted(finished.iterdir(), key=lambda path: path.name == RECORD_FILE):
        if path.is_dir():
            remove_directory(folder / path.name)  # left by an interrupted move
        os.replace(path, folder / path.name)
    finished.rmdir()
