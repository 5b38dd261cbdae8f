"""Held-out losses of a checkpoint, without resuming its run: python -m ipu_bert.evaluate RUN [--text FILE ...]

RUN is a run's folder or one checkpoint of it. Judged by the run's own held-out text, as the run itself does, or by any
other text, with the run's tokenizer. Nothing is written into the run.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any, Sequence

from ipu_bert import assemble
from ipu_bert.config import Config
from ipu_bert.data.batches import BatchStream
from ipu_bert.data.filling import filling, told_never_asked
from ipu_bert.data.other_text import TextFiles
from ipu_bert.data.token_files import Text
from ipu_bert.engines.base import EvalResult
from ipu_bert.engines.torch_engine import eval_batch
from ipu_bert.heldout_before import of_checkpoint, told
from ipu_bert.judging import Judge
from ipu_bert.precision import Precision
from ipu_bert.record.context import Context
from ipu_bert.record.metrics import dumps
from ipu_bert.trained import TrainedModel, load_model, open_text
from sparse_ops.arguments import Parser, named_path, whole_number
from sparse_ops.ends import with_one_line
from sparse_ops.process import make_ready
from sparse_ops.saying import answer

CONTEXT = (
    "other words around: the model's loss on the same predictions when each word around them is replaced by one of as "
    "many pieces, drawn from the same text; word frequencies: the loss of a guess by how often each word piece is in "
    "the run's training text, plus one, special tokens left out"
)


@dataclass(frozen=True)
class Evaluation:
    """What a checkpoint makes of a text. sequences: judged by, of so many that one pass over the text has.

    compute: dtype of the products. context: as CONTEXT says. unigram_entropy [nats]: of all of the text's word
    pieces, those that are never predicted included. pairs: whether the run's text and this one
    give sentence pairs for next-sentence prediction. notes: what was said when the text was
    found, and where words are never predicted.
    """

    checkpoint: str
    step: int
    text: str
    sequences: int
    sequences_in_text: int
    compute: str
    result: EvalResult
    context: Context
    unigram_entropy: float
    pairs: bool
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: mean losses in nats, accuracies in [0, 1]; those of NSP are None without pairs."""
        values = {key: value for key, value in vars(self).items() if key not in ("result", "context")}
        nsp = {} if self.pairs else {"nsp_loss": None, "nsp_accuracy": None}
        return {**values, **self.result.means(), **nsp, **self.context.as_record()}


def evaluate(trained: TrainedModel, texts: Sequence[str], batches: int | None) -> Evaluation:
    """Judge a model by the first batches of a text, at most one pass over it; None: as many as its run uses.

    texts: files, folders or globs; none: the run's held-out text. Raises ValueError for text that cannot be used.
    """
    make_ready()
    config, kept = trained.config, trained.text
    assemble.use_threads(config)
    files = TextFiles(kept, texts, assemble.corpus(config)) if texts else open_text(trained)
    stream = _stream(config, files)
    # FP16.16 is for IPUs.
    compute = "float32" if config.precision.half else config.precision.compute
    precision = Precision(compute, loss_scale=1.0)
    judge = Judge(files, stream, kept.seen, config.eval.batches if batches is None else batches)
    micro = config.train.micro_batch_size or config.train.batch_size
    found = judge.judge(lambda batch: eval_batch(trained.model, precision, batch, micro))
    assert found is not None  # nothing stops it
    notes = files.notes if texts else told(*of_checkpoint(trained.info), config.model.init)
    result, context = found
    return Evaluation(
        checkpoint=str(trained.checkpoint),
        step=trained.step,
        text=files.directory if texts else "held-out text of the run",
        sequences=result.nsp_count,
        sequences_in_text=stream.sequences_per_epoch,
        compute=compute,
        result=result,
        context=context,
        unigram_entropy=files.unigram_entropy,
        pairs=stream.pairs and kept.pairs,
        notes=(*notes, *told_never_asked(filling(stream), "the text's")),
    )


def _stream(config: Config, files: Text) -> BatchStream:
    """Batches of the run's size, or of as many sequences as there are where the text has fewer."""

    def of_size(batch_size: int) -> BatchStream:
        return assemble.make_stream(
            replace(config, train=replace(config.train, batch_size=batch_size)), files, "heldout"
        )

    return of_size(min(config.train.batch_size, of_size(1).sequences_per_epoch))


def render(found: Evaluation) -> str:
    """The evaluation as text for a reader."""
    means, context = found.result.means(), found.context
    return "\n".join(
        [
            f"{found.checkpoint}, step {found.step:,}, in {found.compute}",
            f"by {found.sequences:,} sequences of {found.text}, which has {found.sequences_in_text:,}",
            f"masked LM      {means['mlm_loss']:.4f} nats, {100 * means['mlm_accuracy']:.1f} % right; "
            f"{context.beside(means['mlm_loss'])}",
            f"next sentence  {means['nsp_loss']:.4f} nats, {100 * means['nsp_accuracy']:.1f} % right; "
            "a coin toss: 0.6931"
            if found.pairs
            else "next sentence  not judged: the run's text or this one gives too few sentence pairs",
            *(f"note: {note}" for note in found.notes),
            f"({CONTEXT})",
        ]
    )


def main(argv: list[str]) -> int:
    """The command line; what cannot be read ends in one line and status 2."""
    parser = Parser(description=(__doc__ or "").partition(":")[0], epilog=CONTEXT)
    parser.add_argument("run", type=named_path, help="a run's folder, or one of its checkpoints")
    parser.add_argument("--text", nargs="+", default=[], metavar="FILE", help="judge by this text: files or folders")
    parser.add_argument(
        "--batches", type=whole_number(1, 1_000_000), help="batches to judge by (default: eval.batches of the run)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)

    def act() -> None:
        found = evaluate(load_model(options.run), options.text, options.batches)
        answer(dumps(found.to_dict()) if options.json else render(found))

    return with_one_line(act)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
