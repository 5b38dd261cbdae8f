"""Any damage to prepared text, and any vocabulary: batches can be made, or one line names the file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hostile import Files, anything, assert_one_line, bounded, contents, damaged_bytes, damaged_json
from hypothesis import example, given
from hypothesis import strategies as st

from ipu_bert import assemble, sealed_json
from ipu_bert.config import load_config
from ipu_bert.data.cost import COST
from ipu_bert.data.filling import filling
from ipu_bert.data.other_words import OtherWords
from ipu_bert.data.prepare import prepare
from ipu_bert.data.quality import text_quality
from ipu_bert.data.tokenizer import SPECIAL_TOKENS

OFFSETS = (-1, -(2**63), 2**63 - 1, 2**40, 0, 1, 3, 100)


@pytest.fixture(scope="module")
def prepared(small: Path) -> Files:
    """The files of the small run's text."""
    folder = Path(assemble.open_data(load_config(str(small)), progress=False).directory)
    return Files({str(path): path.read_bytes() for path in sorted(folder.iterdir())})


def named(files: Files, ending: str) -> str:
    return next(path for path in files if path.endswith(ending))


def with_new_checksums(files: Files) -> Files:
    """As somebody would write it who knows what a manifest looks like."""
    path = named(files, "manifest.json")
    manifest = json.loads(files[path])
    manifest.pop(sealed_json.KEY)
    for name in manifest["files"]:
        data = files[named(files, name)]
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return files.but(path, json.dumps(manifest).encode())


def use(small: Path, files: Files) -> bool:
    """Open these files and make batches of both splits; whether they were not refused."""
    for path, data in files.items():
        Path(path).write_bytes(data)
    folder = small.parent / "data"
    before = contents(folder)
    config = load_config(str(small))
    try:
        with bounded():
            found = assemble.open_data(config, progress=False)
            found.vocabulary()
            judging = assemble.make_stream(config, found, "heldout")
            other = OtherWords(found).around(judging.batch(0), 0)
            assert 0 <= int(other.input_ids.min()) <= int(other.input_ids.max()) < found.vocab_size
            filled = filling(assemble.make_stream(config, found, "train"))
            assert 0.0 <= filled.never_asked <= 1.0
            quality = text_quality(found, config.data.sequence_length)
            assert all("\n" not in line for line in (quality.summary(), *quality.warnings(), *filled.warnings()))
            for split in ("train", "heldout"):
                stream = assemble.make_stream(config, found, split)
                for index in range(8):
                    batch = stream.batch(index)
                    assert 0 <= int(batch.input_ids.min()) <= int(batch.input_ids.max()) < found.vocab_size
    except ValueError as error:
        assert_one_line(error, folder)
        assert contents(folder) == before
        return False
    return True


@given(st.data())
def test_a_changed_byte_is_refused(small: Path, prepared: Files, data: st.DataObject):
    path = data.draw(st.sampled_from(sorted(prepared.keys() - {named(prepared, "manifest.json")})))
    used = use(small, prepared.but(path, data.draw(damaged_bytes(prepared[path]))))
    assert used == path.endswith(COST)  # which is passed over with a line, as nothing follows from it


@given(st.data())
def test_any_bytes_with_right_checksums(small: Path, prepared: Files, data: st.DataObject):
    path = data.draw(st.sampled_from(sorted(prepared.keys() - {named(prepared, "manifest.json")})))
    use(small, with_new_checksums(prepared.but(path, data.draw(damaged_bytes(prepared[path])))))


@given(st.data())
def test_any_offsets_with_right_checksums(small: Path, prepared: Files, data: st.DataObject):
    part = data.draw(st.sampled_from(("sentences", "documents")))
    path = named(prepared, f"{data.draw(st.sampled_from(('train', 'heldout')))}.{part}.bin")
    numbers = np.frombuffer(prepared[path], "<i8").copy()
    for _ in range(data.draw(st.integers(1, 2))):
        numbers[data.draw(st.integers(0, len(numbers) - 1))] = data.draw(st.sampled_from(OFFSETS))
    use(small, with_new_checksums(prepared.but(path, numbers.tobytes())))


@given(st.data())
def test_any_manifest(small: Path, prepared: Files, data: st.DataObject):
    path = named(prepared, "manifest.json")
    manifest = data.draw(st.one_of(damaged_json(json.loads(with_new_checksums(prepared)[path])), anything))
    use(small, prepared.but(path, json.dumps(manifest).encode()))


@given(st.data())
def test_any_bytes_as_a_manifest(small: Path, prepared: Files, data: st.DataObject):
    path = named(prepared, "manifest.json")
    use(small, prepared.but(path, data.draw(damaged_bytes(prepared[path]))))


pieces = st.one_of(
    st.sampled_from((*SPECIAL_TOKENS, "a", "##a", "ba", "##", "", " ", "[unused0]", "\u0301", "x" * 200)),
    st.text(max_size=5),
)


@given(st.one_of(st.lists(pieces, max_size=12), st.permutations([*SPECIAL_TOKENS, "a", "##a", "b"])))
@example(list(SPECIAL_TOKENS))
@example([*SPECIAL_TOKENS, ""])
def test_any_vocabulary_is_used_or_refused(small: Path, tmp_path_factory: pytest.TempPathFactory, lines: list[str]):
    attack_vocabulary(small, tmp_path_factory.mktemp("vocabulary"), "\n".join(lines).encode("utf-8", "replace"))


@given(st.binary(max_size=80))
def test_any_bytes_as_a_vocabulary(small: Path, tmp_path_factory: pytest.TempPathFactory, found: bytes):
    attack_vocabulary(small, tmp_path_factory.mktemp("vocabulary"), found)


def attack_vocabulary(small: Path, folder: Path, text: bytes) -> None:
    path, out = folder / "vocab.txt", folder / "out"
    path.write_bytes(text)
    config = load_config(
        str(small), [f"data.path={small.parent / 'text'}", f"data.tokenizer={path}", "data.heldout_fraction=0.2"]
    )
    try:
        with bounded():
            prepared = prepare(assemble.corpus(config), str(out), workers=1, progress=False)
            assert len(prepared.vocabulary()) == prepared.vocab_size
    except ValueError as error:
        assert_one_line(error, path, out)
