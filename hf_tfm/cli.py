"""
The `hf-tfm` command.

A subcommand is one function below: its name is the command's, its docstring the help, the decorator holds its
arguments and an example. What takes seconds to import is imported inside it.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from .errors import InputError


class _Command(NamedTuple):
    run: Callable[[argparse.Namespace], None]
    arguments: tuple[tuple[tuple[str, ...], dict[str, Any]], ...]
    examples: tuple[str, ...]


_COMMANDS: dict[str, _Command] = {}


def argument(*names: str, **options) -> tuple[tuple[str, ...], dict[str, Any]]:
    """What `add_argument` takes, kept until there is a parser."""
    return names, options


def command(*arguments: tuple, examples: tuple[str, ...]) -> Callable:
    """Makes a function a subcommand."""

    def register(function: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], None]:
        _COMMANDS[function.__name__.replace("_", "-")] = _Command(function, arguments, examples)
        return function

    return register


def _number(kind: type, least: float) -> Callable[[str], float]:
    """An argument type: a number that is not too small, so that mistakes show before a model is loaded."""

    def parse(text: str) -> float:
        if (value := kind(text)) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {text}")
        return value

    parse.__name__ = kind.__name__  # argparse names it when the text is no number at all
    return parse


@command(
    argument("source", metavar="IN", help="folder of the checkpoint, or its name on the Hub"),
    argument("target", metavar="OUT", help="folder to write; must not exist or be empty"),
    argument("--gguf-file", metavar="NAME", help="read this GGUF file in IN instead"),
    argument("--head", help="MaskedLM, CausalLM, …, or Model for the base model; by default what IN says it is"),
    examples=(
        "hf-tfm convert HuggingFaceTB/SmolLM2-135M my-smollm",
        "hf-tfm convert downloads/ my-smollm --gguf-file SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
)
def convert(args: argparse.Namespace) -> None:
    """Bring a GPT-2, Llama, Qwen3, Mistral, BERT or ModernBERT checkpoint into this package, with equal outputs."""
    from .convert import convert_folder

    result = convert_folder(args.source, args.target, gguf_file=args.gguf_file, head=args.head)
    _print_conversion(args.target, result)
    if result.left_behind:
        print(f"left behind, having no place in this class: {', '.join(result.left_behind)}")


@command(
    argument("source", metavar="IN", help="folder of a model of this package"),
    argument("target", metavar="OUT", help="folder to write; must not exist or be empty"),
    argument("--to", required=True, metavar="FAMILY", help="qwen3, llama, mistral, gpt2, bert or modernbert"),
    argument("--untie", action="store_true", help="write the output projection although it is the token embedding"),
    examples=("hf-tfm export my-decoder served --to qwen3", "hf-tfm export my-encoder served --to modernbert"),
)
def export(args: argparse.Namespace) -> None:
    """Give a model out under a native architecture, for vLLM, llama.cpp, TEI and plain transformers."""
    from .convert import export_folder

    _print_conversion(args.target, export_folder(args.source, args.target, args.to, untie=args.untie))


@command(
    argument(
        "adapter", metavar="ADAPTER", help="folder of an adapter, as the fine-tuning scripts write it with --lora"
    ),
    argument("target", metavar="OUT", help="folder to write; must not exist or be empty"),
    argument("--base", metavar="FOLDER", help="its base model, if that is not where the adapter says"),
    argument("--untie", action="store_true", help="let the output projection differ from the embedding if it has to"),
    argument("--trust-remote-code", action="store_true", help="run the code that the base model's folder carries"),
    examples=("hf-tfm merge runs/adapter runs/merged", "hf-tfm merge runs/adapter runs/merged --base my-decoder"),
)
def merge(args: argparse.Namespace) -> None:
    """Fold an adapter into its base model: one folder, with equal outputs, that needs no PEFT."""
    from .adapters import merge_folder

    difference, model = merge_folder(
        args.adapter, args.target, base=args.base, untie=args.untie, trust_remote_code=args.trust_remote_code
    )
    print(
        f"wrote {args.target}: {type(model).__name__}, {model.num_parameters():,} parameters; "
        f"read again, its outputs equal the adapter's within {difference:.1e}"
    )


@command(
    argument("model", help="folder of a causal LM, or its name on the Hub"),
    argument("prompt", help="text to continue"),
    argument("--max-new-tokens", type=_number(int, 1), default=50, help="default 50"),
    argument("--temperature", type=_number(float, 0.0), help="0 takes the likeliest token; the model's own by default"),
    argument("--seed", type=int, default=0, help="of the draws where the temperature is above 0 (default 0)"),
    examples=('hf-tfm generate my-decoder "Once upon a time" --temperature 0.8',),
)
def generate(args: argparse.Namespace) -> None:
    """Continue a text, printed as it is made."""
    import transformers

    model, tokenizer = _load(args.model, "AutoModelForCausalLM")
    inputs = tokenizer(args.prompt, return_tensors="pt", return_token_type_ids=False)
    room = model.config.max_position_embeddings - inputs["input_ids"].shape[1]
    if inputs["input_ids"].numel() == 0:
        raise InputError("the prompt is empty and this tokenizer begins texts with nothing; give a word")
    if room < 1:
        raise InputError(f"the prompt leaves no room: {args.model} reads {model.config.max_position_embeddings} tokens")
    sampling = {} if args.temperature is None else {"do_sample": args.temperature > 0}
    if args.temperature:
        sampling["temperature"] = args.temperature
    transformers.set_seed(args.seed)
    model.generate(
        **inputs,
        **sampling,
        max_new_tokens=min(args.max_new_tokens, room),
        streamer=transformers.TextStreamer(tokenizer, skip_special_tokens=True),
    )


@command(
    argument("model", help="folder of a causal LM or of an adapter, or a name on the Hub"),
    argument("--system", metavar="TEXT", help="what stands in front of the conversation"),
    argument("--max-new-tokens", type=_number(int, 1), default=256, help="of an answer (default 256)"),
    argument("--temperature", type=_number(float, 0.0), help="0 takes the likeliest token; the model's own by default"),
    argument("--top-p", type=_number(float, 0.0), help="draw from the likeliest tokens that have this share together"),
    argument("--top-k", type=_number(int, 0), help="draw from so many of the likeliest tokens"),
    argument("--min-p", type=_number(float, 0.0), help="draw from tokens at least this share as likely as the first"),
    argument("--repetition-penalty", type=_number(float, 0.01), help="above 1: what was said becomes less likely"),
    argument("--seed", type=int, default=0, help="of the draws (default 0)"),
    argument("--base", metavar="FOLDER", help="an adapter's base model, if that is not where the adapter says"),
    argument("--trust-remote-code", action="store_true", help="run the code that the model's folder carries"),
    examples=("hf-tfm chat runs/instruct", 'hf-tfm chat runs/instruct --system "Answer in one sentence." --top-p 0.9'),
)
def chat(args: argparse.Namespace) -> None:
    """Talk with a model on the terminal; its answers are shown as they are made."""
    from .chat import Chat, talk
    from .loading import open_model

    model, tokenizer = open_model(args.model, "AutoModelForCausalLM", args.base, args.trust_remote_code)
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    sampling = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.temperature is not None:
        sampling["do_sample"] = args.temperature > 0
        if args.temperature == 0:
            del sampling["temperature"]
    elif sampling.keys() - {"repetition_penalty"}:
        sampling["do_sample"] = True
    talk(Chat(model, tokenizer, args.system, args.max_new_tokens, **sampling), args.seed)


@command(
    argument("model", help="folder of any model or adapter, or a name on the Hub"),
    argument("--length", type=_number(int, 1), help="tokens of context to count for; by default the longest"),
    argument("--picture", metavar="DIR", help="folder to write pictures of attention and embeddings to"),
    argument("--text", help="what the pictures are drawn for"),
    argument("--base", metavar="FOLDER", help="an adapter's base model, if that is not where the adapter says"),
    argument("--trust-remote-code", action="store_true", help="run the code that the model's folder carries"),
    examples=("hf-tfm inspect my-decoder", "hf-tfm inspect my-encoder --picture pictures --text 'The cat sat down.'"),
)
def inspect(args: argparse.Namespace) -> None:
    """Show what a model is: architecture, parameters by part, memory, operations; on request pictures."""
    from . import inspection
    from .loading import open_model

    eager = {"attn_implementation": "eager"} if args.picture else {}
    model, tokenizer = open_model(args.model, None, args.base, args.trust_remote_code, **eager)
    print(inspection.inspect_model(model, args.length))
    if args.picture:
        from pathlib import Path

        folder, text = Path(args.picture), args.text or inspection.EXAMPLE
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--picture {folder} is a file; give the name of a folder")
        inspection.draw_attention(model, tokenizer, text, folder / inspection.ATTENTION_FILE)
        inspection.draw_neighbours(model, tokenizer, text, folder / inspection.NEIGHBOURS_FILE)
        print(f"\nwrote {folder / inspection.ATTENTION_FILE} and {inspection.NEIGHBOURS_FILE}")


@command(
    argument("model", help="folder of a masked LM, or its name on the Hub"),
    argument("text", help="text with the tokenizer's mask, mostly [MASK]"),
    argument("--top", type=_number(int, 1), default=5, help="how many candidates (default 5)"),
    examples=('hf-tfm fill-mask my-encoder "The capital of France is [MASK]."',),
)
def fill_mask(args: argparse.Namespace) -> None:
    """Show the likeliest tokens at each mask of a text."""
    import torch

    model, tokenizer = _load(args.model, "AutoModelForMaskedLM")
    if tokenizer.mask_token is None:
        raise InputError(f"{args.model}: its tokenizer has no mask token")
    inputs = tokenizer(args.text, return_tensors="pt")
    if inputs["input_ids"].shape[1] > (longest := model.config.max_position_embeddings):
        raise InputError(f"the text is too long: {args.model} reads {longest} tokens")
    masked = inputs["input_ids"][0] == tokenizer.mask_token_id
    if not masked.any():
        raise InputError(f"the text has no mask; write {tokenizer.mask_token} where a token is to be found")
    with torch.inference_mode():
        probabilities = model(**inputs).logits[0, masked].float().softmax(-1)
    top = probabilities.topk(min(args.top, probabilities.shape[-1]))
    for number, (values, ids) in enumerate(zip(top.values.tolist(), top.indices.tolist(), strict=True), 1):
        if len(top.values) > 1:
            print(f"{tokenizer.mask_token} {number}")
        for value, token_id in zip(values, ids, strict=True):
            print(f"{value:6.1%}  {tokenizer.decode([token_id])}")


@command(
    argument("model", help="folder of a model or an adapter, or a name on the Hub"),
    argument("file", help="records: .jsonl, .json, .csv, .tsv or .parquet, also compressed"),
    argument(
        "--out", metavar="FILE", help=".jsonl or .csv to write, also with .gz; by default lines of JSON are shown"
    ),
    argument("--text-field", metavar="NAME", help="where a record has its text"),
    argument("--text-pair-field", metavar="NAME", help="where it has the second text of a pair"),
    argument(
        "--words-field", metavar="NAME", help="where it has words to tag; a text of --text-field is cut into words"
    ),
    argument("--question-field", metavar="NAME", help="where it has a question"),
    argument("--context-field", metavar="NAME", help="where it has the text that the question is about"),
    argument("--options-fields", metavar="NAME", nargs="+", help="where it has options: a list, or a field for each"),
    argument("--top", type=_number(int, 1), help="how many labels or answers to list with their scores (default 3)"),
    argument("--threshold", type=float, help="how much better than the best answer no answer must be to be given"),
    argument(
        "--pooling", choices=("mean", "cls", "last"), help="how embeddings are made; by default as the folder says"
    ),
    argument("--max-length", type=_number(int, 1), help="tokens to cut texts to; by default as in training"),
    argument("--batch-tokens", type=_number(int, 1), default=4096, help="tokens computed at once (default 4096)"),
    argument("--bf16", action="store_true", help="compute in bf16: faster on hardware that has it, and less exact"),
    argument("--base", metavar="FOLDER", help="an adapter's base model, if that is not where the adapter says"),
    argument("--trust-remote-code", action="store_true", help="run the code that the model's folder carries"),
    examples=(
        "hf-tfm predict runs/banking77 questions.csv --out labelled.csv --text-field question",
        "hf-tfm predict runs/fairytaleqa questions.jsonl.gz --top 5",
    ),
)
def predict(args: argparse.Namespace) -> None:
    """Label, tag, answer, choose, score or embed the records of a file, whatever the model's head is for."""
    from .prediction import open_predictor, predict_file

    fields = {name: value for name, value in vars(args).items() if name.endswith(("_field", "_fields")) and value}
    predictor = open_predictor(
        args.model,
        base=args.base,
        trust_remote_code=args.trust_remote_code,
        fields=fields,
        **{name: getattr(args, name) for name in ("max_length", "threshold", "top", "pooling")},
        batching={"batch_tokens": args.batch_tokens, "bf16": args.bf16},
    )
    count = predict_file(predictor, args.file, args.out)
    if args.out:
        print(f"wrote {args.out}: {count:,} records")


