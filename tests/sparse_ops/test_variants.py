"""The ways of a product: all give the same bits, a choice among them is kept whole, and timings choose."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import pytest
import torch
from compiler import LEVELS, needs_kernels
from native_cases import DTYPES, check_variants

from sparse_ops import native, tune
from sparse_ops.pattern import BLOCK_SIZES
from sparse_ops.variants import DEFAULT, PRODUCTS, Choice, Choices, Work

pytestmark = needs_kernels

WORK = Work("forward", out=96, inp=64, block=16, blocks=12, tokens=100, half=False, threads=1, level=0)


@pytest.fixture
def choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Choices:
    """Those of a machine on which nothing has been chosen."""
    made = Choices(tmp_path, native._library(), "a processor")
    monkeypatch.setattr(native, "choices", lambda: made)
    return made


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("b", BLOCK_SIZES)
def test_all_ways_give_the_same_bits(
    b: int, dtype: torch.dtype, level: str, seed: int, choices: Choices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSE_OPS_LEVEL", level)
    check_variants(b, dtype, seed)


def test_there_are_several_ways(choices: Choices) -> None:
    """Else the test above compares nothing."""
    for level in range(len(LEVELS)):
        assert len(choices.names(dataclasses.replace(WORK, level=level))) >= 2
        gradient = dataclasses.replace(WORK, level=level, product="grad_values")
        assert choices.names(gradient) == ("one panel", "two panels")


def test_the_default_follows_the_length_of_rows(choices: Choices) -> None:
    """As before there were choices: outputs as lanes up to 2048 inputs, of dX up to 2048 outputs of the weight."""
    long = dataclasses.replace(WORK, inp=2064)
    names = choices.names(WORK)
    assert names[choices.default(WORK)] == "outputs"
    assert names[choices.default(long)] == "tokens"
    assert names[choices.default(dataclasses.replace(long, product="grad_input"))] == "outputs"
    assert names[choices.default(dataclasses.replace(WORK, out=2064, product="grad_input"))] == "tokens"
    assert choices.default(dataclasses.replace(long, product="grad_values")) == 0


def test_a_choice_holds_for_about_as_many_tokens_and_blocks_and_nothing_else(choices: Choices) -> None:
    choices.take(Choice(WORK, "tokens", {}))
    number = choices.names(WORK).index("tokens")
    for near in ({"tokens": 120}, {"blocks": 13}):
        assert choices.number(dataclasses.replace(WORK, **near)) == number
    others = {"tokens": 200, "blocks": 24, "out": 112, "inp": 80, "half": True, "threads": 2, "product": "grad_input"}
    for field, value in others.items():
        assert choices.number(dataclasses.replace(WORK, **{field: value})) == DEFAULT, field


def test_choices_are_found_again(choices: Choices, tmp_path: Path) -> None:
    choice = Choice(WORK, "tokens", {"outputs": 2.0, "tokens": 1.0})
    choices.take(choice)
    choices.save()
    again = Choices(tmp_path, native._library(), "a processor")
    assert list(again) == [choice]
    assert again.number(WORK) == choices.number(WORK) != DEFAULT
    assert list(Choices(tmp_path, native._library(), "another processor")) == []


def _edited(edit: Callable[[Any], object]) -> Callable[[str], str]:
    def edited(text: str) -> str:
        content = json.loads(text)
        edit(content)
        return json.dumps(content)

    return edited


DAMAGES: dict[str, Callable[[str], str]] = {
    "cut short": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "no object": lambda text: "[1]",
    "deep": lambda text: "[" * 100_000,
    "another library": _edited(lambda c: c.update(library="kernels-0")),
    "another processor": _edited(lambda c: c.update(processor="B")),
    "no choices": _edited(lambda c: c.pop("choices")),
    "a number for choices": _edited(lambda c: c.update(choices=3)),
    "no such variant": _edited(lambda c: c["choices"][0].update(variant="fastest")),
    "no such field": _edited(lambda c: c["choices"][0]["work"].update(color="red")),
    "a text for a number": _edited(lambda c: c["choices"][0]["work"].update(tokens="many")),
    "a weight of nothing": _edited(lambda c: c["choices"][0]["work"].update(out=0)),
    "no such level": _edited(lambda c: c["choices"][0]["work"].update(level=2**40)),
    "no milliseconds": _edited(lambda c: c["choices"][0].update(milliseconds={"tokens": "few"})),
    "too many milliseconds": _edited(lambda c: c["choices"][0].update(milliseconds={"tokens": 10**400})),
    "no such block": _edited(lambda c: c["choices"][0]["work"].update(block=3)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_said_once_and_measured_anew(
    damage: str, choices: Choices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    choices.take(Choice(WORK, "tokens", {}))
    choices.save()
    choices.path.write_text(DAMAGES[damage](choices.path.read_text()))
    found = Choices(tmp_path, native._library(), "a processor")
    assert list(found) == []
    assert found.number(WORK) == DEFAULT
    monkeypatch.setattr(native, "choices", lambda: found)
    monkeypatch.setattr(tune, "_measure", lambda work, choices, seconds: Choice(work, "outputs", {}))
    tune.tune([WORK], again=False)
    said = capsys.readouterr().err
    assert said.count(str(found.path)) == said.count("\n") == 1
    assert "not as it was written" in said
    assert [c.variant for c in Choices(tmp_path, native._library(), "a processor")] == ["outputs"]


def test_what_is_known_is_not_measured_and_what_has_one_way_neither(
    choices: Choices, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Work] = []
    monkeypatch.setattr(tune, "_measure", lambda work, *_: (measured.append(work), Choice(work, "tokens", {}))[1])
    dots = dataclasses.replace(WORK, product="grad_values", block=1)  # one way
    tune.tune([dataclasses.replace(WORK, tokens=101), WORK, dots], again=False)
    assert measured == [WORK]
    tune.tune([WORK], again=False)
    assert measured == [WORK]
    tune.tune([WORK], again=True)
    assert measured == [WORK] * 2
    other = Choices(choices.path.parent, native._library(), "a processor")
    monkeypatch.setattr(native, "choices", lambda: other)
    tune.tune([WORK], again=False)
    assert measured == [WORK] * 2, "another process finds it"


def test_choices_that_cannot_be_kept_are_used(
    choices: Choices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Root may write anywhere, so a file stands where the folder should be: that stops everyone."""
    monkeypatch.setattr(choices, "path", tmp_path / "file" / "variants.json")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tune, "_measure", lambda work, *_: Choice(work, "tokens", {}))
    tune.tune([WORK], again=False)
    assert choices.number(WORK) != DEFAULT
    assert capsys.readouterr().err.count("choices are for this process only") == 1


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({"outputs": [1.0], "tokens": [0.9]}, "tokens"),
        ({"outputs": [1.0], "tokens": [0.98]}, "outputs"),  # not by the margin
        ({"outputs": [1.0, 2.0], "tokens": [1.5, 0.9]}, "outputs"),  # in every other round only
        ({"outputs": [1.0], "tokens": [0.9, 0.91, 30.0]}, "tokens"),  # disturbed at times
    ],
)
def test_the_fastest_is_chosen_where_it_is_faster_than_the_default(
    seconds: dict[str, list[float]], chosen: str, choices: Choices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that only the variant that runs moves on."""
    names, clock, calls = choices.names(WORK), [0.0], dict.fromkeys(choices.names(WORK), 0)

    def run() -> None:
        name = names[choices.number(WORK)]
        turns = seconds.get(name, [5.0])
        clock[0] += turns[calls[name] % len(turns)]
        calls[name] += 1

    monkeypatch.setattr(tune._Example, "run", lambda self, product: run)
    monkeypatch.setattr(tune, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    made = tune._measure(WORK, choices, 1e9)
    assert made.variant == chosen
    assert set(calls.values()) == {tune.ROUNDS + 1}
    assert made.milliseconds["outputs"] == pytest.approx(1e3 * min(seconds["outputs"]))
    hasty = tune._measure(WORK, choices, 0.0)
    assert set(calls.values()) == {tune.ROUNDS + 1 + tune.LEAST_ROUNDS + 1}
    assert hasty.milliseconds.keys() == set(names)


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_ways_that_are_compared_run(product: str, choices: Choices, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the library is called, and of more tokens than are measured, too; they leave nothing behind."""
    work, ran, call = dataclasses.replace(WORK, product=product, level=native._level_now()), [], native.run
    monkeypatch.setattr(native, "run", lambda function, c: (ran.append((c.variant, c.tokens)), call(function, c)))
    monkeypatch.setattr(tune, "MOST_TOKENS", 64)
    for tokens, measured in ((50, 50), (1000, 64)):
        tune._measure(dataclasses.replace(work, tokens=tokens), choices, 0.0)
        assert set(ran) == {(number, measured) for number in range(len(choices.names(work)))}
        assert choices.number(dataclasses.replace(work, tokens=measured)) == DEFAULT
        ran.clear()


def test_the_command_measures_keeps_and_shows(choices: Choices, capsys: pytest.CaptureFixture[str]) -> None:
    """Of products that take microseconds; which variant it comes to depends on the machine."""
    arguments = ["96x64", "--block", "16", "--sparsity", "0.5", "--tokens", "64", "--threads", "1"]
    assert tune.main(arguments) == 0
    said = capsys.readouterr()
    assert "measured the ways of 3 products" in said.err
    assert [line.split()[:2] for line in said.out.splitlines()[2:]] == [[product, "96x64"] for product in PRODUCTS]
    assert all(line.count("[") == line.count("*") == 1 for line in said.out.splitlines()[2:])
    before = choices.path.read_text()
    assert tune.main([]) == 0
    assert capsys.readouterr() == ("\n".join(said.out.splitlines()) + "\n", "")
    assert choices.path.read_text() == before
    assert tune.main(["--again"]) == 0
    assert "measured the ways of 3 products" in capsys.readouterr().err
    assert "nothing to measure" in tune.told([], 0.0)


def test_milliseconds_stand_beside_the_tokens_that_they_are_of(
    choices: Choices, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of 8192 tokens stood under 131072: 16 times as fast as it is."""
    ran, call = set(), native.run
    monkeypatch.setattr(native, "run", lambda function, c: (ran.add(c.tokens), call(function, c)))
    command = ["32x32", "--sparsity", "0.5", "--threads", "1", "--tokens"]
    assert tune.main([*command, "131072"]) == 0
    assert ran == {8192}
    assert tune.main([*command, "8192"]) == 0
    capsys.readouterr()
    assert tune.main([]) == 0  # as they were kept
    _, head, *lines = capsys.readouterr().out.splitlines()
    end = head.index("tokens") + len("tokens")
    assert {line[:end].split(maxsplit=4)[4] for line in lines} == {"8192", "8192 of 131072"}


def test_the_command_says_where_there_are_fewer_threads(
    choices: Choices, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "threads: expected 2, found 1: OMP_THREAD_LIMIT=1"
    monkeypatch.setattr("sparse_ops.openmp.use_threads", lambda count: told if count == 2 else "")
    for threads, said in (("2", f"--{told}\n"), ("1", "")):
        assert tune.main(["--threads", threads]) == 0
        assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["768"], "expected OUTxIN, as 3072x768, found '768'"),
        (["96x64", "--tokens", "0"], "expected a whole number of at least 1"),
        (["96x64", "--sparsity", "1"], r"expected a number in [0, 1)"),
    ],
)
def test_the_command_refuses_in_one_line(
    arguments: list[str], said: str, choices: Choices, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        tune.main(arguments)
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("100x64", "error: weight [100, 64]: expected rows in a multiple of "),
        ("4000000x4000000", "error: out of memory: "),
    ],
)
def test_a_weight_that_cannot_be_is_one_line(
    size: str, said: str, choices: Choices, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one that does not divide into blocks, and one whose blocks are more than any memory holds."""
    assert tune.main([size, "--sparsity", "0.5"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)
