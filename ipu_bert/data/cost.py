"""What it took to prepare a text: recorded beside the token files once, told by every run that uses them."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields

from ipu_bert import sealed_json
from ipu_bert.data.errors import DataError
from ipu_bert.json_file import is_amount, is_count, read_object
from sparse_ops import files

COST = "cost.json"


@dataclass(frozen=True)
class Cost:
    """How long it took and how large it was.

    By the clock [s]: reading (with decompressing, cleaning, cutting into documents), vocabulary, tokenizing (sentences,
    pieces and ids, by so many workers), writing. Of that, by all processors together [s]: sentences, pieces. A process
    that went on where another was killed counts its own part only, and says that it continued. text_bytes: the
    documents in UTF-8. token_bytes: all prepared files.
    """

    reading: float
    vocabulary: float
    tokenizing: float
    writing: float
    workers: int
    sentences: float
    pieces: float
    continued: bool
    text_bytes: int
    token_bytes: int

    @property
    def seconds(self) -> float:
        """All of it by the clock."""
        return self.reading + self.vocabulary + self.tokenizing + self.writing

    def summary(self) -> str:
        """One line."""
        part = " by the process that finished it" if self.continued else ""
        return (
            f"prepared in {self.seconds:.1f} s{part}: reading {self.reading:.1f} s, "
            f"vocabulary {self.vocabulary:.1f} s, "
            f"tokenizing {self.tokenizing:.1f} s with {self.workers} process{'es' * (self.workers > 1)} "
            f"(processor time: sentences {self.sentences:.1f} s, pieces {self.pieces:.1f} s), "
            f"writing {self.writing:.1f} s; "
            f"{self.text_bytes / 1e6:.2f} MB of text, {self.token_bytes / 1e6:.2f} MB of token files"
        )


def write_cost(folder: str, cost: Cost) -> None:
    """Beside the token files in `folder`; with a checksum of its own, for it is never twice the same."""
    files.write(os.path.join(folder, COST), sealed_json.sealed(asdict(cost)))


def read_cost(folder: str) -> Cost | None:
    """As it was recorded; None where it was not. Raises DataError for a file that write_cost did not write."""
    path = os.path.join(folder, COST)
    try:
        found = read_object(path)
        whole = sealed_json.is_whole(path, found)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as the cost of preparing: {error}; it may be deleted") from error
    if not whole:
        raise DataError(f"{path}: its checksum is not that of what was recorded; it may be deleted")
    found.pop(sealed_json.KEY, None)
    expected = {field.name: field.type for field in fields(Cost)}
    if found.keys() != expected.keys() or not all(_is(found[name], kind) for name, kind in expected.items()):
        raise DataError(f"{path}: expected {', '.join(expected)}, none below 0, found {found!r:.80}; it may be deleted")
    return Cost(**found)


def _is(value: object, kind: object) -> bool:
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "int":
        return is_count(value)
    return is_amount(value)
