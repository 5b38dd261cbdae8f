"""Token files that are cut, changed or not token files at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_corpora import prepared, random_documents

from ipu_bert.data.errors import DataError
from ipu_bert.data.token_files import TokenFiles, token_dtype


def test_ids_need_32_bits_from_65536_on() -> None:
    assert [token_dtype(n).itemsize for n in (100, 65535, 65536)] == [2, 2, 4]


@pytest.fixture
def own_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TokenFiles:
    return prepared(monkeypatch, tmp_path, random_documents(2, 20))


@pytest.mark.parametrize("name", ["train.tokens.bin", "heldout.sentences.bin", "train.documents.bin", "tokenizer.json"])
def test_cut_and_missing_files_are_refused(own_files: TokenFiles, name: str) -> None:
    path = Path(own_files.directory, name)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=rf"{name}: expected {size} bytes, found {size - 2}; delete"):
        TokenFiles.open(own_files.directory)
    path.unlink()
    with pytest.raises(DataError, match=rf"{name}: expected {size} bytes, found no file"):
        TokenFiles.open(own_files.directory)


def test_a_changed_byte_is_found_by_verify(own_files: TokenFiles) -> None:
    path = Path(own_files.directory, "heldout.tokens.bin")
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)
    opened = TokenFiles.open(own_files.directory)
    with pytest.raises(DataError, match=r"heldout\.tokens\.bin: expected sha256 \w{64}, found \w{64}"):
        opened.verify()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "missing; expected a directory made by"),
        ("{", "cannot be read as a manifest"),
        ("[]", "cannot be read"),
        (json.dumps({"format": 1, "files": {}}), "expected token file format 3, found 1; delete this folder"),
    ],
)
def test_bad_manifests_are_refused(own_files: TokenFiles, content: str, message: str) -> None:
    path = Path(own_files.directory, "manifest.json")
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=rf"manifest\.json: {message}"):
        TokenFiles.open(own_files.directory)
