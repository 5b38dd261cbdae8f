"""The command line of ipu_bert.data.prepare."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from ipu_bert.data.corpus import Corpus
from ipu_bert.data.local_files import COLUMNS, DOCUMENT_WORDS, WHOLE_FILES_FROM, kinds
from ipu_bert.data.source import SOURCES
from ipu_bert.data.tokenizer import TRAINED, Normalization
from sparse_ops.arguments import Parser, named, no_effect, whole_number
from sparse_ops.saying import say

if TYPE_CHECKING:
    from ipu_bert.settings import DataSettings


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options; tells of those that do nothing, and ends the program for those that contradict each other."""
    from ipu_bert.settings import DataSettings  # brings torch along, which workers do not need

    parser = _parser(DataSettings())
    options = parser.parse_args(arguments)
    if options.paths and options.source not in (None, "files"):
        parser.error(f"--paths: expected --source files, found {options.source}")
    options.source = options.source or ("files" if options.paths else DataSettings().source)
    for line in no_effect(parser, options, _idle(options)):
        say(f"no effect: {line}", sys.stderr)
    return options


def corpus_of(options: argparse.Namespace) -> Corpus:
    """What is to be prepared."""
    return Corpus(
        source=options.source,
        paths=tuple(options.paths),
        column=options.column,
        encoding=options.encoding,
        document_words=options.document_words,
        language=options.language,
        line_is_sentence=options.line_is_sentence,
        vocab_size=options.vocab_size,
        tokenizer=options.tokenizer,
        normalization=Normalization(options.do_lower_case, options.strip_accents, options.tokenize_chinese_chars),
        heldout_fraction=options.heldout_fraction,
    )


def _idle(found: argparse.Namespace) -> dict[str, str]:
    """Why an option does nothing beside the others, as `ipu_bert.config.no_effect` has it for runs; empty: it acts."""
    endings = kinds(found.paths)
    elsewhere = f"--source is {found.source}" if found.source != "files" else ""
    without = "files of this kind have no columns" if not endings & {None, *COLUMNS} else ""
    themselves = "files of this kind say their encoding themselves" if endings <= {".parquet", ".xml"} else ""
    whole = "each row or article of these files is a document" if endings <= {".xml", *COLUMNS} else ""
    return {
        "column": elsewhere or without,
        "encoding": elsewhere or themselves,
        "document_words": elsewhere or whole,
        "language": "--line-is-sentence was given" if found.line_is_sentence else "",
        "vocab_size": "--tokenizer has its own vocabulary" if found.tokenizer else "",
    }


def _parser(defaults: DataSettings) -> argparse.ArgumentParser:
    parser = Parser(prog="python -m ipu_bert.data.prepare", description="Turn text into token files for pre-training.")
    _text_arguments(parser, defaults)
    _vocabulary_arguments(parser, defaults)
    add = parser.add_argument
    add("--out", type=named, default=defaults.dir, help="folder for prepared text (default: %(default)s)")
    add(
        "--heldout-fraction",
        type=float,
        default=defaults.heldout_fraction,
        help="share of documents kept for evaluation (default: %(default)s)",
    )
    count = whole_number(0, 1024)
    add("--workers", type=count, default=defaults.workers, help="processes, 0: one per core (default: %(default)s)")
    add("--quiet", action="store_true", help="no progress bars")
    return parser


def _text_arguments(parser: argparse.ArgumentParser, defaults: DataSettings) -> None:
    """Where text comes from, and what its documents and sentences are."""
    add = parser.add_argument
    add(
        "--source",
        type=named,
        help=f"where the text comes from: {', '.join(SOURCES)} (default: files with --paths, else {defaults.source})",
    )
    add("--paths", nargs="+", type=named, default=(), metavar="PATH", help="for --source files: files, folders, globs")
    add(
        "--column",
        type=named,
        default=defaults.column,
        help="column with the text, for .jsonl, .json and .parquet (default: %(default)s)",
    )
    add(
        "--encoding",
        type=named,
        default=defaults.encoding,
        help="of text without a byte order mark (default: %(default)s)",
    )
    add(
        "--document-words",
        type=whole_number(0, 1 << 30),
        metavar="N",
        help=f"cut text files into documents of about N words, 0: one document per file (default: {DOCUMENT_WORDS}, "
        f"fewer for a short text, or 0 from {WHOLE_FILES_FROM} files on)",
    )
    add(
        "--language",
        type=named,
        default=defaults.language,
        help="whose rules find sentences, as de; auto: by the text (default: %(default)s)",
    )
    add(
        "--line-is-sentence",
        action="store_true",
        default=defaults.line_is_sentence,
        help="each line is a sentence, a blank line ends a document",
    )


def _vocabulary_arguments(parser: argparse.ArgumentParser, defaults: DataSettings) -> None:
    """What the words and their pieces are."""
    add = parser.add_argument
    count = whole_number(1, 10_000_000)
    add("--vocab-size", type=count, default=defaults.vocab_size, help="word pieces to train (default: %(default)s)")
    add(
        "--tokenizer",
        "--vocab-file",
        type=named,
        default=defaults.tokenizer or None,
        help="use this vocab.txt, tokenizer.json, folder or hub name instead of training one",
    )
    for name in vars(TRAINED):
        add(
            f"--{name.replace('_', '-')}",
            type=_yes_or_no,
            default=getattr(defaults, name),
            metavar="yes/no",
            help="as of transformers' BertTokenizer (default: as the tokenizer has it)",
        )


def _yes_or_no(value: str) -> bool:
    if value not in ("yes", "no"):
        raise argparse.ArgumentTypeError(f"expected yes or no, found {value!r}")
    return value == "yes"
