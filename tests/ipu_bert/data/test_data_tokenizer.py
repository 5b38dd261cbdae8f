"""Tokenizers: what is text and what is not, and case, accents and Chinese characters as transformers has them."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
from data_corpora import AS_FOUND, corpus, prepared, random_documents
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertTokenizerFast

from ipu_bert import sealed_json
from ipu_bert.data.encoding import encode_documents, split_documents
from ipu_bert.data.errors import DataError
from ipu_bert.data.kept_text import KeptText
from ipu_bert.data.other_text import TextFiles
from ipu_bert.data.quality import text_quality
from ipu_bert.data.tokenizer import SPECIAL_TOKENS, Normalization, given_tokenizer, long_words, train_tokenizer

TEXT = "The CATS sat on-the mát, 中文 a हिन्दी."


def vocabulary(folder: Path, *pieces: str) -> Path:
    path = folder / "vocab.txt"
    path.write_text("\n".join([*SPECIAL_TOKENS, *pieces]) + "\n", encoding="utf-8")
    return path


def pieces(tokenizer: Tokenizer, text: str = TEXT) -> list[str]:
    return tokenizer.encode(text, add_special_tokens=False).tokens


def test_special_tokens_in_a_text_are_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    documents = [f"BERT sees [MASK] and [SEP] here {i}. Then [CLS] again {i}." for i in range(20)]
    files = prepared(monkeypatch, tmp_path, documents)
    special = files.special_ids()
    for split in ("train", "heldout"):
        found = set(files.split(split).tokens.tolist())
        assert not found & {special[name] for name in ("[PAD]", "[CLS]", "[SEP]", "[MASK]")}
    names = [files.vocabulary()[i] for i in files.split("train").tokens]
    assert names.count("[") == names.count("]") == 3 * files.manifest["splits"]["train"]["documents"]


@pytest.mark.parametrize("kind", ["special", "added", "words", "between spaces"])
def test_names_of_special_tokens_are_text_by_any_tokenizer(kind: str, tmp_path: Path) -> None:
    """Ids of [PAD], [CLS], [SEP] and [MASK] stood in token files, and [PAD] was a label: as added tokens that are not
    special, and as words of a tokenizer that keeps what stands between spaces.
    """
    words = [*SPECIAL_TOKENS, "the", "war", "[", "]", "mask"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=kind == "special")
    spaces = kind in ("words", "between spaces")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit() if spaces else pre_tokenizers.BertPreTokenizer()
    if kind == "added":
        tokenizer.add_tokens(list(SPECIAL_TOKENS))
    elif kind != "words":
        tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    given = given_tokenizer(str(tmp_path / "tokenizer.json"), AS_FOUND)
    documents = split_documents(["\u200b\nthe [MASK] war [PAD] [CLS] [SEP] [UNK]"], "en", line_is_sentence=True)
    (document,) = encode_documents(given, documents)
    found = [words[i] for i in document.ids[0]]
    bracketed = ["[", "mask", "]", "war", *["[", "[UNK]", "]"] * 4]
    assert found == ["the", *(bracketed if kind == "special" else ["[UNK]", "war", *["[UNK]"] * 4])]
    assert document.ids[0].dtype == np.uint16


@pytest.mark.parametrize("cased", [False, True])
@pytest.mark.parametrize("accents", [False, True])
def test_a_vocabulary_says_how_it_was_made(tmp_path: Path, cased: bool, accents: bool) -> None:
    """As transformers' tokenizer does with the settings that made it."""
    words = ["the", "cats", "sat", "on", "-", ",", ".", "mat", "a", "中", "文", "中文"]
    words += ["The", "CATS"] if cased else []
    words += ["mát", "हिन्दी"] if accents else []
    path = vocabulary(tmp_path, *words)
    theirs = BertTokenizerFast(str(path), do_lower_case=not cased, strip_accents=False if accents else None)
    assert pieces(given_tokenizer(str(path), AS_FOUND)) == pieces(theirs.backend_tokenizer)


