"""
The `hf-tfm` command.

A subcommand is one function below: its name is the command's, its docstring the help, the decorator holds its
arguments and an example. What takes seconds to import is imported inside it.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from ..core.errors import InputError, OneLineParser


class _Command(NamedTuple):
    run: Callable[[argparse.Namespace], None]
    arguments: tuple[tuple[tuple[str, ...], dict[str, Any]], ...]
    examples: tuple[str, ...]


_COMMANDS: dict[str, _Command] = {}


def argument(*names: str, **options: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """What `add_argument` takes, kept until there is a parser."""
    return names, options


def command(*arguments: tuple, examples: tuple[str, ...]) -> Callable:
    """Makes a function a subcommand."""

    def register(function: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], None]:
        _COMMANDS[function.__name__.replace("_", "-")] = _Command(function, arguments, examples)
        return function

    return register


def _number(kind: type, least: float = -math.inf, most: float = math.inf) -> Callable[[str], float]:
    """An argument type: a number within bounds, so that mistakes show before a model is loaded."""

    def parse(text: str) -> float:
        value = kind(text)
        if isinstance(value, float) and not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"must be a number, not {text}")
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {text}")
        if value > most:
            raise argparse.ArgumentTypeError(f"must be at most {most}, not {text}")
        return value

    parse.__name__ = kind.__name__  # argparse names it when the text is no number at all
    return parse


def _text(text: str) -> str:
    """An argument type: bytes that are no text arrive as halves of surrogate pairs, which no tokenizer reads."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise argparse.ArgumentTypeError("holds bytes that are no text in UTF-8")
    return text


# What several commands have in common.
_BASE = argument("--base", metavar="FOLDER", help="an adapter's base model, if that is not where the adapter says")
_TRUST = argument("--trust-remote-code", action="store_true", help="run the code that the model's folder carries")
_OPENING = (_BASE, _TRUST)
_BATCHING = (
    argument("--batch-tokens", type=_number(int, 1), default=4096, help="tokens computed at once (default 4096)"),
    argument("--bf16", action="store_true", help="compute in bf16: faster on hardware that has it, and less exact"),
)
_SAMPLING = (
    argument("--temperature", type=_number(float, 0.0), help="0 takes the likeliest token; the model's own by default"),
    argument("--top-k", type=_number(int, 0), help="draw from so many of the likeliest tokens"),
    argument("--top-p", type=_number(float, 0.0, 1.0), help="draw from the likeliest that have this share together"),
    argument(
        "--min-p", type=_number(float, 0.0, 1.0), help="draw from those at least this share as likely as the first"
    ),
    argument("--repetition-penalty", type=_number(float, 0.01), help="above 1: what was said becomes less likely"),
    argument("--seed", type=_number(int, 0, 2**32 - 1), default=0, help="of the draws (default 0)"),
)
_SAMPLING_SWITCHES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


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
    from ..convert.native import convert_folder

    result = convert_folder(args.source, args.target, gguf_file=args.gguf_file, head=args.head)
    print(
        f"wrote {args.target}: {result.model_class}, {result.num_parameters:,} parameters; "
        f"read again, its outputs equal the source's within {result.max_error:.1e}"
    )
    if result.left_behind:
        print(f"left behind, having no place in this class: {', '.join(result.left_behind)}")


@command(
    argument("source", metavar="IN", help="folder of a model of this package"),
    argument("target", metavar="OUT", help="folder to write; must not exist or be empty"),
    argument(
        "--to",
        required=True,
        metavar="FORM",
        help="qwen3, llama, mistral, gpt2, bert, modernbert; gguf, onnx; bf16, f16, int8",
    ),
    argument("--untie", action="store_true", help="write the output projection although it is the token embedding"),
    argument("--dtype", choices=("f32", "f16", "bf16", "q8_0"), help="of gguf; by default as the weights are"),
    examples=(
        "hf-tfm export my-decoder served --to qwen3",
        "hf-tfm export my-decoder for-llama-cpp --to gguf --dtype q8_0",
        "hf-tfm export my-encoder for-onnxruntime --to onnx",
        "hf-tfm export my-encoder half-the-size --to bf16",
    ),
)
def export(args: argparse.Namespace) -> None:
    """Give a model out for vLLM, llama.cpp, ONNX Runtime, TEI or plain transformers, and compare it with its source."""
    from ..convert.export import export

    report = export(args.source, args.target, args.to, untie=args.untie, dtype=args.dtype)
    print(f"wrote {args.target}: {report}")