@command(
    argument("model", metavar="MODEL", help="folder or Hub name of any model"),
    argument("--only", nargs="+", metavar="CHECK", help="some of the checks, by name"),
    argument("--json", metavar="FILE", help="write the result there too"),
    argument("--trust-remote-code", action="store_true", help="run code that a Hub repository brings"),
    examples=("hf-tfm verify my-model", "hf-tfm verify my-model --only padding packing --json checks.json"),
)
def verify(args: argparse.Namespace) -> int:
    """Check what a saved model promises: saving, padding, packing, gradients, …; exit code 1 where it does not hold."""
    from .verify import CHECKS, as_json, as_table
    from .verify import verify as run

    if unknown := set(args.only or ()) - CHECKS.keys():
        raise InputError(f"--only knows {', '.join(CHECKS)}, not {', '.join(sorted(unknown))}")
    verdicts = run(args.model, args.only, args.trust_remote_code)
    print(as_table(verdicts))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            file.write(as_json(args.model, verdicts) + "\n")
    return int(any(verdict.outcome == "failed" for verdict in verdicts))


@command(
    argument("preset", help="a preset of the causal LM: nano to large, or a look-alike such as qwen3"),
    argument("--gpu", required=True, help="t4, l4, rtx4090, a100-40, a100, h100 or h200"),
    argument("--gpus", type=_number(int, 1), default=1, help="how many (default 1)"),
    argument("--tokens", type=_number(float, 1), help="to train on; default 20 for each parameter"),
    argument("--size", help="with a look-alike: nano to large instead of the published size"),
    argument("--vocab-size", type=_number(int, 1), default=32_000, help="default 32000"),
    argument("--rows", type=_number(int, 1), default=8, help="rows that a GPU computes at once (default 8)"),
    argument("--length", type=_number(int, 1), default=1024, help="tokens of a row (default 1024)"),
    argument("--optimizer", default="muon", help="muon (default) or adamw"),
    argument("--shard", action="store_true", help="FSDP2 instead of a copy on each GPU"),
    argument("--checkpointing", action="store_true", help="compute activations again in the backward pass"),
    argument("--utilisation", type=float, default=0.35, help="share of the peak that is reached (default 0.35)"),
    examples=(
        "hf-tfm plan base --gpu a100 --gpus 8 --tokens 10e9",
        "hf-tfm plan llama --gpu h100 --gpus 16 --shard --checkpointing",
    ),
)
def plan(args: argparse.Namespace) -> None:
    """Tell what a pretraining run costs in compute, memory and hours before anything is rented."""
    from . import planning
    from .configuration_tfm import TfmDecoderConfig

    try:
        config = TfmDecoderConfig.preset(args.preset, args.size, vocab_size=args.vocab_size)
    except ValueError as error:
        raise InputError(str(error)) from error
    found = planning.plan(
        config, args.gpu, args.tokens, args.gpus, args.rows, args.length, args.optimizer, args.shard,
        args.checkpointing, args.utilisation,
    )  # fmt: skip
    print(found)