@pytest.mark.parametrize(
    "asked", [{"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}, {}]
)
@pytest.mark.parametrize("kind", ["vocab.txt", "tokenizer.json", "folder", "beside"])
def test_settings_mean_what_they_mean_in_transformers(tmp_path: Path, kind: str, asked: dict) -> None:
    path = vocabulary(tmp_path, "the", "The", "cats", "CATS", "sat", "mat", "mát", "a", "中", "文", "中文")
    own = {"do_lower_case": True, "strip_accents": True, "tokenize_chinese_chars": True}
    theirs = BertTokenizerFast(str(path), **{**own, **asked})
    given = path
    if kind == "beside":
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(own))
    elif kind == "vocab.txt":
        asked = {**own, **asked}
    else:
        given = tmp_path / "saved"
        BertTokenizerFast(str(path), **own).save_pretrained(given)
        given = given / "tokenizer.json" if kind == "tokenizer.json" else given
    wanted = Normalization(*({**vars(AS_FOUND), **asked}.values()))
    assert pieces(given_tokenizer(str(given), wanted)) == pieces(theirs.backend_tokenizer)


def test_a_byte_order_mark_is_no_piece(tmp_path: Path) -> None:
    """As in text; it was a part of [PAD], which was missing then."""
    path = vocabulary(tmp_path, "cats", "sat")
    plain = given_tokenizer(str(path), AS_FOUND).to_str()
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert given_tokenizer(str(path), AS_FOUND).to_str() == plain
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match="expected no byte order mark, found one"):
        given_tokenizer(str(tmp_path), AS_FOUND)  # as transformers reads it, with a second [PAD] at the end


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "tokenizer_config.json"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    """Nobody may ever write into it."""
    path = vocabulary(tmp_path, "cats", "sat")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="expected a file, found a folder, a pipe or a device"):
        given_tokenizer(str(path if name == "tokenizer_config.json" else tmp_path / name), AS_FOUND)


def test_truncation_and_padding_of_a_given_tokenizer_are_not_kept(tmp_path: Path) -> None:
    saved = BertTokenizerFast(str(vocabulary(tmp_path, "a"))).backend_tokenizer
    saved.enable_truncation(3)
    saved.enable_padding(length=9)
    saved.save(str(tmp_path / "tokenizer.json"))
    assert pieces(given_tokenizer(str(tmp_path / "tokenizer.json"), AS_FOUND), "a a a a a") == 5 * ["a"]


def test_what_is_no_wordpiece_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bpe.json"
    Tokenizer(models.BPE()).save(str(path))
    with pytest.raises(DataError, match=r"bpe\.json: expected a WordPiece tokenizer with ##, found BPE"):
        given_tokenizer(str(path), AS_FOUND)
    Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")).save(str(path))
    with pytest.raises(DataError, match=r"missing \[PAD\] \[CLS\]"):
        given_tokenizer(str(path), AS_FOUND)
    for name in (str(tmp_path / "none.json"), str(tmp_path / "none.txt"), str(tmp_path)):
        with pytest.raises(DataError) as caught:
            given_tokenizer(name, AS_FOUND)
        assert str(caught.value).startswith(name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda vocab: vocab.update(b=vocab["a"]), r"expected ids 0 to \d+, found \d+ twice"),
        (lambda vocab: vocab.update(b=10**7), r"expected ids 0 to \d+, found 10000000"),
        (lambda vocab: vocab.pop("[MASK]"), r"expected ids 0 to \d+, found \d+ twice"),
        (lambda vocab: vocab.update({"b": vocab.pop("[UNK]")}), r"expected (ids 0 to \d+|\[UNK\] among)"),
    ],
)
def test_a_tokenizer_json_with_wrong_ids_is_refused_before_text_is_read(tmp_path: Path, change, message: str) -> None:
    """Two words of one id were counted as one, and without [UNK] the first strange word ended in a traceback."""
    path = tmp_path / "tokenizer.json"
    BertTokenizerFast(str(vocabulary(tmp_path, "a", "b"))).backend_tokenizer.save(str(path))
    saved = json.loads(path.read_text())
    change(saved["model"]["vocab"])
    path.write_text(json.dumps(saved))
    with pytest.raises(DataError, match=rf"tokenizer\.json: {message}"):
        given_tokenizer(str(path), AS_FOUND)


