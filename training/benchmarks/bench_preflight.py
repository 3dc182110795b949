"""
Seconds and memory of the preflight: of data, on 100,000 conversations with a tokenizer.

    python training/benchmarks/bench_preflight.py
    python training/benchmarks/bench_preflight.py --records 20000 --tokenizer my-tokenizer

Conversations have 1 to 3 turns; each question is one or two sentences and each answer two to eight sentences, drawn
from the texts of `training/data/text`. One in 200 repeats an earlier one, and one in 100 with a few other words. Each
half runs in a process of its own, whose largest memory is measured; the library's import counts as memory, not as time.
"""

import argparse
import gzip
import json
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

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
    results.put(None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--tokenizer", default=str(ROOT / "model_cards/tfm-decoder-6m-instruct"))
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=measure_data, args=(args.records, args.tokenizer, results))
    process.start()
    while (line := results.get()) is not None:
        print(line)
    process.join()


if __name__ == "__main__":
    main()
