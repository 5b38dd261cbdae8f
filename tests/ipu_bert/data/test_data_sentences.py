"""Sentence boundaries, by hand."""

from __future__ import annotations

import pytest

from ipu_bert.data.sentences import MAX_WORDS, split_sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Mr. Smith met Dr. Jones. They spoke.", ["Mr. Smith met Dr. Jones.", "They spoke."]),
        ("The U.S. Congress met. It rose.", ["The U.S. Congress met.", "It rose."]),
        ("He left the U.S. The ship sank.", ["He left the U.S.", "The ship sank."]),
        ("J. Q. Adams spoke. So did I. We left.", ["J. Q. Adams spoke.", "So did I.", "We left."]),
        ('He said, "Go." She went.', ['He said, "Go."', "She went."]),
        ('"Go!" she said. (He went.) Gone.', ['"Go!" she said.', "(He went.)", "Gone."]),
        ("It cost $3.50 in No. 7. No. That is false.", ["It cost $3.50 in No. 7.", "No.", "That is false."]),
        (
            "On Jan. 5 it rose 1.5 percent. 1790 was cold.",
            ["On Jan. 5 it rose 1.5 percent.", "1790 was cold."],
        ),
        ("Wait ... what? yes. Done.", ["Wait ... what? yes.", "Done."]),
        ("1. First point. 2. Second point.", ["1. First point.", "2. Second point."]),
        ("HEADING\n\nA wrapped\nline. End.", ["HEADING", "A wrapped line.", "End."]),
        ("first row\nsecond row. Third", ["first row", "second row.", "Third"]),
        (" \n\n \t ", []),
        ("", []),
    ],
)
def test_boundaries(text: str, expected: list) -> None:
    assert split_sentences(text) == expected


def test_a_long_run_of_words_is_cut_into_even_pieces() -> None:
    words = [f"w{i}" for i in range(2 * MAX_WORDS + 1)]
    pieces = split_sentences(" ".join(words))
    assert [len(piece.split()) for piece in pieces] == [67, 67, 67]
    assert " ".join(pieces).split() == words
