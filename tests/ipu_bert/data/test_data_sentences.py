"""Sentence boundaries, by hand."""
# ruff: noqa: RUF001 - letters of other scripts are meant

from __future__ import annotations

import time
from importlib.metadata import version

import pytest

from ipu_bert.data.language import AUTO, script_language
from ipu_bert.data.sentences import MAX_UNITS, count_units, split_sentences

# 0.6.1 is the last for Python 3.8: slower, and "J. Q. Adams spoke. So did I. We left." has one boundary there
of_1_0 = pytest.mark.skipif(version("sentencex").startswith("0."), reason="needs sentencex 1.0")


def split(text: str, language: str = AUTO) -> list[str]:
    return split_sentences(text, language, line_is_sentence=False)


@of_1_0
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Mr. Smith met Dr. Jones. They spoke.", ["Mr. Smith met Dr. Jones.", "They spoke."]),
        ("The U.S. Congress met. It rose.", ["The U.S. Congress met.", "It rose."]),
        ("He left the U.S. The ship sank.", ["He left the U.S.", "The ship sank."]),
        ("J. Q. Adams spoke. So did I. We left.", ["J. Q. Adams spoke.", "So did I.", "We left."]),
        ('He said, "Go." She went.', ['He said, "Go."', "She went."]),
        ('"Go!" she said. (He went.) Gone.', ['"Go!" she said.', "(He went.) Gone."]),
        ("It cost $3.50 in No. 7. No. That is false.", ["It cost $3.50 in No. 7.", "No.", "That is false."]),
        (
            "On Jan. 5 it rose 1.5 percent. 1790 was cold.",
            ["On Jan. 5 it rose 1.5 percent.", "1790 was cold."],
        ),
        ("1. First point. 2. Second point.", ["1. First point.", "2. Second point."]),
        ("HEADING\n\nA wrapped\nline. End.", ["HEADING", "A wrapped line.", "End."]),
        ("first row\nsecond row. Third", ["first row", "second row.", "Third"]),
        (" \n\n \t ", []),
        ("", []),
    ],
)
def test_boundaries(text: str, expected: list) -> None:
    assert split(text) == expected


# From the Declaration of Human Rights, article 1, and a little more; the boundaries are those of the printed text.
SCRIPTS = [
    ("ru", "Все люди рождаются свободными.", "Они наделены разумом и т. д. Г. Иванов пришёл."),
    ("zh", "人人生而自由。", "他们赋有理性！", "好吗？"),
    ("ja", "すべての人間は、自由である。", "人間は、理性を授けられている。"),
    ("hi", "सभी मनुष्यों को स्वतन्त्रता है।", "उन्हें बुद्धि है।"),
    ("ar", "يولد جميع الناس أحرارا.", "وقد وهبوا عقلا؟", "نعم."),
    ("am", "የሰው ልጅ ሁሉ ነጻ ነው።", "የተፈጥሮ ማስተዋል አለው።"),
    ("th", "มนุษย์ทั้งหลายเกิดมามีอิสระ", "และเสมอภาคกันในเกียรติศักดิ์", "ต่างมีเหตุผล"),
]


@pytest.mark.parametrize(("language", "first", "rest"), [(row[0], row[1], list(row[2:])) for row in SCRIPTS])
def test_boundaries_in_any_script(language: str, first: str, rest: list) -> None:
    expected = [first, *rest]
    if language == "ru":
        expected = [first, "Они наделены разумом и т. д. Г. Иванов пришёл."]
    text = ("" if language in ("zh", "ja") else " ").join([first, *rest])
    assert script_language(text) == language
    assert split(text) == expected


def test_latin_letters_take_the_rules_of_the_language_that_is_named() -> None:
    text = "Am 3. Oktober kam Dr. Müller z. B. nach Bonn. Er ging."
    assert split(text, "de") == ["Am 3. Oktober kam Dr. Müller z. B. nach Bonn.", "Er ging."]


def test_a_line_is_a_sentence_where_the_text_says_so() -> None:
    text = "One. Two\n\n  three   four \nfive."
    assert split_sentences(text, AUTO, line_is_sentence=True) == ["One. Two", "three four", "five."]


def test_a_long_run_of_words_is_cut_into_even_pieces() -> None:
    words = [f"w{i}" for i in range(2 * MAX_UNITS + 1)]
    pieces = split(" ".join(words))
    assert [len(piece.split()) for piece in pieces] == [67, 67, 67]
    assert " ".join(pieces).split() == words


def test_a_long_run_without_spaces_is_cut_between_letters() -> None:
    """Each piece is a word that a WordPiece of 100 letters at most can hold, and no vowel sign loses its letter."""
    for count in (61, 67, 34):  # 34: 204 letters
        text = "ที่นี้" * count
        pieces = split(text)
        assert "".join(pieces) == text
        assert all(60 <= len(piece) <= MAX_UNITS and piece[0] in "ทน" for piece in pieces)
    assert [count_units("a bc 人生 d"), count_units("人生而自由"), count_units("a b")] == [5, 5, 2]


@of_1_0
@pytest.mark.parametrize(
    "text", ["人人生而自由。" * 30_000, "x" * 800_000, "Dr. " * 100_000, '"(a. ' * 50_000, "." * 300_000]
)
def test_time_does_not_grow_with_the_square(text: str) -> None:
    """A Chinese paragraph of 400,000 letters takes sentencex 1.0.32 54 s at once."""
    started = time.process_time()
    joined = "".join(split(text))
    assert joined.replace(" ", "") == text.replace(" ", "")
    assert time.process_time() - started < 5
