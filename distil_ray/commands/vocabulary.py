"""`distil-ray vocabulary --source SOURCE --output DIR`: make a BERT WordPiece vocabulary from text."""

import argparse
import os
import shlex

from distil_ray.cli import main_of, program_of
from distil_ray.config import output_path, parse_sources
from distil_ray.errors import InputError

MAX_SEQ_LENGTH = 512


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 2 for a user's mistake."""
    return main_of(program_of("vocabulary"), _vocabulary, argv)


def _vocabulary(argv: list[str] | None) -> None:
    args = make_parser().parse_args(argv)
    # Imported late, so that --help answers at once.
    from distil_ray.data.corpus import list_corpus
    from distil_ray.data.vocabulary import coverage, lost_marks, train_vocabulary

    strips_accents = args.lowercase if args.strip_accents is None else args.strip_accents
    args.output = output_path(args.output)
    _check_output(args.output)
    corpus = list_corpus(parse_sources(args.source))
    vocabulary, counts = train_vocabulary(
        corpus, args.size, lowercase=args.lowercase, strip_accents=strips_accents, max_bytes=args.max_bytes
    )
    _save_tokenizer(vocabulary, args.output, lowercase=args.lowercase, strip_accents=args.strip_accents)
    print(
        f"read {counts.num_documents:,} documents, {counts.num_bytes:,} bytes of text, "
        f"of {len(corpus.files):,} file(s); skipped {counts.num_skipped:,} documents without usable text"
    )
    print(f"wrote a tokenizer with a vocabulary of {len(vocabulary):,} pieces to {args.output}")
    num_kinds, num_known, unknown = coverage(counts, vocabulary)
    print(
        f"characters: {num_known:,} of {num_kinds:,} different ones have a piece; {unknown:.3%} of the text's "
        "characters have none, and a word with one of them is [UNK]"
    )
    if len(vocabulary) < args.size:
        print(
            f"note: {args.size:,} pieces were asked for, but this text has no more: all words of it, and all but its "
            f"rarest characters, have one; give it more text, or a smaller --size"
        )
    loss = lost_marks(counts) if strips_accents else ""
    if loss:
        print(f"note: {loss}; --no-strip-accents keeps them")
    print(f"next: distil-ray train --config pretrain-tiny {next_settings(args.source, args.output)}")


def next_settings(sources: list[str], tokenizer: str) -> str:
    """The settings of a run on the same text with the new tokenizer, as a shell takes them."""
    given = sources[0] if len(sources) == 1 else f"[{', '.join(sources)}]"
    return shlex.join([f"data.sources={given}", f"student.tokenizer={tokenizer}"])


def _check_output(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
        entries = os.listdir(folder)
    except OSError as error:
        raise InputError(f"--output {folder}: cannot be used: {error.strerror}") from error
    if entries:
        raise InputError(f"--output {folder}: already holds files; name a new folder or an empty one")


def _save_tokenizer(vocabulary: dict[str, int], folder: str, *, lowercase: bool, strip_accents: bool | None) -> None:
    from transformers import BertTokenizer  # late: takes seconds, and --help and mistakes do without it

    tokenizer = BertTokenizer(
        vocab=vocabulary, do_lower_case=lowercase, strip_accents=strip_accents, model_max_length=MAX_SEQ_LENGTH
    )
    try:
        tokenizer.save_pretrained(folder)
    except OSError as error:
        raise InputError(f"--output {folder}: cannot be written: {error}") from error


def make_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    parser = argparse.ArgumentParser(
        prog=program_of("vocabulary"),
        description="Train a BERT WordPiece vocabulary and save it as a Hugging Face tokenizer.",
    )
    parser.add_argument(
        "--source",
        action="append",
        required=True,
        metavar="SOURCE",
        help="file, glob or folder of Parquet, JSON lines or text (local, s3://, gs:// or hf://), or a mapping as in "
        "data.sources, such as '{path: a.parquet, column: body}' or '{docstrings: installed}'; repeatable",
    )
    parser.add_argument("--size", type=int, default=8000, help="pieces in the vocabulary (default: 8000)")
    parser.add_argument("--output", required=True, metavar="DIR", help="local folder, new or empty")
    parser.add_argument(
        "--lowercase",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="lower-case (default: yes)",
    )
    parser.add_argument(
        "--strip-accents",
        action=argparse.BooleanOptionalAction,
        help="take accents and other marks off letters (default: as --lowercase, after BERT); this also removes vowel "
        "signs from Hindi and voicing marks from Japanese, and takes Korean syllables apart into letters",
    )
    parser.add_argument(
        "--max-bytes", type=int, metavar="N", help="read only so many bytes of text, from all over the source"
    )
    return parser
