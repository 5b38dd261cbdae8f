"""Text for the long studies: 292 books of English prose, 86 MB, 20 M word pieces.

git clone https://github.com/mlschmitt/classic-books-markdown
python docs/examples/books.py classic-books-markdown data/books [MEGABYTES]

Books first published from 1500 to 1930, which that collection calls public domain, as files of a paragraph a line, in
the order of the sha256 of their path until there are MEGABYTES (10^6 bytes) of them.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import html
import math
import os
import re
import subprocess
import sys
from typing import Iterator

COMMIT = "944882722e9a96fa6cf2739dc2ea757e101f412f"
BYTES = (25_000, 700_000)  # of a book's file
LAST_YEAR = 1930  # of first publication: in the public domain of the US by its age
COPIES = {  # are in another book of the collection
    "James Joyce/The Dead.md",
    "F. Scott Fitzgerald/The Curious Case of Benjamin Button.md",
    "M.R. James/Count Magnus.md",
}

YOUNG_TRANSLATIONS = (  # old books whose English is, or may be, of a translator with rights of his own
    "Franz Kafka/",
    "Herman Hesse/",
    "E.T.A. Hoffmann/",
    "Sören Kierkegaard/",
)


def git(repository: str, *arguments: str) -> bytes:
    """What a git command prints."""
    command = ["git", "-C", repository, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout


def paragraphs(text: str) -> Iterator[str]:
    """The lines of a book in Markdown that are prose, without its marks."""
    for line in text.split("\n"):
        line = html.unescape(line).strip().lstrip("> ")
        if line.startswith("#") or not re.search(r"[A-Za-z0-9]", line):
            continue  # a heading, a rule, a row of asterisks
        line = re.sub(r"\[\^?(\d+|[*†]+|[a-z])\]", "", line)  # the mark of a note
        line = re.sub(r"[_*\\{}|]+", "", line)  # emphasis, escapes
        yield re.sub(r"\s+", " ", line).strip()


def is_prose(lines: list[str]) -> bool:
    """Neither verse nor a play, and English."""
    size = sum(map(len, lines))
    if not size:
        return False
    text = "\n".join(lines)
    words = re.findall(r"[a-z]+", text.lower())
    common = sum(word in {"the", "of", "and", "to", "a", "in"} for word in words) / max(1, len(words))
    long = sum(len(line) for line in lines if len(line) > 80) / size  # verse and plays have short lines
    return long >= 0.8 and common >= 0.12 and sum(ord(c) > 127 for c in text) <= 0.01 * size


def above_zero(text: str) -> float:
    """A number above 0, as argparse reads it."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r}")


def main(repository: str, out: str, megabytes: float) -> None:
    """Write the books of a clone to a new folder."""
    found = []
    for row in git(repository, "ls-tree", "-r", "-z", COMMIT).decode().split("\0")[:-1]:
        about, path = row.split("\t")
        if path.endswith(".md") and "/" in path and path not in COPIES and not path.startswith(YOUNG_TRANSLATIONS):
            found.append((hashlib.sha256(path.encode()).hexdigest(), path, about.split()[2]))
    os.makedirs(out, exist_ok=True)
    if os.listdir(out):
        sys.exit(f"{out}: expected a new folder, found one with files")
    fit = total = taken = all_bytes = 0
    for _, path, blob in sorted(found):
        try:
            raw = git(repository, "cat-file", "blob", blob)
        except subprocess.CalledProcessError:
            continue  # files above 4 MiB, which a snapshot may lack, are too long in any case
        text = raw.decode("utf-8")
        year = re.search(r"^## Year: *(\d{4})\s*$", text, re.M)
        if not BYTES[0] <= len(raw) <= BYTES[1] or not year or int(year[1]) > LAST_YEAR:
            continue
        lines = [line for line in paragraphs(text) if line]
        if not is_prose(lines):
            continue
        body = ("\n\n".join(lines) + "\n").encode()
        fit, all_bytes = fit + 1, all_bytes + len(body)
        if total + len(body) > megabytes * 1e6:
            continue
        name = re.sub(r"[^A-Za-z0-9]+", "_", path[:-3]).strip("_") + ".txt"
        with open(os.path.join(out, name), "xb") as file:
            file.write(body)
        taken, total = taken + 1, total + len(body)
    print(f"{fit} books of prose fit, {all_bytes / 1e6:.1f} MB; taken: {taken}, {total / 1e6:.1f} MB, in {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("repository", help="a clone of classic-books-markdown")
    parser.add_argument("out", help="a new folder")
    parser.add_argument("megabytes", nargs="?", type=above_zero, default=86.0, help="of text, at most (default: 86)")
    options = parser.parse_args()
    try:
        main(options.repository, options.out, options.megabytes)
    except subprocess.CalledProcessError:
        sys.exit(f"{options.repository}: expected a clone with commit {COMMIT}, found none")
    except OSError as error:
        sys.exit(str(error))
