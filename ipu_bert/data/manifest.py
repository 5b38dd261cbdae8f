"""What a prepared folder says of itself, and whether its arrays can be token files; nothing is trusted."""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Any, Collection, Mapping

import numpy as np

from ipu_bert.json_file import is_count

HASH_RANGE = 1 << 64  # of a document's hash
COUNTS = ("documents", "sentences", "tokens", "lone_documents", "words", "long_words", "unknown")
_PIECE = 1 << 20  # offsets compared at once
_OF_THE_TEXT = re.compile(r"data\.language |[\d,]+ of [\d,]+ documents ")


def problem(manifest: Mapping[str, Any], files: Collection[str], tokenizer: str, splits: Collection[str]) -> str:
    """Why this cannot be the manifest of a folder with these files and splits; empty where it can.

    tokenizer: which of the files holds it.
    """
    entries, sizes, unigram, notes = (manifest.get(key) for key in ("files", "splits", "unigram", "notes"))
    if not isinstance(entries, dict) or not set(files) <= entries.keys():
        return f"expected files with {', '.join(sorted(files))}, found {entries!r:.80}"
    for name, entry in entries.items():
        plain = os.path.basename(name) == name and isinstance(entry, dict)
        if not plain or not is_count(entry.get("bytes")) or not isinstance(entry.get("sha256"), str):
            return f"expected bytes and sha256 of a file beside it, found {name!r:.80}: {entry!r:.80}"
    if not isinstance(sizes, dict) or sizes.keys() != set(splits):
        return f"expected splits {', '.join(splits)}, found {sizes!r:.80}"
    for split, size in sizes.items():
        if not isinstance(size, dict) or not all(is_count(size.get(key)) for key in COUNTS):
            return f"expected whole numbers of {', '.join(COUNTS)} in split {split}, found {size!r:.80}"
        if not size["words"]:
            return f"expected words in split {split}, found none"
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        return f"expected notes, a list of lines, found {notes!r:.80}"
    request, last = manifest.get("request"), manifest.get("last_held_out", hexadecimal(0))
    if not isinstance(request, dict):
        return f"expected request, what the text was prepared from, found {request!r:.80}"
    if not isinstance(last, str) or not re.fullmatch("[0-9a-f]{16}", last):
        return f"expected last_held_out, a hash of 16 digits, found {last!r:.80}"
    if not is_count(manifest.get("most_letters", 1)):
        return f"expected most_letters of a word that is not [UNK], found {manifest['most_letters']!r:.80}"
    rules = manifest.get("rules")
    if not isinstance(rules, dict) or not all(map(is_count, rules.values())):
        return f"expected rules, documents by language, found {rules!r:.80}"
    if not is_count(manifest.get("vocab_size")) or not 0 < manifest["vocab_size"] < 1 << 32:
        return f"expected vocab_size of 1 to {(1 << 32) - 1}, found {manifest.get('vocab_size')!r:.80}"
    entropy = unigram.get("heldout_cross_entropy") if isinstance(unigram, dict) else None
    if not isinstance(entropy, (int, float)) or isinstance(entropy, bool) or entropy < 0:
        return f"expected unigram.heldout_cross_entropy of 0 or more nats, found {entropy!r:.80}"
    if manifest.get("tokenizer_sha256") != entries[tokenizer]["sha256"]:
        return f"expected tokenizer_sha256 as of {tokenizer}, found {manifest.get('tokenizer_sha256')!r:.80}"
    return ""


def held_out(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Which documents are held out: a checksum of all there are, held out or not, by what was asked for, and the
    largest hash of one that is, of 16 digits. Of the same documents a larger one holds out all that a smaller one does.

    The hash is empty where an earlier version prepared the text, whose manifest has none.
    """
    facts = {key: manifest["request"].get(key) for key in ("format", "source", "sentences")}  # older ones lack some
    documents = json.dumps(facts, sort_keys=True)
    return {"documents": hashlib.sha256(documents.encode()).hexdigest(), "last": manifest.get("last_held_out", "")}


def hexadecimal(number: int) -> str:
    """A hash, or a bound of hashes, as JSON has it for every reader."""
    return f"{number:016x}"


def told_text(manifest: Mapping[str, Any]) -> list[str]:
    """The notes of what was found in the text while it was read.

    Those of older releases also have lines of what the folder held beside it then, which each start finds anew.
    """
    return [note for note in manifest["notes"] if _OF_THE_TEXT.match(note)]


def told_long_words(manifest: Mapping[str, Any], directory: str) -> list[str]:
    """A line where an earlier version, which took Chinese without spaces for one word, found words too long."""
    if "most_letters" in manifest or not any(size["long_words"] for size in manifest["splits"].values()):
        return []
    return [
        "prepared by an earlier version, which trained no vocabulary on words of more than 100 letters and took "
        f"Chinese without spaces for such; where the text has any, delete {directory} to prepare it anew"
    ]


def told_vocabulary(manifest: Mapping[str, Any]) -> list[str]:
    """A line where the text gave fewer word pieces than were asked for; none where a tokenizer was given."""
    request = manifest.get("request")
    vocabulary = request.get("vocabulary") if isinstance(request, dict) else None
    asked = vocabulary.get("trained") if isinstance(vocabulary, dict) else None
    if not is_count(asked) or asked <= manifest["vocab_size"]:
        return []
    return [f"the text gave a vocabulary of {manifest['vocab_size']:,} word pieces, not the {asked:,} of vocab_size"]


def offsets_problem(offsets: np.ndarray, end: int) -> str:
    """Why int64 [n + 1] cannot be where each of n parts of [0, end) begins, none empty; empty where it can."""
    if len(offsets) and (offsets[0] != 0 or offsets[-1] != end):
        return f"expected offsets from 0 to {end}, found {offsets[0]} to {offsets[-1]}"
    for start in range(0, len(offsets) - 1, _PIECE):
        piece = offsets[start : start + _PIECE + 1]
        wrong = np.flatnonzero(piece[1:] <= piece[:-1])
        if len(wrong):
            place = start + int(wrong[0])
            return f"expected ascending offsets, found {offsets[place]} and {offsets[place + 1]} at number {place}"
    return ""


def ids_problem(ids: np.ndarray, vocab_size: int) -> str:
    """Why an array cannot hold ids of a vocabulary; empty where it can."""
    largest = int(ids.max()) if len(ids) else 0
    return f"expected ids below {vocab_size}, found {largest}" if largest >= vocab_size else ""
