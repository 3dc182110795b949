"""Merges an adapter into its base model and writes the result as a whole folder."""

import json
import shutil
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel

from ..artifacts.card import write_card
from ..artifacts.open import open_model
from ..artifacts.record import RECORD_FILE
from ..artifacts.tokenizer_files import save_tokenizer
from ..core.atomic_files import atomic_directory, require_empty
from ..core.errors import InputError
from ..core.model_files import ADAPTER_FILE
from ..train.adapters import compared_outputs, merge_adapter


def merge_folder(
    adapter: str | Path,
    target: str | Path,
    base: str | None = None,
    untie: bool = False,
    trust_remote_code: bool = False,
) -> tuple[float, PreTrainedModel]:
    """
    Write a complete folder of a base model with an adapter merged into it.

    The folder gets weights, code, tokenizer, generation settings, run record and card.

    Args:
        base: folder or Hub name of the base model; by default that in the adapter's configuration.
        untie: as in [`merge_adapter`].

    Returns: the largest difference between the outputs of the folder, read again, and of the adapter on its base; and
        the model that was read.

    Raises:
        InputError: there is no adapter or base model, `target` is not empty, or as [`merge_adapter`].
    """
    adapter, target = Path(adapter), Path(target)
    if not (adapter / ADAPTER_FILE).is_file():
        raise InputError(f"{adapter}: no {ADAPTER_FILE}, so no adapter to merge; training with --lora writes one")
    require_empty(target)
    model, tokenizer = open_model(str(adapter), base=base, trust_remote_code=trust_remote_code)
    rows = min(len(tokenizer), model.get_base_model().get_input_embeddings().weight.shape[0])
    # Tokens that were added for the adapter are the last.
    ids = torch.tensor([[*(11 * place % rows for place in range(1, 29)), *range(max(0, rows - 4), rows)]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    merged = merge_adapter(model, untie=untie)
    if merged.can_generate() and (adapter / "generation_config.json").is_file():
        merged.generation_config = GenerationConfig.from_pretrained(adapter)
    with atomic_directory(target) as folder:
        merged.save_pretrained(folder)
        save_tokenizer(tokenizer, folder)
        for picture in adapter.glob("*.png"):  # they are on the card
            shutil.copyfile(picture, folder / picture.name)
        if (adapter / RECORD_FILE).is_file():
            record = json.loads((adapter / RECORD_FILE).read_text(encoding="utf-8"))
            if "adapter" in record:
                record["adapter"]["merged"] = True
            (folder / RECORD_FILE).write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
            write_card(folder)
        # A second loading of the adapter: weights that a loading draws at random would be equal in the first one.
        again = open_model(str(adapter), base=base, trust_remote_code=trust_remote_code)[0].get_base_model()
        with torch.no_grad():
            expected = compared_outputs(again, inputs)
        del again
        written, _ = open_model(str(folder), trust_remote_code=trust_remote_code)
        with torch.no_grad():
            difference = (compared_outputs(written, inputs) - expected).abs().max().item()
        if not difference <= 1e-3 * max(1.0, expected.abs().max().item()):
            raise InputError(
                f"{adapter}: loaded twice, it computes different outputs (by up to {difference:.2g}), so the merged "
                "model is not written: base model or adapter is incomplete"
            )
    return difference, written
