"""The model that a run has trained so far, and what the run keeps of its text."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Iterator

from ipu_bert import assemble, checkpoint
from ipu_bert.config import Config, from_dict
from ipu_bert.data.errors import DataError
from ipu_bert.data.kept_text import KeptText
from ipu_bert.data.token_files import TOKENIZER, TokenFiles
from ipu_bert.data.tokenizer import why_not_taken
from ipu_bert.engines.checked_state import check_model
from ipu_bert.model import BertForPreTraining
from ipu_bert.sizes.footprint import parameter_counts
from ipu_bert.sizes.shape import bert_shape


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint's model. config: what it was trained with. info: what its state.json says."""

    model: BertForPreTraining
    config: Config
    checkpoint: Path
    step: int
    text: KeptText
    info: dict[str, Any]


def is_run(where: str) -> bool:
    """Whether `load_model` finds a checkpoint there, of a run's folder or itself one."""
    try:
        checkpoint.find(Path(where))
    except checkpoint.CheckpointError:
        return False
    return True


def load_model(path: Path) -> TrainedModel:
    """The model of a checkpoint, or of the newest one of a run's folder.

    Raises CheckpointError when there is none or it is damaged.
    """
    found, groups, info = checkpoint.load_newest(path)
    try:
        config = from_dict(info["config"])
        _check_size(config, groups)
        model = assemble.make_model(config, _vocab_size(groups))
        check_model(model, groups)
        model.load_state_dict(groups["model"])
        return TrainedModel(model, config, found, info["step"], _kept_text(found, config, groups, info), info)
    except KeyError as error:
        raise checkpoint.CheckpointError(f"checkpoint {found}: expected {error} in it, found none") from None
    except checkpoint.CheckpointError:
        raise
    except ValueError as error:
        problem = "; ".join(str(error).splitlines())  # a config's errors have a line each
        raise checkpoint.CheckpointError(f"checkpoint {found}: {problem}") from None


def _check_size(config: Config, groups: checkpoint.Groups) -> None:
    """ValueError where the file cannot hold the model that its own config describes, which is not built then."""
    shape = bert_shape(config.model, _vocab_size(groups))
    expected = parameter_counts(shape, assemble.weights(config)).total
    found = sum(tensor.numel() for tensor in groups["model"].values() if tensor.is_floating_point())
    if found != expected:
        raise ValueError(f"model.safetensors: expected the {expected:,} weights of its config, found {found:,}")


def _vocab_size(groups: checkpoint.Groups) -> int:
    """Rows of the decoder's bias; 1 where there is none, with which the check of the model fails."""
    bias = groups.get("model", {}).get("cls.predictions.bias")
    return max(1, bias.numel()) if bias is not None else 1


def _kept_text(found: Path, config: Config, groups: checkpoint.Groups, info: dict[str, Any]) -> KeptText:
    """From the checkpoint; an older one did not keep it: from the prepared text, while that is there."""
    sha256 = info["identity"]["tokenizer"]
    if "text" in groups:
        return KeptText.from_tensors(groups["text"], _vocab_size(groups), sha256)
    try:
        prepared = assemble.find_data(config)[1]
    except DataError as error:
        problem = str(error)
    else:
        if prepared is not None and prepared.manifest["tokenizer_sha256"] == sha256:
            prepared.verify()
            return KeptText.of(prepared, assemble.make_stream(config, prepared, "train").pairs)
        problem = f"{config.data.dir} does not have it" if prepared is None else f"{prepared.directory} has another"
    raise checkpoint.CheckpointError(
        f"checkpoint {found}: expected its tokenizer in it, found none, as in those of older versions; the prepared "
        f"text cannot stand in: {problem}"
    )


def open_text(trained: TrainedModel) -> TokenFiles:
    """The prepared text of the model's run; prepared again where it is gone.

    Raises ValueError where the text cannot be read, or is another one now, or has another vocabulary: what is held out
    of another text may be what the model was trained on.
    """
    with _with_words(trained) as config:
        prepared = assemble.open_data(config, progress=True)
    trained_on = trained.info["identity"]  # older ones know their tokenizer alone
    for what, of in (("tokenizer", "vocabulary"), ("text", "text")):
        if trained_on.get(what, prepared.identity[what]) != prepared.identity[what]:
            raise checkpoint.CheckpointError(
                f"checkpoint {trained.checkpoint}: expected the {of} that it was trained with, found another one in "
                f"{prepared.directory}: the text or data.tokenizer has changed since, or is sought from another folder"
            )
    return prepared


@contextmanager
def _with_words(trained: TrainedModel) -> Iterator[Config]:
    """The model's config, with the tokenizer that its checkpoint keeps where the one that was given is gone."""
    config = trained.config
    if not config.data.tokenizer or not why_not_taken(config.data.tokenizer):
        yield config
        return
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / TOKENIZER
        kept.write_bytes(trained.text.tokenizer_json)
        yield replace(config, data=replace(config.data, tokenizer=str(kept)))