@command(
    argument(
        "adapter", metavar="ADAPTER", help="folder of an adapter, as the fine-tuning scripts write it with --lora"
    ),
    argument("target", metavar="OUT", help="folder to write; must not exist or be empty"),
    _BASE,
    argument("--untie", action="store_true", help="let the output projection differ from the embedding if it has to"),
    _TRUST,
    examples=("hf-tfm merge runs/adapter runs/merged", "hf-tfm merge runs/adapter runs/merged --base my-decoder"),
)
def merge(args: argparse.Namespace) -> None:
    """Fold an adapter into its base model: one folder, with equal outputs, that needs no PEFT."""
    from ..convert.merge import merge_folder

    difference, model = merge_folder(
        args.adapter, args.target, base=args.base, untie=args.untie, trust_remote_code=args.trust_remote_code
    )
    print(
        f"wrote {args.target}: {type(model).__name__}, {model.num_parameters():,} parameters; "
        f"read again, its outputs equal the adapter's within {difference:.1e}"
    )


@command(
    argument("model", help="folder of a causal LM or of an adapter, or a name on the Hub"),
    argument("prompt", type=_text, help="text to continue"),
    argument("--max-new-tokens", type=_number(int, 1), default=50, help="default 50"),
    *_SAMPLING,
    argument("--beams", type=_number(int, 1), help="search with so many beams"),
    argument(
        "--compare",
        action="store_true",
        help="greedy, beams, temperature, top-k and top-p side by side; the switches above set each one's value",
    ),
    argument("--candidates", action="store_true", help="with --compare: list what each token was chosen from"),
    argument("--html", metavar="FILE", help="with --compare: a page to point at each token"),
    *_OPENING,
    examples=(
        'hf-tfm generate my-decoder "Once upon a time" --temperature 0.8 --top-p 0.95',
        'hf-tfm generate my-decoder "Once upon a time" --compare --html compared.html',
    ),
)
def generate(args: argparse.Namespace) -> None:
    """Continue a text, printed as it is made; or in several ways, with what each token was chosen from."""
    import transformers

    from ..artifacts.open import open_model
    from ..tasks.generation import encode_prompt, sampling_options, stream_text

    if (args.html or args.candidates) and not args.compare:
        raise InputError("--html and --candidates show what --compare finds: give that too")
    model, tokenizer = open_model(args.model, "AutoModelForCausalLM", args.base, args.trust_remote_code)
    switches = {name: getattr(args, name) for name in (*_SAMPLING_SWITCHES, "beams")}
    if args.compare:
        return _compare(args, model, tokenizer, switches)
    ids, room = encode_prompt(model, tokenizer, args.prompt)
    options = sampling_options(**switches) | {"max_new_tokens": min(args.max_new_tokens, room)}
    transformers.set_seed(args.seed)
    for piece in stream_text(model, tokenizer, ids, skip_prompt=False, **options):
        print(piece, end="", flush=True)
    print()


def _compare(args: argparse.Namespace, model: Any, tokenizer: Any, switches: dict[str, Any]) -> None:
    from ..tasks.decoding import compare_decodings, decoding_methods
    from . import rendering

    no_cuts = {"temperature": 1e-6, "top_k": 1, "top_p": 1e-9, "beams": 2}
    for name, least in no_cuts.items():
        if switches[name] is not None and switches[name] < least:
            option = f"--{name.replace('_', '-')} {switches[name]:g}"
            raise InputError(f"{option}: with --compare it is the value of a method of its own, and is none of it")
    methods = decoding_methods(**switches)
    decodings = compare_decodings(model, tokenizer, args.prompt, methods, args.max_new_tokens, args.seed)
    colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(rendering.comparison_as_text(args.prompt, decodings, colours, args.candidates))
    if args.html:
        name = os.path.basename(os.path.abspath(args.model))
        body = rendering.comparison_as_html(args.prompt, decodings)
        rendering.write_page(args.html, f"Ways of decoding: {name}", body)
        print(f"\nwrote {args.html}")


