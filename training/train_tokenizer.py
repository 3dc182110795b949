"""
Trains a tokenizer on your text and saves a folder that `AutoTokenizer.from_pretrained` loads.

    python training/train_tokenizer.py --data training/data/text/train.jsonl.gz --vocab-size 8192 --output my-tokenizer

    python training/train_tokenizer.py --data my_texts/ --kind wordpiece --style encoder --output my-tokenizer

Every 20th document (up to 2 MB of them) is held out and only measured. More tokens put more bytes into each, but they
also need more embeddings: small models do best with some 4,096 to 8,192.
"""

from hf_tfm_command import check_data


if __name__ == "__main__":
    check_data(__file__)

import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hf_tfm.artifacts.tokenizer_files import save_tokenizer
from hf_tfm.core.errors import InputError
from hf_tfm.data.sources import DocumentStream, parse_sources
from hf_tfm.data.tokenizer import encode_text, train_tokenizer
from hf_tfm.train.recipe import TextRecipe, one_line_errors, parse_recipe


HELD_OUT_EVERY = 20
HELD_OUT_BYTES = 2_000_000


@dataclass
class Corpus:
    """Hands out documents to train on, counts them, and keeps some of them back."""

    documents: int = 0
    bytes: int = 0
    first: str = ""
    held_out: list[str] = field(default_factory=list)

    def training_part(self, texts: Iterable[str]) -> Iterator[str]:
        held_out_bytes = 0
        for text in texts:
            size = len(text.encode())
            self.first = self.first or text
            self.documents += 1
            self.bytes += size
            if self.documents % HELD_OUT_EVERY == 0 and held_out_bytes + size <= HELD_OUT_BYTES:
                held_out_bytes += size
                self.held_out.append(text)
            else:
                yield text


@dataclass
class TokenizerRecipe(TextRecipe):
    """Fields of the script."""

    output: str = field(metadata={"help": "Folder to write."})
    data: list[str] = field(
        default_factory=list, metadata={"help": "Files, folders, globs or Hub names; not needed for bytes."}
    )
    kind: str = field(default="bpe", metadata={"help": "bpe, wordpiece or bytes."})
    vocab_size: int = field(default=8192, metadata={"help": "Number of tokens, special ones included."})
    style: str = field(default="decoder", metadata={"help": "decoder or encoder."})
    lowercase: bool = field(default=False, metadata={"help": "WordPiece only: fold case and accents."})
    min_frequency: int = field(default=2, metadata={"help": "A pair that is rarer is not merged."})
    num_spare_tokens: int = field(default=16, metadata={"help": "Tokens reserved for later uses."})
    model_max_length: int | None = field(default=None, metadata={"help": "Longest input in tokens; open by default."})


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    args, _ = parse_recipe(argv, TokenizerRecipe, None, __doc__)
    output = Path(args.output)
    existing = next(path for path in (output, *output.parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"--output {output}: {existing} is a file; give the name of a folder")
    if (output / "config.json").exists():
        raise InputError(f"--output {output} holds a model, whose tokenizer would be lost: give a folder of its own")
    if not args.data and args.kind != "bytes":
        raise InputError(f"--data is missing; name the files that {args.kind} is to be trained on")

    corpus, documents = (
        Corpus(),
        DocumentStream(parse_sources(args.data, **args.source_settings()) if args.data else []),
    )
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        tokenizer = train_tokenizer(
            corpus.training_part(documents) if args.data else (),
            kind=args.kind,
            vocab_size=args.vocab_size,
            style=args.style,
            lowercase=args.lowercase,
            min_frequency=args.min_frequency,
            num_spare_tokens=args.num_spare_tokens,
            model_max_length=args.model_max_length,
        )
    seconds = time.perf_counter() - start
    save_tokenizer(tokenizer, output)

    for line in (line for report in documents.reports for line in report.lines()):
        print(f"read       {line}")
    print(f"read       {corpus.documents:,} documents, {corpus.bytes / 1e6:,.1f} MB")
    print(f"trained    {len(tokenizer):,} tokens ({args.kind}, {args.style}) in {seconds:.1f} s")
    for note in notes:
        print(f"note       {note.message}")
    sample = corpus.held_out or [corpus.first]
    if corpus.documents:
        size = sum(len(text.encode()) for text in sample)
        tokens = sum(map(len, encode_text(tokenizer, sample)))
        seen = "held-out" if corpus.held_out else "seen (too few to hold one out)"
        print(f"measured   {size / tokens:.3f} bytes per token on {len(sample)} {seen} documents")
    text = " ".join(sample[0].split())[:100] or "Once upon a time there was a small model."
    pieces = (tokenizer.decode(token) for token in encode_text(tokenizer, [text])[0])
    print(f"a sample   {'|'.join(pieces)}")
    print(f'load it    AutoTokenizer.from_pretrained("{output}")')


if __name__ == "__main__":
    sys.exit(main())