@pytest.mark.parametrize("unknown", ["<unk>", "[MASK]"])
def test_another_word_for_what_is_unknown_is_refused(tmp_path: Path, unknown: str) -> None:
    """The report said 0 % of such a text are unknown."""
    path = tmp_path / "tokenizer.json"
    BertTokenizerFast(str(vocabulary(tmp_path, "a", "<unk>"))).backend_tokenizer.save(str(path))
    saved = json.loads(path.read_text())
    saved["model"]["unk_token"] = unknown
    path.write_text(json.dumps(saved))
    with pytest.raises(
        DataError, match=rf"tokenizer\.json: expected \[UNK\] for what is unknown, found {re.escape(unknown)}"
    ):
        given_tokenizer(str(path), AS_FOUND)


def test_a_vocabulary_of_special_tokens_alone_is_refused(tmp_path: Path) -> None:
    """No word could take a masked one's place: a traceback after the text was prepared."""
    with pytest.raises(DataError, match=r"vocab\.txt: expected word pieces beside the special tokens, found none"):
        given_tokenizer(str(vocabulary(tmp_path)), AS_FOUND)


def test_a_hub_name_that_cannot_be_opened_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_pretrained(name: str, *, trust_remote_code: bool) -> None:
        assert trust_remote_code is False
        raise OSError(f"We couldn't connect to the hub\nto load {name}.\nCheck your connection.")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", from_pretrained)
    with pytest.raises(DataError) as caught:
        given_tokenizer("somebody/bert", AS_FOUND)
    assert str(caught.value) == (
        "somebody/bert: expected a vocab.txt, a tokenizer.json, or a folder or hub name that AutoTokenizer opens: We "
        "couldn't connect to the hub to load somebody/bert. Check your connection."
    )


def test_a_new_vocabulary_keeps_vowel_signs_and_the_letters_of_the_text() -> None:
    han = "".join(chr(0x4E00 + i) for i in range(3000))
    tokenizer = train_tokenizer(lambda: [han, "हिन्दी में"], 8192, AS_FOUND)
    assert pieces(tokenizer, han) == list(han)
    assert "".join(pieces(tokenizer, "हिन्दी")).replace("##", "") == "हिन्दी"
    assert "[UNK]" not in pieces(train_tokenizer(lambda: ["Ab Äb"], 300, Normalization(False, None, None)), "Äb Ab")


def test_a_very_long_word_costs_no_time() -> None:
    """A word of 800 KB: training on it did not end."""
    word = "acgt" * 200_000
    text = f"some words here {word} and there"
    tokenizer = train_tokenizer(lambda: [text], 300, AS_FOUND)
    assert pieces(tokenizer, text).count("[UNK]") == 1
    assert long_words(tokenizer, text) == 1
    assert not any("acgt" in piece for piece in tokenizer.get_vocab())


def test_words_within_chinese_are_learned_and_are_not_long(seed: int) -> None:
    """Chinese without spaces was taken for one word, and what stands in it was left out of the vocabulary."""
    draw = random.Random(seed)
    han = [chr(0x4E00 + i) for i in range(200)]
    named = ["iphone", "android", "windows"]
    texts = []
    for _ in range(300):
        letters = draw.choices(han, k=120)
        for name in named:
            letters.insert(draw.randrange(len(letters)), name)
        texts.append("".join(letters))
    for wanted in (AS_FOUND, Normalization(None, True, None)):
        tokenizer = train_tokenizer(lambda: texts, 600, wanted)
        assert [pieces(tokenizer, name) for name in named] == [[name] for name in named]
        assert sum(long_words(tokenizer, text) for text in texts) == 0
        assert not any("[UNK]" in pieces(tokenizer, text) for text in texts)
    as_one = train_tokenizer(lambda: texts, 600, Normalization(None, None, False))  # in which each text is a word
    assert not set(named) & set(as_one.get_vocab())
    assert (
        [long_words(as_one, text) for text in texts] == [1] * 300 == [pieces(as_one, t).count("[UNK]") for t in texts]
    )