@command(
    argument("model", help="folder of a causal LM or of an adapter, or a name on the Hub"),
    argument("--system", type=_text, metavar="TEXT", help="what stands in front of the conversation"),
    argument("--max-new-tokens", type=_number(int, 1), default=256, help="of an answer (default 256)"),
    *_SAMPLING,
    *_OPENING,
    examples=("hf-tfm chat runs/instruct", 'hf-tfm chat runs/instruct --system "Answer in one sentence." --top-p 0.9'),
)
def chat(args: argparse.Namespace) -> None:
    """Talk with a model on the terminal; its answers are shown as they are made."""
    from ..artifacts.open import open_model
    from ..tasks.generation import sampling_options
    from .chat import Chat, talk

    model, tokenizer = open_model(args.model, "AutoModelForCausalLM", args.base, args.trust_remote_code)
    sampling = sampling_options(**{name: getattr(args, name) for name in _SAMPLING_SWITCHES})
    talk(Chat(model, tokenizer, args.system, args.max_new_tokens, **sampling), args.seed)


@command(
    argument("model", help="folder of a causal LM, or its name on the Hub"),
    argument("--host", default="localhost", help="address to listen on (default localhost)"),
    argument("--port", type=_number(int, 1, 65535), default=8000, help="default 8000"),
    argument("--device", default="auto", help="cpu, cuda, … (default auto)"),
    examples=("hf-tfm serve runs/instruct", "hf-tfm serve runs/instruct --port 8123 --device cpu"),
)
def serve(args: argparse.Namespace) -> None:
    """Answer over HTTP as OpenAI's API does, by transformers' own server."""
    from ..convert.serving import serve
    from ..core.limits import read_config

    read_config(args.model)
    serve(args.model, args.host, args.port, args.device)


@command(
    argument("model", help="folder of a model or an adapter, or a name on the Hub"),
    argument("--port", type=_number(int, 1, 65535), default=7860, help="of the page on this machine (default 7860)"),
    argument("--space", metavar="DIR", help="do not show it, but write it as a Space, ready to be pushed"),
    *_OPENING,
    examples=("hf-tfm demo my-decoder", "hf-tfm demo my-classifier --space my-space"),
)
def demo(args: argparse.Namespace) -> None:
    """Show a page in the browser that suits the model: chat, masks, labels, answers, tags, …, and its attention."""
    if args.space:
        from .space import write_space

        write_space(args.model, args.space, args.base, args.trust_remote_code)
        print(f"wrote {args.space}; push it with: hf upload YOU/NAME {args.space} . --repo-type space")
    else:
        from .demo import serve

        serve(args.model, args.port, args.base, args.trust_remote_code)


