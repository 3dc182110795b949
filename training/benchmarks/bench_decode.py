"""
Generating text: `hf_tfm.cpu.generate` with this project's decoder against `generate` of Llama and GPT-2.

    python training/benchmarks/bench_decode.py
    python training/benchmarks/bench_decode.py --shape s --new_tokens 256 --threads 2

Greedy, with the cache, from prompts of 16 random tokens, one row and sixteen. Every model runs in fp32 and in bf16, the
faster way counts; nothing is compiled. All of `generate` is timed, the prompt included.
"""

import argparse
import copy
import sys

from hf_tfm import cpu
from side_by_side import SHAPES, causal_configs, interleaved, parameters, spread, write_result

import torch
from transformers import AutoModelForCausalLM


def writer(model: torch.nn.Module, rows: int, vocab_size: int, new_tokens: int):
    model.generation_config.eos_token_id = None
    prompt = torch.randint(5, vocab_size, (rows, 16), generator=torch.Generator().manual_seed(rows))
    arguments = dict(attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens, do_sample=False)
    return lambda: cpu.generate(model, prompt, **arguments)  # for other models it is their own `generate`


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="xs")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--new_tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dry_run", action="store_true", help="print only, write no result")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    functions, sizes = {}, {}
    for name, config in causal_configs(SHAPES[args.shape], args.vocab, 16 + args.new_tokens).items():
        for dtype in (torch.float32, torch.bfloat16):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval().to(dtype)
            sizes[name] = parameters(model)
            for rows in (1, 16):
                way = f"{name} {str(dtype).removeprefix('torch.')} {rows}"
                functions[way] = writer(model, rows, args.vocab, args.new_tokens)
    seconds = {name: spread(samples) for name, samples in interleaved(functions, args.repeats, warmups=1).items()}
    for way, value in seconds.items():
        rate = int(way.split()[2]) * args.new_tokens / value["median"]
        print(f"  {way:22} {value['median'] / args.new_tokens * 1e3:6.2f} ms a step  {rate:7,.0f} tokens/s")

    def best(names: tuple[str, ...], rows: int) -> float:
        return min(s["median"] for w, s in seconds.items() if w.split()[0] in names and w.split()[2] == str(rows))

    ratios = {}
    for rows in (1, 16):
        ours = best(("hf_tfm",), rows)
        ratios[f"decode_{rows}"] = best(("llama",), rows) / ours
        ratios[f"decode_{rows}_against_gpt2"] = best(("gpt2",), rows) / ours
    print("  " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))
    if not args.dry_run:
        write_result(
            "decode",
            ratios,
            "python training/benchmarks/bench_decode.py " + " ".join(sys.argv[1:]),
            opponent="generate of Llama, the faster of fp32 and bf16",
            settings={**vars(args), "models": sizes},
            seconds=seconds,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
