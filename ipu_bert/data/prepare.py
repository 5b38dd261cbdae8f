"""Text to token files: python -m ipu_bert.data.prepare --source sotu --out data

documents -> held-out split -> tokenizer (trained on training documents only) -> sentences -> ids -> memory-mapped files

The result is OUT/SOURCE-HASH, where HASH stands for all that was asked (source and its checksums, vocabulary, held-out
share, format): asking again opens it, asking for something else makes another folder and touches nothing. It appears
by a rename when complete; until then shards lie in OUT/SOURCE-HASH.partial, and a run that was killed goes on from
them. The same request gives the same bytes, whatever the number of workers, but for cost.json.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, Iterable, Iterator, TextIO

import numpy as np
import tokenizers
from tqdm import tqdm

from ipu_bert import sealed_json
from ipu_bert.data import shards
from ipu_bert.data.command_line import corpus_of, parse
from ipu_bert.data.corpus import Corpus
from ipu_bert.data.cost import Cost, write_cost
from ipu_bert.data.errors import ChangedTextError, DataError
from ipu_bert.data.language import language_notes
from ipu_bert.data.manifest import hexadecimal
from ipu_bert.data.sentences import split_sentences
from ipu_bert.data.source import Source, make_source
from ipu_bert.data.token_files import (
    AGAIN,
    FORMAT,
    MANIFEST,
    SPLITS,
    TOKENIZER,
    TokenFiles,
    split_files,
    token_dtype,
)
from ipu_bert.data.tokenizer import (
    NOT_PREDICTED,
    SPECIAL_TOKENS,
    TRAINED,
    given_tokenizer,
    load_tokenizer,
    most_letters,
    train_tokenizer,
)
from ipu_bert.data.unigram import unigram_baseline
from ipu_bert.data.workers import end_if_worker, in_order, worker_count
from sparse_ops import files
from sparse_ops.ends import out_of
from sparse_ops.saying import Heedless, say

TOKENIZER_BYTES = 1 << 30  # text to train a vocabulary on at most: the trainer's memory grows with the words


@dataclass(frozen=True, eq=False)
class _Request:
    """A corpus whose source has been looked at; `facts`: all that the bytes of the result follow from, JSON-able."""

    corpus: Corpus
    source: Source
    facts: dict[str, Any]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()

    def folder(self, out: str) -> str:
        return os.path.join(out, f"{self.source.name}-{self.sha256[:12]}")


def _request(corpus: Corpus, workers: int) -> _Request:
    source = make_source(corpus, workers)
    if corpus.tokenizer is None:
        wanted = corpus.normalization.over(TRAINED)
        vocabulary: dict[str, Any] = {"trained": corpus.vocab_size, **vars(wanted)}
    else:
        given = given_tokenizer(corpus.tokenizer, corpus.normalization)  # refuse a bad one before any work
        vocabulary = {"sha256": hashlib.sha256(given.to_str().encode()).hexdigest()}
    facts = {
        "format": FORMAT,
        "source": {"name": source.name, **source.identity},
        "sentences": {"line_is_sentence": True} if corpus.line_is_sentence else _segmenter(corpus),
        "vocabulary": vocabulary,
        "heldout_fraction": corpus.heldout_fraction,
    }
    return _Request(corpus, source, facts)


def _segmenter(corpus: Corpus) -> dict[str, Any]:
    return {"language": corpus.language, "sentencex": version("sentencex")}


def prepare(corpus: Corpus, out: str, *, workers: int, progress: bool) -> TokenFiles:
    """Make token files of a corpus in a folder of `out`, or open them where they have been made before.

    workers: processes, 0: one per core; the result does not depend on it. progress: show bars on the terminal.
    Every byte of what is there is verified (TokenFiles.verify), and nothing is written beside it.
    Raises DataError, one line, for text or a vocabulary that cannot be used, and for prepared files that are damaged.
    """
    if workers < 0:
        raise DataError(f"workers: expected 0 or more, found {workers}")
    end_if_worker()
    workers = worker_count(workers)
    request = _request(corpus, workers)
    final = request.folder(out)
    if not os.path.exists(final):
        os.makedirs(out, exist_ok=True)
        with _only_one(_lock_file(final)):
            if not os.path.exists(final):
                try:
                    with files.naming(final + ".partial"):
                        _build(request, final, workers, progress)
                except ChangedTextError:  # what was read of it is not the text whose checksum the folder is named by
                    shutil.rmtree(final + ".partial", ignore_errors=True)
                    raise
            shutil.rmtree(final + ".partial", ignore_errors=True)
    elif os.path.exists(final + ".partial"):  # killed after the rename; where nothing can be written it may stay
        with contextlib.suppress(OSError), _only_one(_lock_file(final)):
            shutil.rmtree(final + ".partial", ignore_errors=True)
    prepared = TokenFiles.open(final, request.source.notes)
    if prepared.manifest.get("request_sha256") != request.sha256:
        found = f"found {prepared.manifest.get('request_sha256')!r:.80}"
        raise DataError(f"{os.path.join(final, MANIFEST)}: expected request_sha256 {request.sha256}, {found}; {AGAIN}")
    prepared.verify()
    return prepared


def _lock_file(final: str) -> str:
    return os.path.join(os.path.dirname(final), f".{os.path.basename(final)}.lock")


def find_prepared(corpus: Corpus, out: str) -> tuple[str, TokenFiles | None]:
    """The folder that `prepare` would make for this corpus, and its token files if they are there; makes nothing.

    Raises DataError as `prepare` does for a source or a vocabulary that cannot be read.
    """
    request = _request(corpus, workers=1)
    final = request.folder(out)
    return final, TokenFiles.open(final, request.source.notes) if os.path.exists(final) else None


def _build(request: _Request, final: str, workers: int, progress: bool) -> None:
    """All stages, in `final`.partial, then the rename; what a killed run has finished there is not done again."""
    corpus, aside = request.corpus, final + ".partial"
    continued = os.path.exists(aside)
    times = [time.perf_counter()]
    with _bar("documents", None, progress) as bar:
        text_shards = shards.spool(request.source.documents(), os.path.join(aside, "text"), bar.update)
    below = shards.heldout_below(text_shards, corpus.heldout_fraction)
    times.append(time.perf_counter())
    # Earlier versions, which left out other words or did not say which documents are held out, had theirs elsewhere.
    pieces = os.path.join(aside, "pieces")
    os.makedirs(pieces, exist_ok=True)
    tokenizer_path = os.path.join(pieces, TOKENIZER)
    if not os.path.exists(tokenizer_path):
        tokenizer = _tokenizer(corpus, text_shards, below, progress)
        files.write(tokenizer_path, tokenizer.to_str(pretty=True))
    times.append(time.perf_counter())
    how = shards.Tokenising(
        os.path.join(pieces, "shards"), tokenizer_path, below, corpus.language, corpus.line_is_sentence
    )
    os.makedirs(how.folder, exist_ok=True)
    workers = min(workers, len(text_shards))
    with _bar("tokens, shards", len(text_shards), progress) as bar:
        token_shards = list(_counted(in_order(partial(shards.tokenise_shard, how=how), text_shards, workers), bar))
    times.append(time.perf_counter())
    result = os.path.join(aside, "result")
    found = shards.token_facts(token_shards)
    notes = shards.told_empty(*shards.empty_documents(text_shards), corpus.column)
    entries = _write_files(request, result, token_shards, tokenizer_path, found, notes, progress)
    times.append(time.perf_counter())
    reading, vocabulary, tokenizing, writing = (end - start for start, end in zip(times, times[1:]))
    cost = Cost(
        reading=reading,
        vocabulary=vocabulary,
        tokenizing=tokenizing,
        writing=writing,
        workers=workers,
        sentences=found.sentences,
        pieces=found.pieces,
        continued=continued,
        text_bytes=found.text_bytes,
        token_bytes=sum(entry["bytes"] for entry in entries.values()),
    )
    write_cost(result, cost)
    shards.publish(result, final)


def _write_files(
    request: _Request,
    folder: str,
    token_shards: list[str],
    tokenizer_path: str,
    found: shards.TokenFacts,
    notes: list[str],
    progress: bool,
) -> dict[str, dict[str, Any]]:
    """All files of `folder` but the cost; returns what the manifest says of each. notes: of the text that was read."""
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left of this stage
    os.makedirs(folder)
    shutil.copyfile(tokenizer_path, os.path.join(folder, TOKENIZER))
    tokenizer = load_tokenizer(tokenizer_path)
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    with _bar("writing, shards", len(SPLITS) * len(token_shards), progress) as bar:
        sizes, unigrams = shards.merge(token_shards, folder, len(vocab), bar.update)
    documents = sum(found.rules.values())
    entries = shards.file_entries(folder, [TOKENIZER, *(name for s in SPLITS for name in split_files(s).values())])
    manifest = {
        "format": FORMAT,
        "request": request.facts,
        "request_sha256": request.sha256,
        "last_held_out": hexadecimal(found.last_held_out),
        "splits": {split: {**size, "unknown": int(unigrams[split][vocab["[UNK]"]])} for split, size in sizes.items()},
        "vocab_size": len(vocab),
        "most_letters": most_letters(tokenizer),
        "token_dtype": token_dtype(len(vocab)).str,
        "tokenizer_sha256": entries[TOKENIZER]["sha256"],
        "special_ids": {token: vocab[token] for token in SPECIAL_TOKENS},
        "unigram": unigram_baseline(unigrams["train"], unigrams["heldout"], [vocab[token] for token in NOT_PREDICTED]),
        "rules": found.rules,
        "notes": [*notes, *language_notes(request.corpus.language, found.foreign, documents)],
        "made_with": {"tokenizers": tokenizers.__version__, "numpy": np.__version__},
        "files": entries,
    }
    files.write(os.path.join(folder, MANIFEST), sealed_json.sealed(manifest))
    return entries


def _tokenizer(corpus: Corpus, text_shards: list[str], below: int, progress: bool) -> tokenizers.Tokenizer:
    """The corpus's own vocabulary, or one trained on its training documents."""
    if corpus.tokenizer is not None:
        return given_tokenizer(corpus.tokenizer, corpus.normalization)

    def texts() -> Iterator[str]:  # in sentences, as they will be encoded: long runs without a space are cut
        for text in _counted(shards.training_texts(text_shards, below, TOKENIZER_BYTES), bar):
            yield "\n".join(split_sentences(text, corpus.language, corpus.line_is_sentence))

    with _bar("vocabulary, documents", None, progress) as bar:
        return train_tokenizer(texts, corpus.vocab_size, corpus.normalization)