@command(
    argument("model", help="folder of any model or adapter, or a name on the Hub"),
    argument("--length", type=_number(int, 1), help="tokens of context to count for; by default the longest"),
    argument("--picture", metavar="DIR", help="folder to write pictures of attention and embeddings to"),
    argument("--text", type=_text, help="what the pictures are drawn for"),
    argument(
        "--senses",
        nargs=2,
        metavar=("WORD", "FILE"),
        help="instead: a word's embedding beside the vectors that the model makes of it in the texts of a file "
        "(FILE#FIELD for another field than text)",
    ),
    argument("--layer", type=_number(int, 0), help="with --senses: behind which block (default the last)"),
    *_OPENING,
    examples=(
        "hf-tfm inspect my-decoder",
        "hf-tfm inspect my-encoder --picture pictures --text 'The cat sat down.'",
        "hf-tfm inspect my-encoder --senses left texts.jsonl.gz --picture pictures",
    ),
)
def inspect(args: argparse.Namespace) -> None:
    """Show what a model is: architecture, parameters by part, memory, operations; on request pictures."""
    from pathlib import Path

    from ..artifacts.open import open_model
    from .inspect import inspection

    if args.layer is not None and not args.senses:
        raise InputError("--layer is of what --senses compares: give that too")
    if args.text is not None and (args.senses or not args.picture):
        raise InputError("--text is what --picture is drawn for: give that too, and no --senses")
    folder = Path(args.picture) if args.picture else None
    if folder and folder.exists() and not folder.is_dir():
        raise InputError(f"--picture {folder} is a file; give the name of a folder")
    eager: dict[str, Any] = {"attn_implementation": "eager"} if folder and not args.senses else {}
    model, tokenizer = open_model(args.model, None, args.base, args.trust_remote_code, **eager)
    if args.senses:
        from .inspect import senses

        word, texts = args.senses
        found = senses.read_senses(model, tokenizer, word, texts, args.layer)
        print(senses.senses_as_text(found))
        if folder:
            senses.draw_senses(found, folder / senses.senses_file(found.word))
            print(f"\nwrote {folder / senses.senses_file(found.word)}")
        return
    print(inspection.inspect_model(model, args.length))
    if folder:
        text = args.text or inspection.EXAMPLE
        inspection.draw_attention(model, tokenizer, text, folder / inspection.ATTENTION_FILE)
        inspection.draw_neighbours(model, tokenizer, text, folder / inspection.NEIGHBOURS_FILE)
        print(f"\nwrote {folder / inspection.ATTENTION_FILE} and {inspection.NEIGHBOURS_FILE}")


@command(
    argument("model", help="folder of a masked LM, or its name on the Hub"),
    argument("text", type=_text, help="text with the tokenizer's mask, mostly [MASK]"),
    argument("--top", type=_number(int, 1), default=5, help="how many candidates (default 5)"),
    *_OPENING,
    examples=('hf-tfm fill-mask my-encoder "The capital of France is [MASK]."',),
)
def fill_mask(args: argparse.Namespace) -> None:
    """Show the likeliest tokens at each mask of a text."""
    from ..artifacts.open import open_model
    from ..tasks.fill_mask import fill_masks

    model, tokenizer = open_model(args.model, "AutoModelForMaskedLM", args.base, args.trust_remote_code)
    found = fill_masks(model, tokenizer, args.text, args.top)
    for number, candidates in enumerate(found, 1):
        if len(found) > 1:
            print(f"{tokenizer.mask_token} {number}")
        for token, probability in candidates:
            print(f"{probability:6.1%}  {token}")


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
    argument(
        "--threshold", type=_number(float), help="how much better than the best answer no answer must be to be given"
    ),
    argument(
        "--pooling",
        choices=("mean", "max", "cls", "last"),
        help="how embeddings are made; by default as the folder says",
    ),
    argument("--max-length", type=_number(int, 1), help="tokens to cut texts to; by default as in training"),
    *_BATCHING,
    *_OPENING,
    examples=(
        "hf-tfm predict runs/banking77 questions.csv --out labelled.csv --text-field question",
        "hf-tfm predict runs/fairytaleqa questions.jsonl.gz --top 5",
    ),
)
def predict(args: argparse.Namespace) -> None:
    """Label, tag, answer, choose, score or embed the records of a file, whatever the model's head is for."""
    from ..evaluate.predict import open_predictor, predict_file

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
    argument("docs", metavar="DOCS", help="a file, a folder, a glob or hub:NAME; .txt, .md, .jsonl, .csv, …, .zip"),
    argument("target", metavar="OUT", help="folder to write; a stopped command goes on with what it finds there"),
    argument("--encoder", required=True, metavar="FOLDER", help="folder of a model that embeds texts, or a Hub name"),
    argument("--text-field", default="text", metavar="NAME", help="where a record has its text (default text)"),
    argument("--passage-length", type=_number(int, 8), default=160, help="tokens of a passage at most (default 160)"),
    argument("--overlap", type=_number(int, 0), help="tokens that two passages may share (default a fifth of these)"),
    *_BATCHING,
    _TRUST,
    examples=("hf-tfm index my-texts/ --encoder runs/embeddings my-index",),
)
def index(args: argparse.Namespace) -> None:
    """Cut documents into passages and embed them, for `hf-tfm ask`."""
    from .retrieval.retrieval import build_index, other_kinds

    if left_out := other_kinds(args.docs):
        kinds = ", ".join(f"{count} × {kind}" for kind, count in left_out.most_common(5))
        print(f"left out, of kinds that are not read: {kinds}", file=sys.stderr)
    names = ("passage_length", "overlap", "text_field", "trust_remote_code", "batch_tokens", "bf16")
    made = build_index(args.docs, args.target, args.encoder, **{name: getattr(args, name) for name in names})
    print(f"wrote {args.target}: {len(made):,} passages of {made[len(made) - 1].document + 1:,} documents")


