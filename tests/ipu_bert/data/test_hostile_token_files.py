"""Prepared text that is damaged, rewritten with right checksums, or read-only: refused in one line, or used."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_corpora import corpus, prepared, random_documents

from ipu_bert import sealed_json
from ipu_bert.data.errors import DataError
from ipu_bert.data.manifest import COUNTS, offsets_problem
from ipu_bert.data.prepare import prepare
from ipu_bert.data.token_files import TokenFiles
from sparse_ops.files import sha256_of

DOCUMENTS = random_documents(3, 20)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TokenFiles:
    return prepared(monkeypatch, tmp_path, DOCUMENTS)


def again(own: TokenFiles) -> TokenFiles:
    """What a run does: the same request in the same folder."""
    return prepare(corpus(), os.path.dirname(own.directory), workers=1, progress=False)


def refused(own: TokenFiles) -> str:
    with pytest.raises(DataError) as caught:
        again(own)
    assert str(caught.value).isprintable()
    assert str(caught.value).endswith("delete this folder and prepare the text again")
    return str(caught.value)


def edit(own: TokenFiles, **changes: Any) -> None:
    """As versions before wrote it: without a checksum of its own."""
    path = Path(own.directory, "manifest.json")
    manifest = json.loads(path.read_text())
    manifest.pop(sealed_json.KEY, None)
    path.write_text(json.dumps({**manifest, **changes}))


def rewrite(own: TokenFiles, name: str, array: np.ndarray, **changes: Any) -> None:
    """Another file, with its checksum in the manifest."""
    path = Path(own.directory, name)
    path.write_bytes(array.tobytes())
    entry = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    edit(own, files={**own.manifest["files"], name: entry}, **changes)


NAMES = [f"{split}.{part}.bin" for split in ("train", "heldout") for part in ("tokens", "sentences", "documents")]


@pytest.mark.parametrize("name", [*NAMES, "tokenizer.json"])
def test_a_flipped_bit_is_found_before_a_run(own, name, seed):
    path = Path(own.directory, name)
    content = bytearray(path.read_bytes())
    content[seed % len(content)] ^= 1 << seed % 8
    path.write_bytes(content)
    assert f"{name}: expected sha256 " in refused(own)


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("tokens", lambda x: x + 300, "expected ids below "),
        ("sentences", lambda x: x[::-1], "expected offsets from 0 to "),
        ("sentences", lambda x: np.where(x == x[-1], 1 << 40, x), "expected offsets from 0 to "),
        ("sentences", lambda x: np.where(x == x[3], x[2], x), "expected ascending offsets, found "),
        ("documents", lambda x: np.where(x == x[1], -1, x), "expected ascending offsets, found 0 and -1 at number 0"),
        ("documents", lambda x: x * 2, "expected offsets from 0 to "),
    ],
)
def test_numbers_out_of_bounds(own, split, part, change, message):
    """With right checksums, as whoever rewrote the manifest, too, would have them."""
    array = np.array(getattr(own.split(split), part))
    rewrite(own, f"{split}.{part}.bin", change(array).astype(array.dtype))
    assert f"{split}.{part}.bin: {message}" in refused(own)


def test_offsets_are_compared_across_pieces():
    offsets = np.arange((1 << 20) + 3)
    assert offsets_problem(offsets, (1 << 20) + 2) == ""
    offsets[1 << 20] = offsets[(1 << 20) + 1]
    assert "at number 1048576" in offsets_problem(offsets, (1 << 20) + 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": None}, "expected files with "),
        ({"files": {}}, "expected files with "),
        ({"splits": None}, "expected splits train, heldout, found None"),
        ({"splits": dict.fromkeys(("train", "heldout"), dict.fromkeys(COUNTS, 0))}, "expected words in split train"),
        ({"notes": [1]}, "expected notes, a list of lines, found [1]"),
        (
            {"splits": {"train": {}, "heldout": {}}},
            "expected whole numbers of documents, sentences, tokens, lone_documents, words, long_words, unknown in",
        ),
        ({"most_letters": "100"}, "expected most_letters of a word that is not [UNK], found '100'"),
        ({"vocab_size": "300"}, "expected vocab_size of 1 to 4294967295, found '300'"),
        ({"vocab_size": -1}, "expected vocab_size"),
        ({"vocab_size": 1 << 20}, "expected "),
        ({"vocab_size": 301}, "tokenizer.json: expected the ids 0 to 300 with [PAD]"),
        ({"unigram": None}, "expected unigram.heldout_cross_entropy of 0 or more nats, found None"),
        ({"unigram": {"heldout_cross_entropy": float("nan")}}, "cannot be read as a manifest: expected finite numbers"),
        ({"tokenizer_sha256": "0" * 64}, "expected tokenizer_sha256 as of tokenizer.json"),
        ({"request_sha256": "0" * 64}, "manifest.json: expected request_sha256 "),
        ({"format": "1"}, "expected token file format "),
    ],
)
def test_a_manifest_that_prepare_did_not_write(own, changes, message):
    edit(own, **changes)
    assert message in refused(own)


def test_a_digit_of_the_manifest_that_changed(own):
    """Of the loss that held-out losses are judged by, say; a manifest without a checksum is as it was."""
    path = Path(own.directory, "manifest.json")
    entropy = repr(own.manifest["unigram"]["heldout_cross_entropy"])
    path.write_text(path.read_text().replace(entropy, entropy[:-1] + str((int(entropy[-1]) + 1) % 10)))
    assert "manifest.json: expected the SHA-256 that it says it has, found another one" in refused(own)
    edit(own)
    again(own)


@pytest.mark.parametrize("entry", [3, {"bytes": "9", "sha256": ""}, {"bytes": -1, "sha256": ""}, {"bytes": 1}])
@pytest.mark.parametrize("name", ["train.tokens.bin", "../../etc/passwd", "/etc/passwd"])
def test_a_file_of_a_manifest_that_is_none(own, name, entry):
    edit(own, files={**own.manifest["files"], name: entry})
    assert "expected bytes and sha256 of a file beside it" in refused(own)


def test_splits_that_disagree_with_the_files(own):
    sizes = {split: {**size, "sentences": size["sentences"] + 1} for split, size in own.manifest["splits"].items()}
    edit(own, splits=sizes)
    assert "manifest.json: expected " in refused(own)
    assert ".sentences.bin for " in refused(own)


def test_another_tokenizer_with_its_own_checksum(own):
    other = json.loads(Path(own.tokenizer_path).read_text())
    other["model"]["vocab"].pop("[MASK]")
    other["added_tokens"] = [token for token in other["added_tokens"] if token["content"] != "[MASK]"]
    text = np.frombuffer(json.dumps(other).encode(), np.uint8)
    Path(own.tokenizer_path).write_bytes(text.tobytes())
    rewrite(own, "tokenizer.json", text, tokenizer_sha256=sha256_of(own.tokenizer_path))
    message = "tokenizer.json: expected the ids 0 to 299 with [PAD] [UNK] [CLS] [SEP] [MASK], found none for [MASK]"
    assert message in refused(own)


def test_prepared_text_is_used_where_nothing_can_be_written(own, monkeypatch, tmp_path):
    """Root may write everywhere, so every way to write is taken away instead."""

    def no(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", "data")

    (tmp_path / (os.path.basename(own.directory) + ".partial")).mkdir()
    before = sorted(os.listdir(tmp_path))
    for name in ("os.makedirs", "os.mkdir", "shutil.rmtree", "sparse_ops.files.lock", "sparse_ops.files.write"):
        monkeypatch.setattr(name, no)
    assert again(own).manifest == own.manifest
    assert sorted(os.listdir(tmp_path)) == before


def test_what_was_left_of_preparing_goes_where_that_can_be(own, tmp_path):
    partial = tmp_path / (os.path.basename(own.directory) + ".partial")
    partial.mkdir()
    again(own)
    assert not partial.exists()


def test_the_identity_follows_the_text_and_nothing_else(own, monkeypatch, tmp_path):
    assert again(own).identity == own.identity
    same = prepared(monkeypatch, tmp_path / "same", DOCUMENTS)
    assert same.identity == own.identity
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(own.vocabulary()), encoding="utf-8")
    one, two = (
        prepared(monkeypatch, tmp_path / str(n), random_documents(n, 20), tokenizer=str(vocabulary)) for n in (1, 2)
    )
    assert one.identity["tokenizer"] == two.identity["tokenizer"]
    assert one.identity["text"] != two.identity["text"]
