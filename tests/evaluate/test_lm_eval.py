"""EleutherAI's lm-evaluation-harness measures a model folder by the task file in the repository (extra `eval`)."""

import itertools
from pathlib import Path

import pytest
from tiny import build

from hf_tfm.evaluate.language_model import TextReader, bits_per_byte
from hf_tfm.tasks.likelihood import LanguageModel


TOP = Path(__file__).parents[2]


@pytest.mark.slow
def test_its_bits_per_byte_are_ours(tmp_path, tokenizer, monkeypatch):
    # Without the harness `lm_eval` is the folder of `training/`, which has no modules.
    tasks = pytest.importorskip("lm_eval.tasks")
    from lm_eval import simple_evaluate

    model = build("TfmDecoderForCausalLM", max_position_embeddings=64)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.chdir(TOP)  # the task names its data from there
    measured = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tmp_path), "trust_remote_code": True},
        tasks=["tales"],
        task_manager=tasks.TaskManager(include_path=str(TOP / "training" / "lm_eval")),
        limit=2,
        device="cpu",
    )
    theirs = measured["results"]["tales"]["bits_per_byte,none"]
    documents = list(itertools.islice(TextReader("training/data/text/validation.jsonl.gz"), 2))
    ours = bits_per_byte(LanguageModel(model, tokenizer, causal=True), documents, window=64, stride=64)
    # Each of their windows begins with the last token of the one before; ours predicts one token less there.
    assert theirs == pytest.approx(ours["all"]["bits_per_byte"].value, rel=0.02)