@command(
    argument("index", metavar="INDEX", help="folder that `hf-tfm index` wrote"),
    argument("question", type=_text, metavar="QUESTION", help="what to ask"),
    argument("--decoder", required=True, metavar="FOLDER", help="folder of a causal LM that follows instructions"),
    argument(
        "--passages", type=_number(int, 1), default=3, help="how many to put into the prompt, if they fit (default 3)"
    ),
    argument(
        "--search",
        choices=("encoder", "words", "both"),
        default="encoder",
        help="by the encoder's vectors (default), by words (BM25; reads all passages first), or by both",
    ),  # fmt: skip
    argument("--max-new-tokens", type=_number(int, 1), default=128, help="of the answer (default 128)"),
    argument("--show", action="store_true", help="show the passages' texts too"),
    argument("--encoder", metavar="FOLDER", help="the index's encoder, if that is not where it was"),
    *_OPENING,
    examples=('hf-tfm ask my-index "Who built the bridge?" --decoder runs/instruct',),
)
def ask(args: argparse.Namespace) -> None:
    """Answer a question with the passages of an index that go best with it, and tell which these are."""
    from ..artifacts.open import open_model
    from .retrieval.grounding import ask as run
    from .retrieval.retrieval import Index

    index = Index(args.index)
    encoder = index.open_encoder(args.encoder, args.trust_remote_code)
    model, tokenizer = open_model(args.decoder, "AutoModelForCausalLM", args.base, args.trust_remote_code)
    answer = run(index, encoder, model, tokenizer, args.question, args.passages, args.max_new_tokens, args.search)
    print(answer.text + "\n")
    if len(answer.sources) < answer.found:
        print(f"{len(answer.sources)} of {answer.found} passages fitted into what the model reads", file=sys.stderr)
    for number, (passage, score) in enumerate(answer.sources, 1):
        cited = ", cited" if number in answer.cited else ""
        print(f"[{number}] {score:.3f}  {passage.name}, characters {passage.start}-{passage.end}{cited}")
        if args.show:
            print(f"    {' '.join(passage.text.split())}")


@command(
    argument("model", metavar="MODEL", help="folder or Hub name of any model"),
    argument("--only", nargs="+", metavar="CHECK", help="some of the checks, by name"),
    argument("--json", metavar="FILE", help="write the result there too"),
    argument("--trust-remote-code", action="store_true", help="run code that a Hub repository brings"),
    examples=("hf-tfm verify my-model", "hf-tfm verify my-model --only padding packing --json checks.json"),
)
def verify(args: argparse.Namespace) -> int:
    """Check what a saved model promises: saving, padding, packing, gradients, …; exit code 1 where it does not hold."""
    from ..artifacts.verify import CHECKS, as_json, as_table, open_subject, versions_line
    from ..artifacts.verify import verify as run

    if unknown := set(args.only or ()) - CHECKS.keys():
        raise InputError(f"--only knows {', '.join(CHECKS)}, not {', '.join(sorted(unknown))}")
    subject = open_subject(args.model, args.trust_remote_code)
    print(versions_line(args.model, subject.model), flush=True)
    verdicts = run(args.model, args.only, subject=subject)
    print(as_table(verdicts))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            file.write(as_json(args.model, verdicts) + "\n")
    return int(any(verdict.outcome == "failed" for verdict in verdicts))


