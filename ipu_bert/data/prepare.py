"""Text to token files: python -m ipu_bert.data.prepare --source sotu --out data

documents -> held-out split -> tokenizer (trained on training documents only) -> sentences -> ids ->
memory-mapped files. The result is OUT/SOURCE-HASH, where HASH stands for all that was asked (source and its
checksums, vocabulary, held-out share, format): asking again opens it, asking for something else makes another
directory and touches nothing. It appears by rename when complete; until then shards lie in
OUT/SOURCE-HASH.partial, and a run that was killed goes on from them. The same request gives the same bytes,
whatever the number of workers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, Iterable, Iterator, TextIO

import numpy as np
import tokenizers
from tqdm import tqdm

from ipu_bert.data import shards
from ipu_bert.data.errors import DataError
from ipu_bert.data.source import Source, make_source, source_names
from ipu_bert.data.token_files import (
    FORMAT,
    MANIFEST,
    SPLITS,
    TOKENIZER,
    TokenFiles,
    split_files,
    token_dtype,
)
from ipu_bert.data.tokenizer import SPECIAL_TOKENS, load_tokenizer, tokenizer_from_vocab, train_tokenizer
from sparse_ops import files

TOKENIZER_BYTES = 1 << 30  # text to train a vocabulary on at most: the trainer's memory grows with the words
NOT_PREDICTED = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")


def prepare(
    source: str = "sotu",
    out: str = "data",
    *,
    paths: Iterable[str] = (),
    column: str = "text",
    document_words: int | None = None,
    vocab_size: int = 8192,
    vocab_file: str | None = None,
    heldout_fraction: float = 0.05,
    workers: int | None = None,
    progress: bool = True,
    shard_bytes: int = shards.SHARD_BYTES,
) -> TokenFiles:
    """Makes token files of a source's text, or opens them if they are there.

    source: a registered name. paths, column, document_words: for source "files" (see local_files).
    vocab_size: pieces to train at most; ignored with vocab_file, a vocab.txt to use instead.
    heldout_fraction: share of documents, chosen by a hash of their text, that never appear in training; at
    least two documents stay on either side. workers: processes (default: one per core; the result does not
    depend on it, nor on shard_bytes, the text of one unit of work). Raises DataError, one line, for text that
    cannot be used.
    """
    if workers is not None and workers < 1:
        raise DataError(f"workers: expected 1 or more, found {workers}")
    text = make_source(source, paths=paths, column=column, document_words=document_words)
    request = _request(text, vocab_size, vocab_file, heldout_fraction)
    final = _folder(request, out)
    os.makedirs(out, exist_ok=True)
    with _only_one(os.path.join(os.fspath(out), f".{os.path.basename(final)}.lock")):
        if not os.path.exists(final):
            manifest = {"format": FORMAT, "request": request, "request_sha256": _digest(request)}
            _build(
                text,
                final,
                manifest,
                vocab_size,
                vocab_file,
                heldout_fraction,
                workers,
                progress,
                shard_bytes,
            )
        shutil.rmtree(final + ".partial", ignore_errors=True)
    return TokenFiles.open(final)


def find_prepared(
    source: str,
    out: str,
    *,
    paths: Iterable[str] = (),
    column: str = "text",
    document_words: int | None = None,
    vocab_size: int = 8192,
    vocab_file: str | None = None,
    heldout_fraction: float = 0.05,
) -> tuple[str, TokenFiles | None]:
    """The directory that `prepare` would make for these arguments, and its token files if it is there; makes nothing.

    Raises DataError as `prepare` does for a source that cannot be read.
    """
    text = make_source(source, paths=paths, column=column, document_words=document_words)
    final = _folder(_request(text, vocab_size, vocab_file, heldout_fraction), out)
    return final, TokenFiles.open(final) if os.path.exists(final) else None


def _request(text: Source, vocab_size: int, vocab_file: str | None, heldout_fraction: float) -> dict[str, Any]:
    """Everything that the bytes of the result follow from."""
    if not 0.0 < heldout_fraction < 1.0:
        raise DataError(f"heldout_fraction: expected a number between 0 and 1, found {heldout_fraction}")
    if vocab_file is not None:
        tokenizer_from_vocab(vocab_file)  # refuse a bad one before any work
    return {
        "format": FORMAT,
        "source": {"name": text.name, **text.identity},
        "vocabulary": {"trained": vocab_size} if vocab_file is None else {"sha256": files.sha256_of(vocab_file)},
        "heldout_fraction": heldout_fraction,
    }


def _digest(request: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def _folder(request: dict[str, Any], out: str) -> str:
    return os.path.join(os.fspath(out), f"{request['source']['name']}-{_digest(request)[:12]}")


def _build(
    source: Source,
    final: str,
    manifest: dict[str, Any],
    vocab_size: int,
    vocab_file: str | None,
    heldout_fraction: float,
    workers: int | None,
    progress: bool,
    shard_bytes: int,
) -> None:
    partial = final + ".partial"
    with _bar("documents", None, progress) as bar:
        text_shards = shards.spool(source.documents(), os.path.join(partial, "text"), shard_bytes, bar.update)
    below = shards.heldout_below(text_shards, heldout_fraction)

    tokenizer_path = os.path.join(partial, TOKENIZER)
    if not os.path.exists(tokenizer_path):
        if vocab_file is not None:
            tokenizer = tokenizer_from_vocab(vocab_file)
        else:
            with _bar("vocabulary, documents", None, progress) as bar:
                tokenizer = train_tokenizer(
                    lambda: _counted(shards.training_texts(text_shards, below, TOKENIZER_BYTES), bar),
                    vocab_size,
                )
        files.write(tokenizer_path, tokenizer.to_str(pretty=True))
    vocab = load_tokenizer(tokenizer_path).get_vocab(with_added_tokens=True)

    with _bar("tokens, shards", len(text_shards), progress) as bar:
        token_shards = _tokenise(text_shards, os.path.join(partial, "tokens"), tokenizer_path, below, workers, bar)
    result = os.path.join(partial, "result")
    shutil.rmtree(result, ignore_errors=True)  # what a killed run left of this stage
    os.makedirs(result)
    with _bar("writing, shards", len(SPLITS) * len(token_shards), progress) as bar:
        sizes, unigrams = shards.merge(token_shards, result, len(vocab), bar.update)

    shutil.copyfile(tokenizer_path, os.path.join(result, TOKENIZER))
    names = [TOKENIZER, *(name for split in SPLITS for name in split_files(split).values())]
    entries = shards.file_entries(result, names)
    manifest.update(
        splits=sizes,
        vocab_size=len(vocab),
        token_dtype=token_dtype(len(vocab)).str,
        tokenizer_sha256=entries[TOKENIZER]["sha256"],
        special_ids={token: vocab[token] for token in SPECIAL_TOKENS},
        unigram=shards.unigram_baseline(
            unigrams["train"], unigrams["heldout"], [vocab[token] for token in NOT_PREDICTED]
        ),
        made_with={"tokenizers": tokenizers.__version__, "numpy": np.__version__},
        files=entries,
    )
    files.write(os.path.join(result, MANIFEST), json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    shards.publish(result, final)


def _tokenise(
    text_shards: list[str], folder: str, tokenizer_path: str, below: int, workers: int | None, bar: tqdm
) -> list[str]:
    """Token shards of all text shards, in order; in this process if one worker is enough."""
    os.makedirs(folder, exist_ok=True)
    jobs = [(path, folder, tokenizer_path, below) for path in text_shards]
    count = min(workers or _cores(), len(jobs))
    results: dict[int, str] = {}
    if count <= 1:
        for number, job in enumerate(jobs):
            results[number] = shards.tokenise_shard(*job)
            bar.update()
    else:
        # spawn: tokenizers and torch hold threads, which do not survive a fork
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker) as pool:
            waiting = {pool.submit(shards.tokenise_shard, *job): number for number, job in enumerate(jobs)}
            for done in as_completed(waiting):
                results[waiting[done]] = done.result()
                bar.update()
    return [results[number] for number in range(len(jobs))]


def _start_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are the parallelism here
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:  # a killed run must leave nobody behind who waits for work
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _bar(what: str, total: int | None, progress: bool) -> tqdm:
    return tqdm(desc=what, total=total, disable=not progress, unit="", leave=progress)


def _counted(texts: Iterable[str], bar: tqdm) -> Iterator[str]:
    for text in texts:
        bar.update()
        yield text


def _only_one(path: str) -> TextIO:
    """The lock of a folder: one process at a time builds it, the others wait here and then find it built."""
    try:
        return files.lock(path, wait=False)
    except BlockingIOError:
        print("another process prepares this text; waiting for it", file=sys.stderr)
        return files.lock(path, wait=True)


def summary(prepared: TokenFiles) -> str:
    """A few lines about a prepared directory."""
    lines = [f"{prepared.directory}: vocabulary {prepared.vocab_size}"]
    for split, size in prepared.manifest["splits"].items():
        lines.append(f"  {split:8s}" + ", ".join(f"{count:,} {what}" for what, count in size.items()))
    lines.append(f"  held-out unigram cross-entropy {prepared.unigram_entropy:.4f} nats")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ipu_bert.data.prepare", description="Turn text into token files for pre-training."
    )
    parser.add_argument("--source", default="sotu", help=f"where the text comes from: {', '.join(source_names())}")
    parser.add_argument("--out", default="data", help="folder for prepared text (default: data)")
    parser.add_argument(
        "--paths",
        nargs="+",
        default=[],
        metavar="PATH",
        help="for --source files: .txt, .jsonl, .parquet files, folders or globs",
    )
    parser.add_argument("--column", default="text", help="column with the text, for .jsonl and .parquet")
    parser.add_argument(
        "--document-words",
        type=int,
        metavar="N",
        help="cut .txt files into documents of about N words, 0: one document per file (default: 1000, "
        "or 0 from 20 files on)",
    )
    parser.add_argument("--vocab-size", type=int, default=8192, help="word pieces to train (default: 8192)")
    parser.add_argument("--vocab-file", help="use this vocab.txt instead of training one")
    parser.add_argument("--heldout-fraction", type=float, default=0.05, help="share of documents kept for evaluation")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument("--verify", action="store_true", help="check the result's checksums, too")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    options = vars(parser.parse_args(arguments))
    verify, quiet = options.pop("verify"), options.pop("quiet")
    try:
        prepared = prepare(progress=not quiet, **options)
        if verify:
            prepared.verify()
    except DataError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
    print(summary(prepared))


if __name__ == "__main__":
    main()
