"""The stages between a source and token files; each leaves finished shards that a restarted run keeps.

1. spool: documents are written to text shards of a few MB (JSON strings, one per line), in the order of the source.
2. tokenise: each text shard becomes a token shard, by worker processes; its content depends on nothing but the text.
3. merge: token shards are appended in order, with offsets, counts and checksums.

A shard appears by a rename when it is complete. Memory: one shard per worker, and the vocabulary's counts.

`datasets.map` was tried in place of stage 2 (datasets 5.2, sotu, two processes, a crowded machine). It is no slower: 8
to 9 s of processor time against 14 to 16, since workers here import torch, too. But it took 409 MB a process against
350, 31 MB of disk against 18, and would replace the twenty lines of workers.in_order alone: split, counts and merge
remain.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator

import numpy as np

from ipu_bert.data.encoding import count_long_words, encode_documents, is_foreign, split_documents
from ipu_bert.data.errors import DataError
from ipu_bert.data.language import AUTO
from ipu_bert.data.manifest import HASH_RANGE
from ipu_bert.data.sentences import count_units
from ipu_bert.data.token_files import OFFSETS, SPLITS, split_files, token_dtype
from ipu_bert.data.tokenizer import load_tokenizer
from sparse_ops import files

SHARD_BYTES = 2 << 20  # text in one unit of work; the result does not depend on it
LONGEST_DOCUMENT = 4 << 20  # characters; a longer document is several
FACTS = "facts.json"
Progress = Callable[[int], Any]  # is told how many more units are done


def document_hash(text: str) -> int:
    """uint64 of a document's words, case and white space aside: the same text always falls into the same split."""
    return int.from_bytes(_digest(text)[:8], "little")


def _digest(text: str) -> bytes:
    return hashlib.sha256(" ".join(text.lower().split()).encode()).digest()


# 1. spool


def spool(documents: Iterable[str], folder: str, progress: Progress) -> list[str]:
    """Write documents that hold any word to `folder`/00000.jsonl and so on, and return the paths.

    What a stopped run has written is kept, and as many documents of the source are passed over.
    """
    os.makedirs(folder, exist_ok=True)
    finished = os.path.join(folder, "finished.json")
    paths, already = [], 0
    for number in itertools.count():
        path = _shard(folder, number)
        facts = _read_json(path + ".json") if os.path.exists(path + ".json") else {}
        if not facts or ("empty" not in facts and not os.path.exists(finished)):  # older releases passed over some rows
            break
        paths.append(path)
        already += facts["read"]
    if os.path.exists(finished):
        return paths
    progress(already)
    iterator = itertools.islice(iter(documents), already, None)
    for number in itertools.count(len(paths)):
        path = _shard(folder, number)
        if not _spool_one(iterator, path, progress):
            break
        paths.append(path)
    files.write(finished, json.dumps({"shards": len(paths)}))
    return paths


def _spool_one(documents: Iterator[str], path: str, progress: Progress) -> bool:
    """One text shard and, last, the facts about it: without them it is made again. False if no document is left."""
    first = next(documents, None)
    if first is None:
        return False
    read = empty = kept = size = 0
    ends = _Ends()
    with files.replacing(path) as aside, files.naming(path), open(aside, "wb") as file:
        for document in itertools.chain([first], documents):
            read += 1
            empty += not document.strip()
            progress(1)
            for text in bounded(document):
                line = json.dumps(text).encode() + b"\n"
                file.write(line)
                ends.add([document_hash(text)])
                kept += 1
                size += len(line)
            if size >= SHARD_BYTES:
                break
    counts = {"read": read, "empty": empty, "documents": kept, "bytes": size}
    facts = {**counts, "lowest": ends.lowest, "highest": ends.highest}
    files.write(path + ".json", json.dumps(facts))
    return True


def empty_documents(text_shards: list[str]) -> tuple[int, int]:
    """How many documents of the source have no text, and how many it has."""
    facts = [_read_json(path + ".json") for path in text_shards]
    return sum(each.get("empty", 0) for each in facts), sum(each["read"] for each in facts)


def told_empty(empty: int, read: int, column: str) -> list[str]:
    """A note where some of a source's documents have no text."""
    if not empty:
        return []
    return [f"{empty:,} of {read:,} documents have no text (rows: in column {column!r}) and are left out"]


