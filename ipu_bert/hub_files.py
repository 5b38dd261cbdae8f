"""A file of a model: in a folder, or by the model's name on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def find_file(where: str, name: str, **hub: Any) -> Path | None:
    """The path of a file of a folder, or of a model of the hub, whose files are kept in the hub's own cache.

    hub: further arguments of `hf_hub_download`, as revision.

    None where the model has no such file. Raises ValueError, one line, where there is no such folder and no such model.
    """
    folder = Path(where)
    if folder.exists():
        return folder / name if (folder / name).is_file() else None
    if not _NAME.fullmatch(where):
        raise ValueError(f"expected a folder, or a name on the hub as USER/MODEL, found no folder {where!r}")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(where, name, **hub))
    except Exception as error:  # the hub's client, and what it asks with, raise many kinds
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        problem = " ".join(str(error).split())[:200]
        raise ValueError(f"expected a folder, or a name on the hub, found neither for {where!r}: {problem}") from error


def is_hub_name(where: str) -> bool:
    """Whether what was given to `find_file` is a name on the hub; a path may look alike, but is not in the hub's cache.

    Asks nobody: a name is not known as one where its files have gone from this machine.
    """
    if Path(where).exists() or not _NAME.fullmatch(where):
        return False
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(where, "config.json"), str)
    except HFValidationError:
        return False
