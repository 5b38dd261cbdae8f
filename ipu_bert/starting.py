"""Where a run's weights start: those of the model that `model.init` names, a BERT of others or a run."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ipu_bert import assemble
from ipu_bert.config import Config
from ipu_bert.config.written import shortened
from ipu_bert.data.errors import DataError
from ipu_bert.data.local_files import find_files
from ipu_bert.data.token_files import TokenFiles
from ipu_bert.data.tokenizer import Normalization, given_tokenizer, vocabulary_of
from ipu_bert.hub.source import read_bert
from ipu_bert.hub.start import Taken, Weights, take_weights
from ipu_bert.hub.weights import own_weights
from ipu_bert.run_place import check_room
from ipu_bert.trained import is_run, load_model


@dataclass(frozen=True)
class Start:
    """state: of the whole model. said: a line for each thing to know about it."""

    state: dict[str, Tensor]
    said: tuple[str, ...]


def check_place(config: Config) -> None:
    """ValueError where a new run cannot begin in its folder, or needs what lies in it and would be moved aside."""
    check_room(Path(config.run.dir))
    where, folder = Path(config.model.init), config.run.dir
    if config.model.init and where.exists() and _within(where, folder):
        raise ValueError(
            f"model.init: expected a model outside of run.dir {folder}, whose earlier run a new one moves "
            f"aside, found {where}; name a new folder with run.dir=FOLDER"
        )
    if _within(Path(config.data.dir), folder):
        raise ValueError(
            f"data.dir: expected a folder outside of run.dir {folder}, which a new run has to itself, found "
            f"{config.data.dir}; name another one with data.dir=FOLDER"
        )
    text = _text_within(config)
    if text:
        raise ValueError(
            f"data.path: expected text outside of run.dir {folder}, whose earlier run a new one moves aside, found "
            f"{shortened(text)}; name a new folder with run.dir=FOLDER"
        )


def _text_within(config: Config) -> str:
    """The first file of the text that is in the run's folder, however `data.path` names it; empty: none is."""
    if config.data.source != "files" or not Path(config.run.dir).exists():
        return ""
    wanted, inside = assemble.corpus(config), os.path.join(os.path.realpath(config.run.dir), "")
    with contextlib.suppress(DataError):  # told where the text is read
        found = find_files(wanted.paths, wanted.column, wanted.encoding).paths
        return next((path for path in found if os.path.realpath(path).startswith(inside)), "")
    return ""


def _within(where: Path, folder: str) -> bool:
    return Path(folder).resolve() in (where.resolve(), *where.resolve().parents)


def start(config: Config, files: TokenFiles) -> Start:
    """The model of this config with the weights, and where they fit the patterns, of `model.init`.

    Raises ValueError, one line, where that cannot be read, is no such BERT, or, for a run, knows other words.
    """
    where = config.model.init
    try:
        source, left = _of_run(where, files) if is_run(where) else read_bert(where)
        model = assemble.make_model(config, files.vocab_size)
        taken = take_weights(model, source, config.sparsity.init_pattern, config.run.seed)
    except ValueError as error:
        raise ValueError(f"model.init {where}: {error}") from None
    said = (f"started from {where}{_in_words(taken, config)}", *_left(left), *_other_words(config, files))
    return Start(model.state_dict(), said)


def _of_run(where: str, files: TokenFiles) -> tuple[Weights, list[str]]:
    trained = load_model(Path(where))
    if trained.text.vocabulary() != files.vocabulary():
        raise ValueError(
            f"expected text in the words that it was trained with, found other ones in {files.directory}: leave "
            "data.tokenizer out, or name its tokenizer.json"
        )
    return own_weights(trained.model), []


def _in_words(taken: Taken, config: Config) -> str:
    text = f"; start anew: {', '.join(taken.anew)}" if taken.anew else ""
    if taken.cut:
        text += f"; {taken.cut} rows of its word embedding stand for no id and are left out"
    if taken.kept is not None:
        kind = "largest" if config.sparsity.init_pattern == "magnitude" else "random"
        text += f"; {kind} blocks hold {100 * taken.kept:.1f} % of the L1 mass of the weights that are sparse now"
    return text


def _left(names: list[str]) -> list[str]:
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return [f"left out of it, since no model here has them: {shown}"] if names else []


def _other_words(config: Config, files: TokenFiles) -> list[str]:
    """A line where the user's tokenizer has other words for the ids than the one beside the model's weights.

    A run's is the same: `_of_run`.
    """
    where, mine = config.model.init, config.data.tokenizer
    if is_run(where) or where in (mine, str(Path(mine).parent)):
        return []
    try:
        own = vocabulary_of(given_tokenizer(where, Normalization(None, None, None)))
    except DataError:  # it has none
        return []
    other = sum(one != word for one, word in zip(own, files.vocabulary()))
    if not other:
        return []
    return [f"{other:,} ids stand for other words in {mine} than in {where}, whose weights they begin with"]
