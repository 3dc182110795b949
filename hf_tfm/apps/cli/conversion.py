"""Commands that write a model in another form: `convert`, `export`, `merge`, `trim-vocab`, `refresh`."""

from typing import Annotated, Literal

import typer

from .app import command
from .options import Base, Target, TrustRemoteCode, flag


_PANEL = "Convert a model"


@command(
    "hf-tfm convert HuggingFaceTB/SmolLM2-135M my-smollm",
    "hf-tfm convert downloads/ my-smollm --gguf-file SmolLM2-135M-Instruct.Q4_1.gguf",
    panel=_PANEL,
)
def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="Folder of the checkpoint, or its name on the Hub.")],
    target: Target,
    gguf_file: Annotated[str | None, typer.Option(metavar="NAME", help="Read this GGUF file in IN instead.")] = None,
    head: Annotated[
        str | None,
        typer.Option(help="MaskedLM, CausalLM, …, or Model for the base model. By default the head that IN names."),
    ] = None,
) -> None:
    """Convert a GPT-2, Llama, Qwen3, Mistral, BERT or ModernBERT checkpoint into this package's format.

    The outputs of both models are compared.
    """
    from hf_tfm.convert.native import convert_folder

    result = convert_folder(source, target, gguf_file=gguf_file, head=head)
    print(
        f"wrote {target}: {result.model_class}, {result.num_parameters:,} parameters; "
        f"read again, its outputs equal the source's within {result.max_error:.1e}"
    )
    if result.left_behind:
        print(f"left behind, having no place in this class: {', '.join(result.left_behind)}")


@command(
    "hf-tfm export my-decoder served --to qwen3",
    "hf-tfm export my-decoder for-llama-cpp --to gguf --dtype q8_0",
    "hf-tfm export my-encoder for-onnxruntime --to onnx",
    "hf-tfm export my-encoder half-the-size --to bf16",
    panel=_PANEL,
)
def export(
    source: Annotated[str, typer.Argument(metavar="IN", help="Folder of a model of this package.")],
    target: Target,
    to: Annotated[
        str,
        typer.Option(
            metavar="FORM",
            help="A native family (qwen3, llama, mistral, gpt2, bert, modernbert), a format (gguf, onnx), or a "
            "precision (bf16, f16, int8).",
        ),
    ],
    untie: Annotated[
        bool, flag("--untie", "Write the output projection even if it is tied to the token embedding.")
    ] = False,
    dtype: Annotated[
        Literal["f32", "f16", "bf16", "q8_0"] | None,
        typer.Option(help="Precision of a GGUF file. By default that of the weights."),
    ] = None,
) -> None:
    """Export a model for vLLM, llama.cpp, ONNX Runtime, TEI or plain transformers.

    The outputs of both models are compared.
    """
    from hf_tfm.convert.export import export as export_model

    report = export_model(source, target, to, untie=untie, dtype=dtype)
    print(f"wrote {target}: {report}")


@command(
    "hf-tfm merge runs/adapter runs/merged", "hf-tfm merge runs/adapter runs/merged --base my-decoder", panel=_PANEL
)
def merge(
    adapter: Annotated[str, typer.Argument(help="Folder of an adapter, as fine-tuning with --lora writes it.")],
    target: Target,
    base: Base = None,
    untie: Annotated[
        bool, flag("--untie", "Let the output projection differ from the token embedding if it must.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Merge an adapter into its base model: one folder with equal outputs that needs no PEFT."""
    from hf_tfm.convert.merge import merge_folder

    difference, model = merge_folder(adapter, target, base=base, untie=untie, trust_remote_code=trust_remote_code)
    print(
        f"wrote {target}: {type(model).__name__}, {model.num_parameters():,} parameters; "
        f"read again, its outputs equal the adapter's within {difference:.1e}"
    )


@command(
    "hf-tfm trim-vocab my-encoder texts.jsonl.gz trimmed",
    "hf-tfm trim-vocab my-encoder a.txt b.txt trimmed --min-count 5",
    panel=_PANEL,
)
def trim_vocab(
    model: Annotated[str, typer.Argument(help="Folder of a model, or its name on the Hub.")],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT…", help="Files or folders of your text.")],
    target: Target,
    min_count: Annotated[int, typer.Option(min=1, help="Keep tokens that the text has as often as this.")] = 1,
    text_field: Annotated[str | None, typer.Option(help="Field of the text in records. By default recognised.")] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Keep the tokens of your text only: a smaller model with equal outputs.

    Bytes, characters and special tokens stay, so that any text can be read. Other texts may become longer.
    """
    from hf_tfm.convert.trim_vocabulary import trim_folder

    settings = {"text_field": text_field} if text_field else {}
    trimmed = trim_folder(model, texts, target, min_count=min_count, trust_remote_code=trust_remote_code, **settings)
    print(
        f"wrote {target}: {trimmed.tokens[1]:,} of {trimmed.tokens[0]:,} tokens, {trimmed.parameters[1]:,} of "
        f"{trimmed.parameters[0]:,} parameters; read again, its outputs on {trimmed.compared} of {trimmed.documents:,} "
        f"documents equal the source's within {trimmed.difference:.1e}"
    )


@command("hf-tfm refresh my-model", "hf-tfm refresh my-model --dry-run", panel=_PANEL)
def refresh(
    folder: Annotated[str, typer.Argument(help="Folder of a model of this package, or of an adapter.")],
    dry_run: Annotated[bool, flag("--dry-run", "Verify and list the changes; write nothing.")] = False,
) -> None:
    """Update the code and the tokenizer files of a saved folder, and verify it.

    Weights and card stay as they are.
    """
    from hf_tfm.artifacts.refresh import refresh as refresh_folder
    from hf_tfm.artifacts.verify import as_table

    result = refresh_folder(folder, dry_run)
    if result.verdicts:
        print(as_table(result.verdicts))
    would = "would be " if dry_run else ""
    for name in result.replaced:
        print(f"{would}replaced   {name}")
    for name in result.removed:
        print(f"{would}removed    {name}")
    if not result.replaced and not result.removed:
        print(f"{folder}: is up to date")