@command(
    argument("folder", metavar="FOLDER", help="of a model of this package, or of an adapter"),
    argument("--dry-run", action="store_true", help="verify and list what would change; nothing is written"),
    examples=("hf-tfm refresh my-model", "hf-tfm refresh my-model --dry-run"),
)
def refresh(args: argparse.Namespace) -> None:
    """Bring a saved folder's code and tokenizer files up to date, weights and card untouched, and verify it."""
    from ..artifacts.refresh import refresh as run
    from ..artifacts.verify import as_table

    result = run(args.folder, args.dry_run)
    if result.verdicts:
        print(as_table(result.verdicts))
    would = "would be " if args.dry_run else ""
    for name in result.replaced:
        print(f"{would}replaced   {name}")
    for name in result.removed:
        print(f"{would}removed    {name}")
    if not result.replaced and not result.removed:
        print(f"{args.folder}: is up to date")


@command(
    argument("folder", metavar="FOLDER", help="of a model, an adapter, or of an evaluation's results"),
    argument("repo", metavar="USER/REPO", help="on the Hub; made if it is not there"),
    argument("--private", action="store_true", help="make it private; one that is public already is refused"),
    argument("--revision", metavar="BRANCH", help="branch to push to, made if it is not there (default main)"),
    argument("--tag", help="name to give to this state"),
    argument("--message", type=_text, help="of the commit"),
    _BASE,
    argument("--base-model", metavar="USER/REPO", help="what an adapter's base model is called on the Hub"),
    argument("--trust-remote-code", action="store_true", help="run code in the folder that is not this package's"),
    argument("--dry-run", action="store_true", help="check and list what would be pushed; nothing leaves the machine"),
    examples=(
        "hf-tfm push runs/decoder me/my-decoder --private",
        "hf-tfm push runs/adapter me/my-adapter --base runs/instruct --base-model me/instruct --tag v1",
        "hf-tfm push runs/evaluation/decoder me/decoder-results --dry-run",
    ),
)
def push(args: argparse.Namespace) -> None:
    """Check a folder in a clean process, then put it onto the Hub in one commit, with code, tokenizer and card."""
    from huggingface_hub.utils import enable_progress_bars

    from ..hub import push

    push.check_name(args.repo)
    checks = {"base": args.base, "hub_base": args.base_model, "trust_remote_code": args.trust_remote_code}
    with push.checked_folder(args.folder, **checks) as checked:
        print(f"checked    {args.folder}: {len(checked.files)} files, {checked.size:,} bytes")
        if checked.difference is not None:
            print(f"opened     in a clean process, where its outputs differ by {checked.difference:.1e} at most")
        if args.dry_run:
            print("\n".join(f"{path.stat().st_size:15,}  {name}" for name, path in checked.files.items()))
            return
        if sys.stderr.isatty():
            enable_progress_bars()
        pushed = push.upload(checked, args.repo, args.private or None, args.revision, args.tag, args.message)
    tagged = f", tag {args.tag}" if args.tag else ""
    print(f"pushed     {pushed.url} at {pushed.revision}, commit {pushed.commit.oid[:12]}{tagged}")
    revision = args.tag or args.revision
    if checked.opener:
        print(f"load it    {checked.opener.format(args.repo, f', revision={revision!r}' if revision else '')}")
    elif checked.kind == "adapter":
        print("load it    on its base model, as its card shows")