def test_a_word_is_as_long_as_it_is_once_normalized() -> None:
    """A syllable of Korean is up to three letters once accents are dropped; control characters are none."""
    korean = "\ud55c" * 40  # 120 letters
    joined = "\x1f".join(["a" * 60] * 2)
    for text, strips, long in ((korean, True, 1), (korean, False, 0), (joined, False, 1)):
        tokenizer = train_tokenizer([f"{text} and more"].copy, 300, Normalization(None, strips, None))
        assert long_words(tokenizer, text) == pieces(tokenizer, text).count("[UNK]") == long


@pytest.mark.parametrize("most", [1, 5, 6, 1000])
def test_a_given_tokenizer_says_how_long_a_word_may_be(tmp_path: Path, monkeypatch, most: int) -> None:
    """It was a hundred letters, whatever the tokenizer said."""
    words = ["a", "abcde", "abcdef", "a" * 500]
    vocab = {piece: i for i, piece in enumerate([*SPECIAL_TOKENS, *words])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=most))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    long = sum(len(word) > most for word in words)
    assert long_words(tokenizer, " ".join(words)) == long
    documents = [f"{' '.join(order)} a\na a" for order in itertools.permutations(words)]
    files = prepared(
        monkeypatch, tmp_path, documents, tokenizer=str(tmp_path / "tokenizer.json"), line_is_sentence=True
    )
    found = text_quality(files, 16)
    assert (found.long_words, found.unknown) == (long / 7, long / 7)
    told = [line for line in found.warnings() if "letters" in line]
    assert told == (
        [f"{100 * long / 7:.2g} % of the words have more than {most} letters and become [UNK]"] * (long > 0)
    )
    (tmp_path / "other.txt").write_text("\n\n".join(documents))
    judged = TextFiles(KeptText.of(files, True), [str(tmp_path / "other.txt")], corpus(line_is_sentence=True))
    assert [line for line in judged.notes if "letters" in line] == told


def test_text_whose_long_words_an_earlier_version_left_out_is_told(tmp_path: Path, monkeypatch) -> None:
    """Its vocabulary may lack what stands within Chinese; text without long words is the same as ever."""
    for name, word, told in (("long", "a" * 101, 1), ("short", "a" * 100, 0)):
        documents = [f"{word} and {number}. More." for number in range(8)]
        folder = prepared(monkeypatch, tmp_path / name, documents).directory
        manifest = json.loads(Path(folder, "manifest.json").read_text())
        for earlier in (False, True):
            if earlier:
                del manifest["most_letters"], manifest[sealed_json.KEY]
                Path(folder, "manifest.json").write_text(json.dumps(manifest))
            quality = text_quality(prepared(monkeypatch, tmp_path / name, documents), 16)
            assert sum(f"delete {folder} to prepare it anew" in line for line in quality.warnings()) == told * earlier
            assert sum("have more than 100 letters" in line for line in quality.warnings()) == told * (not earlier)


def test_what_an_earlier_version_left_half_prepared_is_not_gone_on_with(tmp_path: Path, monkeypatch) -> None:
    documents = random_documents(5, 12)
    right = Path(prepared(monkeypatch, tmp_path / "right", documents).directory)
    left = tmp_path / "out" / f"{right.name}.partial"
    left.mkdir(parents=True)
    train_tokenizer(lambda: ["other words"], 300, AS_FOUND).save(str(left / "tokenizer.json"))
    found = Path(prepared(monkeypatch, tmp_path / "out", documents).directory)
    assert (found / "tokenizer.json").read_bytes() == (right / "tokenizer.json").read_bytes()