def _bar(what: str, total: int | None, progress: bool) -> tqdm:
    return tqdm(desc=what, total=total, disable=not progress, unit="", leave=progress, file=Heedless(sys.stderr))


def _counted(items: Iterable[str], bar: tqdm) -> Iterator[str]:
    for item in items:
        bar.update()
        yield item


def _only_one(path: str) -> TextIO:
    """The lock of a folder: one process at a time builds it, the others wait here and then find it built."""
    return files.lock_after_others(path, "another process prepares this text; waiting for it")


def summary(prepared: TokenFiles) -> str:
    """A few lines about a prepared directory."""
    lines = [f"{prepared.directory}: vocabulary {prepared.vocab_size}"]
    for split, size in prepared.manifest["splits"].items():
        lines.append(f"  {split:8s}" + ", ".join(f"{count:,} {what}" for what, count in size.items()))
    lines.append(f"  held-out unigram cross-entropy {prepared.unigram_entropy:.4f} nats")
    lines += [f"  {line}" for line in ([prepared.cost.summary()] if prepared.cost else []) + prepared.notes]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    try:
        options = parse(arguments)
        prepared = prepare(corpus_of(options), options.out, workers=options.workers, progress=not options.quiet)
    except DataError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {files.in_words(error)}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
    except BaseException as error:  # a panic of tokenizers is no Exception
        problem = out_of(error)
        if not problem:
            raise
        sys.exit(f"error: {' '.join(problem.splitlines())}")
    say(summary(prepared), sys.stdout)


if __name__ == "__main__":
    main()