def _print_conversion(target: str, result: Any) -> None:
    print(
        f"wrote {target}: {result.model_class}, {result.num_parameters:,} parameters; "
        f"read again, its outputs equal the source's within {result.max_error:.1e}"
    )


def _load(path: str, auto_class: str) -> tuple[Any, Any]:
    """A model, all of whose weights are in the checkpoint, and its tokenizer."""
    import transformers

    from .convert import as_input_errors, read_config

    read_config(path)
    with as_input_errors(path):
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        model, report = getattr(transformers, auto_class).from_pretrained(path, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"{path}: no weights for {missing[0]}, which {type(model).__name__} needs: another kind of model"
        )
    return model.eval(), tokenizer


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    shape = dict(formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = "\n".join(f"  {line}" for each in _COMMANDS.values() for line in each.examples)
    parser = _Parser(
        prog="hf-tfm",
        description="Models of hf_tfm from the command line.",
        epilog=f"examples:\n{everything}\n\n`hf-tfm COMMAND --help` shows the arguments of one command.",
        **shape,
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, each in _COMMANDS.items():
        summary = each.run.__doc__.strip()
        examples = "\n".join(f"  {line}" for line in each.examples)
        subparser = subparsers.add_parser(
            name, help=summary, description=summary, epilog=f"examples:\n{examples}", **shape
        )
        for names, options in each.arguments:
            subparser.add_argument(*names, **options)
        subparser.set_defaults(run=each.run)
    return parser


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the arguments; help and mistakes end the program."""
    return _parser().parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """
    Runs one command; the exit code is 0, or what the command returns, or 2 where the input was wrong, with one line
    that says how.
    """
    args = parse(argv)

    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return args.run(args) or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130  # as shells report it


if __name__ == "__main__":
    sys.exit(main())
