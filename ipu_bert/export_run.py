"""A finished or running run's model for others to load: python -m ipu_bert.export_run RUN FOLDER

RUN is a run's folder or one checkpoint of it. FOLDER, which appears whole or not at all, gets what transformers'
AutoModel, AutoTokenizer and pipeline load without this project, and a model card; block-sparse weights are dense there.
With --sparse they stay blocks, which `import ipu_bert.hub.auto` makes known to transformers.
--push-to NAME also uploads it to the Hugging Face hub.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Mapping, Sequence

from ipu_bert import assemble
from ipu_bert.heldout_before import of_checkpoint, told
from ipu_bert.hub.card import CardFacts, render_card
from ipu_bert.hub.dense import save_pretrained
from ipu_bert.hub.folders import CARD, push, repository, whole_folder
from ipu_bert.hub.tokenizer_files import save_tokenizer
from ipu_bert.hub.weights import check_blocks
from ipu_bert.hub_files import is_hub_name
from ipu_bert.record.metrics import METRICS_FILE, read_metrics
from ipu_bert.run_layout import name_for_others, runs_of
from ipu_bert.sizes.footprint import parameter_counts
from ipu_bert.trained import TrainedModel, load_model
from sparse_ops import files
from sparse_ops.arguments import Parser, named_path
from sparse_ops.ends import with_one_line
from sparse_ops.saying import say


def export(trained: TrainedModel, folder: Path, sparse: bool) -> None:
    """Write model, tokenizer and card; sparse: in blocks.

    Raises ValueError or OSError as `whole_folder` does, and ValueError where there are no blocks to keep.
    """
    if sparse:
        check_blocks(trained.model, "--sparse", "a run with block-sparse weights")
    pad = trained.text.special_ids()["[PAD]"]
    with whole_folder(folder) as aside:
        if sparse:
            from ipu_bert.hub.auto import save_sparse  # a second to import, which the dense form need not wait for

            save_sparse(trained.model, aside, pad)
        else:
            save_pretrained(trained.model, aside, pad)
        save_tokenizer(trained.text, trained.config.data.sequence_length, aside)
        files.write(aside / CARD, render_card(_facts(trained, sparse)))


def _facts(trained: TrainedModel, sparse: bool) -> CardFacts:
    init, records = trained.config.model.init, _records(trained)
    return CardFacts(
        config=trained.config,
        counts=parameter_counts(trained.model.shape, assemble.weights(trained.config)),
        vocab_size=trained.model.shape.vocab_size,
        step=trained.step,
        base=name_for_others(init) if init else "",
        base_on_hub=is_hub_name(init),
        heldout=_heldout(trained, records),
        unigram_entropy=trained.text.unigram_entropy,
        seen_tokens=int(trained.text.seen.sum()),
        pairs=trained.text.pairs,
        skipped=sum(record.get("kind") == "skip" and record["step"] <= trained.step for record in records),
        sparse_form=sparse,
        known_before=tuple(told(*of_checkpoint(trained.info))),
    )


def _records(trained: TrainedModel) -> Sequence[Mapping[str, Any]]:
    """What the run recorded, where the checkpoint is in the run's folder or in one of its branches.

    A branch with records has those of all its steps: what the run recorded of them since is of another way there.
    """
    for folder in runs_of(trained.checkpoint):
        if (folder / METRICS_FILE).is_file():
            return read_metrics(folder / METRICS_FILE)
    return []


def _heldout(trained: TrainedModel, records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The evaluation of this checkpoint; one of another loss than a best checkpoint was kept for is of another way."""
    loss = trained.info.get("heldout_loss")
    found = [
        record
        for record in records
        if (record.get("kind"), record.get("step")) == ("eval", trained.step) and loss in (None, record.get("mlm_loss"))
    ]
    return found[-1] if found else None


def main(argv: list[str]) -> int:
    """Export; a run that cannot be read, or a hub that refuses, ends in one line and status 2."""
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=named_path, help="a run's folder, or one of its checkpoints")
    parser.add_argument("folder", type=files.there, help="where the model goes: a new folder, or an earlier export's")
    parser.add_argument(
        "--push-to", type=repository, metavar="NAME", help="also upload it to this repository of the hub, as USER/MODEL"
    )
    parser.add_argument("--sparse", action="store_true", help="keep block-sparse weights as blocks")
    options = parser.parse_args(argv)
    return with_one_line(lambda: _act(options))


def _act(options: argparse.Namespace) -> None:
    trained = load_model(options.run)
    folder = Path(options.folder)
    export(trained, folder, options.sparse)
    say(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}", sys.stdout)
    length, positions = trained.config.data.sequence_length, trained.config.model.max_positions
    if positions > length:
        limit = f"use at most {length} tokens (model_max_length)"
        say(f"positions from {length} on have not been trained: {limit}", sys.stdout)
    if options.push_to is not None:
        say(f"pushed to {push(folder, options.push_to)}", sys.stdout)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
