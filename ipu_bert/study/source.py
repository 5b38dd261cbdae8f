"""Whether the files that a finished run has read still hold what they held then."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Mapping

from ipu_bert import assemble
from ipu_bert.config import Config
from ipu_bert.data.corpus import Corpus
from ipu_bert.data.errors import DataError
from ipu_bert.data.local_files import find_files
from ipu_bert.data.source import make_source

FILES = "files"  # the source whose text the settings do not tell


def source_of_run(config: Config, text: str | None) -> str | None:
    """SHA-256 of what the files of a run's text held when it was prepared; None for other sources.

    text: the checksum of what the run has read. None, too, where what is prepared here by now is another text.
    """
    if config.data.source != FILES:
        return None
    try:
        prepared = assemble.find_data(config)[1]
    except (OSError, ValueError):
        return None
    if prepared is None or prepared.identity["text"] != text:
        return None
    return _sha256(prepared.manifest["request"]["source"])


class Sources:
    """What files hold now, each text looked at once."""

    def __init__(self) -> None:
        self._now: dict[Corpus, str | None] = {}

    def changed(self, config: Config, kept: str | None) -> str:
        """What is wrong, in words, where the files of a run's text are here and hold another one than when it was read.

        kept: what `source_of_run` said then; an older version said nothing, and then nothing is asked.
        """
        if kept is None or config.data.source != FILES:
            return ""
        corpus = assemble.corpus(config)
        try:
            if corpus not in self._now:
                self._now[corpus] = _source_now(corpus)
        except DataError as error:
            return str(error)
        if self._now[corpus] in (None, kept):
            return ""
        return f"expected the files of data.path={config.data.path} as its run has read them, found them changed since"


def _source_now(corpus: Corpus) -> str | None:
    """None where the files are gone. Raises DataError for those that are here and cannot be read."""
    try:
        find_files(corpus.paths, corpus.column, corpus.encoding)
    except DataError:
        return None
    source = make_source(corpus, workers=1)
    return _sha256({"name": source.name, **source.identity})


def _sha256(source: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()