@command(
    argument("folder", metavar="FOLDER", help="of a model that a script of this package trained"),
    argument("--name", type=_text, help="what the model is called"),
    argument("--base-model", type=_text, metavar="NAME", help="what the model that it was fine-tuned from is called"),
    argument("--license", metavar="ID", help="of the model, such as apache-2.0"),
    argument("--language", nargs="+", metavar="CODE", help="of its texts, such as en"),
    argument("--data-license", type=_text, metavar="TEXT", help="of the data it was trained and measured on"),
    argument("--watts", type=_number(float, 0.0), help="what the machine drew, for the energy; an estimate by default"),
    examples=("hf-tfm card runs/decoder", "hf-tfm card runs/decoder --name Tales --language en --watts 65"),
)
def card(args: argparse.Namespace) -> None:
    """Write a model's card again, from the record of its run and what was measured afterwards."""
    from pathlib import Path

    from ..artifacts.card import rewrite_card
    from ..artifacts.record import RECORD_FILE

    folder = Path(args.folder)
    if not (folder / RECORD_FILE).is_file():
        raise InputError(f"{folder}: no {RECORD_FILE} there, which training scripts write and a card is made from")
    names = ("name", "base_model", "license", "language", "data_license", "watts")
    rewrite_card(folder, **{name: getattr(args, name) for name in names})
    print(f"wrote {folder / 'README.md'}")


@command(
    argument("preset", help="a preset of the causal LM: nano to large, or a look-alike such as qwen3"),
    argument("--gpu", required=True, help="t4, l4, rtx4090, a100-40, a100, h100 or h200"),
    argument("--gpus", type=_number(int, 1), default=1, help="how many (default 1)"),
    argument("--tokens", type=_number(float, 1), help="to train on; default 20 for each parameter"),
    argument("--size", help="with a look-alike: nano to large instead of the published size"),
    argument("--vocab-size", type=_number(int, 1), default=32_000, help="default 32000"),
    argument("--rows", type=_number(int, 1), default=8, help="rows that a GPU computes at once (default 8)"),
    argument("--length", type=_number(int, 1), default=1024, help="tokens of a row (default 1024)"),
    argument("--optimizer", default="muon", help="muon (default), normuon or adamw"),
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
    from ..models.configuration_tfm import TfmDecoderConfig
    from .inspect import planning

    try:
        config = TfmDecoderConfig.preset(args.preset, args.size, vocab_size=args.vocab_size)
    except ValueError as error:
        raise InputError(str(error)) from error
    found = planning.plan(
        config, args.gpu, args.tokens, args.gpus, args.rows, args.length, args.optimizer, args.shard,
        args.checkpointing, args.utilisation,
    )  # fmt: skip
    print(found)


@command(
    argument("shell", choices=("bash", "zsh"), help="which shell"),
    examples=("hf-tfm completion bash",),
)
def completion(args: argparse.Namespace) -> None:
    """Print what makes a shell complete commands and options: eval "$(hf-tfm completion bash)" in its start file."""
    from .completion import completion_script

    options = {
        name: [option for names, _ in each.arguments for option in names if option.startswith("--")] + ["--help"]
        for name, each in _COMMANDS.items()
    }
    print(completion_script(options, args.shell), end="")


def _parser() -> OneLineParser:
    shape: dict[str, Any] = dict(formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = "\n".join(f"  {line}" for each in _COMMANDS.values() for line in each.examples)
    parser = OneLineParser(
        prog="hf-tfm",
        description="Models of hf_tfm from the command line.",
        epilog=f"examples:\n{everything}\n\n`hf-tfm COMMAND --help` shows the arguments of one command.",
        **shape,
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, each in _COMMANDS.items():
        summary = (each.run.__doc__ or "").strip()
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
    Runs one command; the exit code is 0, or what the command returns, or 2 where the input was wrong or a file cannot
    be read or written, with one line that says how.
    """
    args = parse(argv)

    from ..core.quiet import quiet_command

    try:
        with quiet_command(transformers_warnings=False):
            code = args.run(args) or 0
            sys.stdout.flush()
            return code
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has seen enough; what is left to write must go somewhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as shells report it
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else " ".join(str(error).split())
        print(f"error: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
