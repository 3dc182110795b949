"""
Generate text: `hf_tfm.cpu.generate` with our decoder against `generate` with Llama and GPT-2.

    python training/benchmarks/bench_decode.py
    python training/benchmarks/bench_decode.py --shape s --new_tokens 256 --threads 2

Greedy search with a cache, from prompts of 16 random tokens, in batches of one and of sixteen. Every model runs in fp32
and in bf16, and the faster of both counts; nothing is compiled. The time is that of the whole call, prompt included.
"""

import copy
import sys
from collections.abc import Callable

from hf_tfm import cpu
from side_by_side import SHAPES, benchmark_parser, causal_configs, describe_size, interleaved, report_ratios, spread

import torch
from transformers import AutoModelForCausalLM


def make_generate(model: torch.nn.Module, rows: int, vocab_size: int, new_tokens: int) -> Callable[[], torch.Tensor]:
    """Return a function that continues random prompts."""
    model.generation_config.eos_token_id = None
    prompt = torch.randint(5, vocab_size, (rows, 16), generator=torch.Generator().manual_seed(rows))
    arguments = dict(attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens, do_sample=False)
    return lambda: cpu.generate(model, prompt, **arguments)  # other models use their own `generate`


def main(argv: list[str] | None = None) -> int:
    parser = benchmark_parser(__doc__, shape="xs", repeats=9)
    parser.add_argument("--new_tokens", type=int, default=128, help="tokens to generate")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    functions, sizes = {}, {}
    for name, config in causal_configs(SHAPES[args.shape], args.vocab, 16 + args.new_tokens).items():
        for dtype in (torch.float32, torch.bfloat16):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval().to(dtype)
            sizes[name] = describe_size(model)
            for rows in (1, 16):
                name_and_rows = f"{name} {str(dtype).removeprefix('torch.')} {rows}"
                functions[name_and_rows] = make_generate(model, rows, args.vocab, args.new_tokens)
    seconds = {name: spread(samples) for name, samples in interleaved(functions, args.repeats, warmups=1).items()}
    for name_and_rows, value in seconds.items():
        rate = int(name_and_rows.split()[2]) * args.new_tokens / value["median"]
        print(f"  {name_and_rows:22} {value['median'] / args.new_tokens * 1e3:6.2f} ms a step  {rate:7,.0f} tokens/s")

    def best(names: tuple[str, ...], rows: int) -> float:
        return min(s["median"] for w, s in seconds.items() if w.split()[0] in names and w.split()[2] == str(rows))

    ratios = {}
    for rows in (1, 16):
        ours = best(("hf_tfm",), rows)
        ratios[f"decode_{rows}"] = best(("llama",), rows) / ours
        ratios[f"decode_{rows}_against_gpt2"] = best(("gpt2",), rows) / ours
    report_ratios(
        "decode",
        ratios,
        args,
        opponent="generate of Llama, the faster of fp32 and bf16",
        settings={"models": sizes},
        seconds=seconds,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