def bounded(document: str) -> Iterator[str]:
    """A document that holds any word, in parts where it is too long, cut at a blank line or white space if possible."""
    start = 0
    while start < len(document):
        end = start + LONGEST_DOCUMENT
        if end < len(document):
            places = (document.rfind(mark, start + LONGEST_DOCUMENT // 2, end) for mark in ("\n\n", "\n", " "))
            end = next((place for place in places if place > 0), end)
        if document[start:end].strip():
            yield document[start:end]
        start = end


class _Ends:
    """The two lowest and two highest of all different hashes seen."""

    def __init__(self) -> None:
        self.lowest: list[int] = []
        self.highest: list[int] = []

    def add(self, hashes: Iterable[int]) -> None:
        for value in hashes:
            if len(self.lowest) < 2 or value < self.lowest[-1]:
                self.lowest = sorted({*self.lowest, value})[:2]
            if len(self.highest) < 2 or value > self.highest[0]:
                self.highest = sorted({*self.highest, value})[-2:]


def heldout_below(text_shards: list[str], heldout_fraction: float) -> int:
    """The uint64 below which a document's hash puts it into the held-out split.

    That is about heldout_fraction of the documents, and at least two different ones on either side.
    Raises DataError for fewer than four different documents.
    """
    ends, count = _Ends(), 0
    for path in text_shards:
        facts = _read_json(path + ".json")
        count += facts["documents"]
        ends.add(facts["lowest"] + facts["highest"])
    different = len({*ends.lowest, *ends.highest})
    if different < 4:
        raise DataError(
            f"corpus too small: expected at least 4 different documents (2 to train on, 2 held out), "
            f"found {different} in {count} document(s)"
        )
    wanted = int(heldout_fraction * HASH_RANGE)
    return min(max(wanted, ends.lowest[1] + 1), ends.highest[0])


def training_texts(text_shards: list[str], below: int, max_bytes: int) -> Iterator[str]:
    """Texts of the training documents; of a corpus above max_bytes a sample by hash of about that size."""
    total = sum(_read_json(path + ".json")["bytes"] for path in text_shards)
    share = min(1.0, max_bytes / max(1, total))
    for path in text_shards:
        for text in read_shard(path):
            digest = _digest(text)
            chosen = share == 1.0 or int.from_bytes(digest[8:16], "little") < share * HASH_RANGE
            if chosen and int.from_bytes(digest[:8], "little") >= below:
                yield text


def read_shard(path: str) -> Iterator[str]:
    """The documents of one text shard."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


# 2. tokenise


@dataclass(frozen=True)
class Tokenising:
    """How text shards become token shards; a worker process is given it.

    folder: where they go. tokenizer_path: a tokenizer.json. below: as heldout_below gives it. language,
    line_is_sentence: as split_sentences takes them.
    """

    folder: str
    tokenizer_path: str
    below: int
    language: str
    line_is_sentence: bool


def tokenise_shard(text_shard: str, how: Tokenising) -> str:
    """Make the token shard of a text shard in `how.folder`, unless it is there, and return its path.

    It is a folder of the files of token_files.py with lengths in place of offsets: SPLIT.tokens.bin (ids),
    SPLIT.sentences.bin (tokens of each sentence) and SPLIT.documents.bin (sentences of each document), and of
    SPLIT.json, the numbers of words and of words that are too long; and FACTS, of which `token_facts` is the sum.
    """
    path = os.path.join(how.folder, os.path.basename(text_shard)[: -len(".jsonl")])
    if os.path.isdir(path):
        return path
    tokenizer = load_tokenizer(how.tokenizer_path)
    parts: dict[str, tuple[list[np.ndarray], list[int], list[int]]] = {split: ([], [], []) for split in SPLITS}
    words = {split: {"words": 0, "long_words": 0} for split in SPLITS}
    started = time.process_time()
    documents = split_documents(list(read_shard(text_shard)), how.language, how.line_is_sentence)
    split_at = time.process_time()
    hashes = {document.text: document_hash(document.text) for document in documents}
    for document in encode_documents(tokenizer, documents):
        split = "heldout" if hashes[document.split.text] < how.below else "train"
        tokens, lengths, counts = parts[split]
        tokens.extend(document.ids)
        lengths.extend(map(len, document.ids))
        counts.append(len(document.ids))
        words[split]["words"] += sum(map(count_units, document.split.sentences))
        words[split]["long_words"] += count_long_words(tokenizer, document)
    facts = TokenFacts(
        sentences=split_at - started,
        pieces=time.process_time() - split_at,
        text_bytes=sum(len(document.text.encode()) for document in documents),
        rules=dict(Counter(document.language for document in documents if document.language)),
        foreign=0 if how.language == AUTO else sum(map(is_foreign, documents)),
        last_held_out=max((value for value in hashes.values() if value < how.below), default=0),
    )
    aside = f"{path}.{os.getpid()}.tmp"  # a folder, since its files must appear together
    shutil.rmtree(aside, ignore_errors=True)
    os.makedirs(aside)
    for split, (tokens, lengths, counts) in parts.items():
        arrays = {
            "tokens": np.concatenate([np.empty(0, token_dtype(tokenizer.get_vocab_size())), *tokens]),
            "sentences": np.array(lengths, OFFSETS),
            "documents": np.array(counts, OFFSETS),
        }
        for part, name in split_files(split).items():
            _write(os.path.join(aside, name), arrays[part].tobytes())
        _write(os.path.join(aside, f"{split}.json"), json.dumps(words[split]).encode())
    _write(os.path.join(aside, FACTS), json.dumps(vars(facts)).encode())
    publish(aside, path)
    return path


@dataclass(frozen=True)
class TokenFacts:
    """What making token shards took and found.

    sentences, pieces: processor seconds. text_bytes: in UTF-8. rules: documents by the language whose rules found their
    sentences. foreign: documents in another script than the named language's, whose own rules find other sentences.
    last_held_out: the largest hash of a document that is held out; 0 for none.
    """

    sentences: float
    pieces: float
    text_bytes: int
    rules: dict[str, int]
    foreign: int
    last_held_out: int


def token_facts(token_shards: list[str]) -> TokenFacts:
    """The sum over token shards."""
    found = [TokenFacts(**_read_json(os.path.join(shard, FACTS))) for shard in token_shards]
    rules: Counter[str] = Counter()
    for facts in found:
        rules.update(facts.rules)
    return TokenFacts(
        sentences=sum(facts.sentences for facts in found),
        pieces=sum(facts.pieces for facts in found),
        text_bytes=sum(facts.text_bytes for facts in found),
        rules=dict(rules),
        foreign=sum(facts.foreign for facts in found),
        last_held_out=max(facts.last_held_out for facts in found),
    )


def _write(path: str, data: bytes) -> None:
    with files.naming(path):
        Path(path).write_bytes(data)


# 3. merge


def merge(
    token_shards: list[str], out: str, vocab_size: int, progress: Progress
) -> tuple[dict[str, dict[str, int]], dict[str, np.ndarray]]:
    """Append the token shards of each split to its files in `out`.

    Returns the sizes {split: {documents, sentences, tokens, lone_documents, words, long_words}}, where a lone document
    has one sentence and a long word is too long for WordPiece, and how often each id occurs as {split: int64 [vocab]}.
    Raises DataError for a split with fewer than 2 documents.
    """
    sizes: dict[str, dict[str, int]] = {}
    unigrams: dict[str, np.ndarray] = {}
    for split in SPLITS:
        names = split_files(split)
        counts = np.zeros(vocab_size, np.int64)
        names_of_sizes = ("documents", "sentences", "tokens", "lone_documents", "words", "long_words")
        size = dict.fromkeys(names_of_sizes, 0)
        with contextlib.ExitStack() as stack:
            stack.enter_context(files.naming(out))
            paths = {part: os.path.join(out, name) for part, name in names.items()}
            output = {part: stack.enter_context(open(path, "wb")) for part, path in paths.items()}
            for part in ("sentences", "documents"):
                output[part].write(np.zeros(1, OFFSETS).tobytes())
            for shard in token_shards:
                tokens = np.fromfile(os.path.join(shard, names["tokens"]), token_dtype(vocab_size))
                lengths = np.fromfile(os.path.join(shard, names["sentences"]), OFFSETS)
                per_document = np.fromfile(os.path.join(shard, names["documents"]), OFFSETS)
                output["tokens"].write(tokens.tobytes())
                output["sentences"].write((np.cumsum(lengths) + size["tokens"]).astype(OFFSETS).tobytes())
                output["documents"].write((np.cumsum(per_document) + size["sentences"]).astype(OFFSETS).tobytes())
                counts += np.bincount(tokens, minlength=vocab_size)
                size["tokens"] += len(tokens)
                size["sentences"] += len(lengths)
                size["documents"] += len(per_document)
                size["lone_documents"] += int((per_document == 1).sum())
                for key, count in _read_json(os.path.join(shard, f"{split}.json")).items():
                    size[key] += count
                progress(1)
        if size["documents"] < 2:
            raise DataError(
                f"corpus too small: expected at least 2 documents in split {split}, found {size['documents']}"
            )
        sizes[split], unigrams[split] = size, counts
    return sizes, unigrams


def file_entries(folder: str, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """{name: {"bytes", "sha256"}} of the named files, for the manifest."""
    paths = {name: os.path.join(folder, name) for name in names}
    return {name: {"bytes": os.path.getsize(path), "sha256": files.sha256_of(path)} for name, path in paths.items()}


def publish(aside: str, final: str) -> None:
    """Give a finished folder of files its name, once they and their names are on disk; `final` must not be there.

    Whoever reads the folder finds every file whole, so none of them has to be written aside and renamed by itself.
    """
    for name in os.listdir(aside):
        files.sync(os.path.join(aside, name))
    files.sync(aside)
    os.replace(aside, final)
    files.sync(os.path.dirname(final) or ".")


def _shard(folder: str, number: int) -> str:
    return os.path.join(folder, f"{number:05d}.jsonl")


def _read_json(path: str) -> Any:
    with open(path, encoding="utf-8") as file:
        return json.load(file)
