"""Which language's rules a document's sentences are found by, where nobody says: its script's, and in Latin letters its
most frequent words'."""

# ruff: noqa: RUF001 - letters of other languages are meant

from __future__ import annotations

import re
import unicodedata
from collections import Counter

AUTO = "auto"
NAME = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*")  # an ISO 639 code, as sentencex takes it
_SAMPLE = 2000  # letters of a document that tell its script
_MANY_FOREIGN = 0.1  # share of the documents
_RUN = 10_000  # characters from its middle that tell a language in Latin letters
_COMMONLY = 0.1  # share of these words that are among a language's most frequent, at least
_CLEARLY = 1.5  # times as many as are among English's, at least

# Unicode's blocks of 128 characters -> the language whose rules a script gets. Block 97: most of the kana, and no marks
# that Chinese uses, too.
_SCRIPTS = {
    7: "el", 8: "ru", 9: "ru", 10: "hy", 11: "he", 12: "ar", 13: "ar", 14: "ar", 18: "hi", 19: "bn", 20: "pa", 21: "gu",
    22: "or", 23: "ta", 24: "te", 25: "kn", 26: "ml", 27: "si", 28: "th", 29: "lo", 30: "bo", 31: "bo", 32: "my",
    33: "ka", 36: "am", 37: "am", 38: "am", 39: "am", 47: "km", 97: "ja",
    **{block: "en" for block in (*range(5), 60, 61)},
    **{block: "zh" for block in range(104, 320)},
    **{block: "ko" for block in range(344, 432)},
}  # fmt: skip
# What is written most in languages of Latin letters.
_WORDS = {
    "en": "the of and to in is that was for it with as his be",
    "de": "der die und das den von zu mit sich des auf ist im dem nicht ein eine",
    "fr": "de la le et les des en un du une que est pour qui dans par au il",
    "es": "de la que el en y los se del las un por con una su para es al lo",
    "it": "di e il la che in a per un del è non sono della una le si i ogni",
    "pt": "de a o que e do da em um para com não uma os no se na por as ao",
    "nl": "de het een van en in is dat op te zijn voor met niet aan er om ook",
    "da": "og i at det er en til af den på for ikke der med som har de et",
    "sv": "och i att det som en på är av för den till med inte om ett har de",
    "fi": "ja on ei se että hän oli ovat mutta kuin myös sen joka ole tai jokaisella",
    "pl": "w i na z się do nie że jest to o jak od po przez za ma każdy",
    "cs": "a se v na je že s z do o k i ve pro by jsou za jako má každý",
    "sk": "a sa v na je že s z do o k aj vo pre by sú za ako má každý",
    "hu": "a az és hogy nem is egy ez van minden meg csak de ha vagy mint",
    "ro": "și de în a la cu pe nu din este să ce se un o care pentru are",
    "tr": "ve bir bu için de da ile olarak her veya çok olan gibi daha ne hakkı",
    "id": "yang dan di untuk dengan dari dalam tidak itu ini pada atau setiap orang",
    "vi": "và của là có không được các cho một người trong với những để mọi quyền",
}
_COMMON = {language: frozenset(words.split()) for language, words in _WORDS.items()}
_SCRIPT_OF = {**{code: code for code in _SCRIPTS.values()}, **dict.fromkeys(_WORDS, "en"), "uk": "ru", "bg": "ru"}


def language_of(text: str) -> str:
    """ISO 639 code; "en" where a document in Latin letters is not clearly of another language that is known here."""
    script = script_language(text)
    if script != "en":
        return script
    begin = max(0, (len(text) - _RUN) // 2)
    words = Counter(re.findall(r"[^\W\d_]+", unicodedata.normalize("NFC", text[begin : begin + _RUN]).lower()))
    found = {code: sum(words[word] for word in common) for code, common in _COMMON.items()}
    best = max(found, key=lambda code: found[code])
    clear = found[best] > max(_CLEARLY * found["en"], _COMMONLY * sum(words.values()))
    return best if clear else "en"


def script_language(text: str) -> str:
    """The language whose rules the text's script gets; "en" for one that is not known. Looks at a sample of letters."""
    sample = text[:: max(1, len(text) // _SAMPLE)]
    counts = Counter(_SCRIPTS.get(ord(letter) >> 7, "") for letter in sample if letter.isalpha())
    counts.pop("", None)
    if counts["ja"]:  # Japanese has more Han than kana at times
        counts["ja"] += counts.pop("zh", 0)
    return max(counts, key=lambda code: (counts[code], code)) if any(counts.values()) else "en"


def fits(language: str, text: str) -> bool:
    """Whether a text is in the script of a language, as far as that is known here."""
    script = script_language(text)
    return _SCRIPT_OF.get(language, script) == script


def language_notes(language: str, foreign: int, documents: int) -> list[str]:
    """Lines about a language that was named and may be none, or not the text's.

    foreign: documents in another script. documents: those whose sentences rules have found, 0 where lines are
    sentences.
    """
    notes = []
    if documents and language != AUTO and language not in _SCRIPT_OF:  # sentencex does not say what it knows
        notes.append(
            f"data.language {language} is none of those that are told apart here: it is obeyed as written, and "
            f"sentencex has the rules of English for what it does not know, as de-AT for de; {AUTO} goes by the text"
        )
    if foreign > _MANY_FOREIGN * documents:
        notes.append(
            f"{foreign:,} of {documents:,} documents are in another script than {language} is written in, and "
            f"have other sentences by their own rules: is data.language right? {AUTO} goes by the text"
        )
    return notes
