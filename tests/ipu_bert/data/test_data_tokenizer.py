"""Tokenizers: what is text and what is not, and case, accents and Chinese characters as transformers has them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from data_corpora import AS_FOUND, prepared
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertTokenizerFast

from ipu_bert.data.encoding import encode_documents, split_documents
from ipu_bert.data.errors import DataError
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
    assert long_words(text) == 1
    assert not any("acgt" in piece for piece in tokenizer.get_vocab())
