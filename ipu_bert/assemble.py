"""From a checked config to the objects of a run; engines/ipu/build.py goes on for IPUs, and the loop reads its own."""

from __future__ import annotations

import hashlib
import math
import sys
import time
from typing import Any, Callable, Mapping, Sequence

import torch

from ipu_bert import heldout_before
from ipu_bert.checkpoint_info import LINES_BEFORE, TEXTS_BEFORE
from ipu_bert.config import Config, ConfigError
from ipu_bert.config.resolve import wanted_predictions
from ipu_bert.data.ahead import BatchAhead
from ipu_bert.data.batches import Batch, BatchOptions, BatchStream
from ipu_bert.data.corpus import Corpus
from ipu_bert.data.filling import Filling, filling, told_never_asked
from ipu_bert.data.prepare import find_prepared, prepare
from ipu_bert.data.quality import text_quality
from ipu_bert.data.token_files import Text, TokenFiles
from ipu_bert.data.tokenizer import Normalization, given_tokenizer
from ipu_bert.engines.base import Engine
from ipu_bert.lr_schedules import LR_SCHEDULES, with_warmup
from ipu_bert.model import BertForPreTraining, sparse_linear
from ipu_bert.optim import DENSE_OPTIMA, Optimization, dense_learning_rate, sparse_learning_rate
from ipu_bert.precision import Precision
from ipu_bert.ranks import ALONE, Ranks
from ipu_bert.settings import SparsitySettings
from ipu_bert.sizes import dry_run
from ipu_bert.sizes.fits import check_memory
from ipu_bert.sizes.placement import Placement, place
from ipu_bert.sizes.reach import moves_reached, predictions_reached, rate_reached, text_reached
from ipu_bert.sizes.shape import FAMILY, FamilySize, bert_shape
from ipu_bert.sizes.weights import EncoderWeight, encoder_weights
from ipu_bert.stopwatch import Stopwatch
from sparse_ops import native, openmp
from sparse_ops.dynsparse.grow import GROW_RULES
from sparse_ops.dynsparse.schedules import SCHEDULES
from sparse_ops.dynsparse.updater import PatternUpdater, UpdatePlan
from sparse_ops.host_memory import total_memory_bytes
from sparse_ops.norms import NORMS
from sparse_ops.saying import say
from sparse_ops.tune import told, tune, works

MEASURED_FROM = 500  # steps of a run: from there on it repays the seconds that it takes to measure


def open_data(config: Config, progress: bool, ranks: Ranks = ALONE) -> TokenFiles:
    """Prepare the corpus, or open it where it has been prepared before.

    Rank 0 goes first, then the first rank of every machine, then the rest: who finds no text after rank 0 is on a
    machine with another disk, and prepares it there. Raises ValueError, on all ranks, where that gave another text.
    """
    turn = 0 if ranks.first else 1 if ranks.local_index == 0 else 2
    for now in range(3 if ranks.count > 1 else 1):
        if now == turn:
            if turn == 1 and find_data(config)[1] is None:
                say(f"rank {ranks.index}: rank 0's text is not on the disk of this machine; preparing it", sys.stderr)
            show = progress and turn < 2
            found = prepare(corpus(config), config.data.dir, workers=config.data.workers, progress=show)
        ranks.meet()
    if ranks.count > 1:
        ranks.check_same({name: str(value) for name, value in found.identity.items()}, "data")
    return found


def _computes_natively(config: Config) -> bool:
    """Whether native code takes part in a step where it can be had."""
    engine = config.engine
    covered = config.sparsity.method != "dense" or config.precision.compute == "float32"
    return engine.name == "torch" and engine.kernel != "torch" and covered


def compile_kernels(config: Config, ranks: Ranks) -> None:
    """Compile native kernels where they take part: the first rank of each machine, and then the rest.

    Raises ValueError where SPARSE_OPS_LEVEL names none of their levels, and where `engine.kernel` is native and they
    cannot be had.
    """
    natively = _computes_natively(config)
    if natively and config.engine.kernel == "native" and native.why_not():
        raise ValueError(f"engine.kernel: expected auto or torch here, found native: {native.why_not()}")
    for now in (True, False):
        if natively and (ranks.local_index == 0) == now and native.available():
            native.level()
        ranks.meet()  # also where this rank has no part in it, as another's engine.kernel may differ


def choose_variants(config: Config, ranks: Ranks) -> None:
    """Measure how this machine carries out the run's sparse products fastest, where it is repaid and not known yet.

    The first rank of each machine does. All ways give the same bits, so machines, and a resumed run, may differ.
    """
    products = _computes_natively(config) and config.sparsity.method != "dense"
    repaid = config.train.last_step >= MEASURED_FROM
    if products and repaid and ranks.local_index == 0 and native.available():
        assert config.train.micro_batch_size is not None
        tokens = config.train.micro_batch_size * config.data.sequence_length
        dtype = getattr(torch, config.precision.compute)
        sparse, start = [w for w in weights(config) if w.is_sparse], time.monotonic()
        wanted = [work for w in sparse for work in works(w.shape, w.block_size, w.blocks, tokens, dtype)]
        made = tune(wanted, again=False)
        if made:
            say(told(made, time.monotonic() - start), sys.stderr)
    ranks.meet()


def find_data(config: Config) -> tuple[str, TokenFiles | None]:
    """Where the corpus is or will be prepared, and its token files if they are there; nothing is made."""
    return find_prepared(corpus(config), config.data.dir)


def text_identity(config: Config) -> dict[str, str]:
    """What `TokenFiles.identity` says of the run's text, as far as it is known without preparing it.

    Raises DataError for a text or a tokenizer that cannot be read.
    """
    _, files = find_data(config)
    if files:
        return files.identity
    wanted = corpus(config)
    if not wanted.tokenizer:
        return {}
    written = given_tokenizer(wanted.tokenizer, wanted.normalization).to_str(pretty=True)  # as prepare() does
    return {"tokenizer": hashlib.sha256(written.encode()).hexdigest()}


def vocabulary_size(config: Config, files: TokenFiles | None) -> int:
    """Word pieces of a run: of its text where it is prepared, else of the given tokenizer, else as many as asked for.

    Raises DataError for a tokenizer that cannot be read.
    """
    if files:
        return files.vocab_size
    wanted = corpus(config)
    if wanted.tokenizer:
        return given_tokenizer(wanted.tokenizer, wanted.normalization).get_vocab_size()
    return wanted.vocab_size


def corpus(config: Config) -> Corpus:
    """The text of a run, and how it is prepared."""
    data = config.data
    return Corpus(
        source=data.source,
        paths=tuple([data.path] if isinstance(data.path, str) and data.path else data.path),
        column=data.column,
        encoding=data.encoding,
        document_words=None,
        language=data.language,
        line_is_sentence=data.line_is_sentence,
        vocab_size=data.vocab_size,
        tokenizer=data.tokenizer or None,
        normalization=Normalization(data.do_lower_case, data.strip_accents, data.tokenize_chinese_chars),
        heldout_fraction=data.heldout_fraction,
    )


def make_stream(config: Config, files: Text, split: str) -> BatchStream:
    """The batches of one split; held-out ones do not depend on the run's seed."""
    data = config.data
    options = BatchOptions(
        batch_size=config.train.batch_size,
        sequence_length=data.sequence_length,
        max_predictions=data.max_predictions,
        mask_probability=data.mask_probability,
        whole_word=data.whole_word_masking,
        short_sequence_probability=data.short_sequence_probability,
        seed=config.run.seed,
    )
    return BatchStream(files, split, options)


def train_batches(config: Config, stream: BatchStream, engine: Engine) -> Callable[[int], Batch]:
    """Training batches by number, this process's share of each: made ahead where IPUs leave the CPU free."""
    if config.engine.name == "ipu" and config.engine.device == "hardware":
        return BatchAhead(stream, *engine.share)
    return lambda index: stream.share(index, *engine.share)


def weights(config: Config) -> tuple[EncoderWeight, ...]:
    """The encoder's weight matrices with their blocks."""
    return encoder_weights(config.model, config.sparsity)


def learning_rate(config: Config) -> float:
    """The peak learning rate: as given, or Eq. 3 from the dense optimum of this size."""
    optim, model = config.optim, config.model
    if not isinstance(optim.lr, str):
        return optim.lr
    dense_lr = optim.dense_lr
    if dense_lr is None:
        names = {size: name for name, size in FAMILY.items()}
        name = names.get(FamilySize(model.layers, model.hidden_size))
        dense_lr = DENSE_OPTIMA[name] if name else dense_learning_rate(sum(weight.size for weight in weights(config)))
    return sparse_learning_rate(dense_lr, 0.0 if config.sparsity.method == "dense" else config.sparsity.sparsity)


def schedule(config: Config) -> Callable[[int], float]:
    """Factor of the learning rate after so many steps."""
    optim = config.optim
    assert isinstance(optim.warmup_steps, int)
    return with_warmup(LR_SCHEDULES[optim.schedule], config.train.steps, optim.warmup_steps)


def make_updater(config: Config) -> PatternUpdater | None:
    """What changes patterns, where the method is dynamic and any weight has one."""
    sparsity = config.sparsity
    if sparsity.method != "dynsparse" or not any(weight.is_sparse for weight in weights(config)):
        return None
    return PatternUpdater(update_plan(sparsity, config.train.steps, config.run.seed))


def update_plan(sparsity: SparsitySettings, steps: int, seed: int) -> UpdatePlan:
    """When patterns change in so many steps, and how."""
    return UpdatePlan(
        updates=sparsity.updates,
        total_steps=steps,
        pruning_ratio=sparsity.pruning_ratio,
        schedule=SCHEDULES[sparsity.schedule],
        start=sparsity.start,
        stop=sparsity.stop,
        norm=NORMS[sparsity.norm],
        growth=GROW_RULES[sparsity.growth],
        allow_removed=sparsity.allow_removed,
        seed=seed,
    )


def tell_not_reached(config: Config, text: Sequence[str], updater: PatternUpdater | None) -> list[str]:
    """Add to `no_effect` of a config a line for each setting that the run does not come up to; returns what is new.

    text: the lines of its text (`text_reached`), none where that is not prepared.
    """
    lines = [*text, *predictions_reached(config, wanted_predictions(config))]
    lines += moves_reached(updater, weights(config)) if updater else []
    lines += rate_reached(config)
    new = [line for line in lines if line not in config.no_effect]
    config.no_effect += new
    return new


def decoded(config: Config, filled: Filling | None, natively: bool) -> float:
    """Places of a sequence that the MLM head makes scores for, a mean: with native code those that have a label.

    filled: how full the run's sequences are; None: they are all full. natively: whether native kernels can be had.
    """
    places = config.data.max_predictions
    labelled_only = natively and _computes_natively(config) and config.precision.compute == "float32"
    if not labelled_only:
        return places
    return filled.predictions if filled else min(places, wanted_predictions(config))


def make_model(config: Config, vocab_size: int) -> BertForPreTraining:
    """BERT with its starting weights and patterns, which depend on the seed alone.

    Raises ValueError, before anything is built, when training it needs more memory than this machine has.
    """
    check_memory(config, vocab_size, total_memory_bytes())
    linear = sparse_linear(weights(config), config.run.seed, config.engine.kernel)
    return BertForPreTraining(bert_shape(config.model, vocab_size), linear, config.run.seed, config.engine.kernel)


def make_placement(config: Config, vocab_size: int) -> Placement | None:
    """Layers on IPUs, where they are the engine. Raises ConfigError with everything that cannot work."""
    if config.engine.name != "ipu":
        return None
    placement = place(config, vocab_size)
    if placement.problems:
        raise ConfigError(placement.problems)
    return placement


def texts_before(config: Config, files: TokenFiles, info: Mapping[str, Any]) -> dict[str, str]:
    """The texts that the model behind `model.init` knows, as `heldout_before` has them; of a run that goes on those
    that its checkpoint's `info` says, since that model may be gone.
    """
    if {TEXTS_BEFORE, LINES_BEFORE} & info.keys() or not config.model.init:
        return heldout_before.of_checkpoint(info)[0]
    return heldout_before.texts_before(config.model.init, files.identity["text"])


def plan(config: Config, ranks: Ranks = ALONE, info: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the run would be, as plain values; nothing is made. Raises ValueError as the run itself would.

    info: of the checkpoint that it goes on from; None for a new run.
    """
    check_share(config, ranks)
    _, files = find_data(config)
    vocab_size = vocabulary_size(config, files)
    placement = make_placement(config, vocab_size)
    updater = make_updater(config)
    filled, quality, text, warnings = None, None, [], []
    if files:
        warnings += heldout_before.told(texts_before(config, files, info or {}), files.held_out, config.model.init)
        filled = filling(make_stream(config, files, "train"))
        judging = make_stream(config, files, "heldout")
        heldout = judging.first_batches(config.eval.batches)
        quality = text_quality(files, config.data.sequence_length)
        warnings += told_never_asked(filling(judging), "the held-out text's")
        text = text_reached(config, files.manifest["splits"], len(heldout), filled)
    elif config.model.init:
        warnings.append(f"whether {config.model.init} knows held-out documents is said once the text is prepared")
    tell_not_reached(config, text, updater)
    updates = sorted(updater.ratios) if updater else []
    return dry_run.plan(
        config,
        files=files,
        quality=quality,
        filled=filled,
        decoded=decoded(config, filled, True),
        vocab_size=vocab_size,
        placement=placement,
        learning_rate=learning_rate(config),
        updates=updates,
        ranks=ranks.count,
        warnings=warnings,
    )


def optimization(config: Config) -> Optimization:
    """What every engine is told about learning rate, AdamW and regularization."""
    optim = config.optim
    return Optimization(
        lr=learning_rate(config),
        schedule=schedule(config),
        beta1=optim.beta1,
        beta2=optim.beta2,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        group_lasso=optim.group_lasso,
        clip_norm=optim.clip_norm,
    )


def use_threads(config: Config, ranks: Ranks = ALONE) -> None:
    """Let torch, and the native kernels with it, compute with as many threads as the config says.

    Rank 0 tells where variables let them have fewer, with which they then compute.
    """
    fewer = openmp.use_threads(config.engine.threads)
    if fewer and ranks.first:
        say(f"engine.{fewer}", sys.stderr)


def check_share(config: Config, ranks: Ranks) -> None:
    """Raises ValueError where ranks cannot have equally many of a batch's micro-batches."""
    train, parts = config.train, ranks.count
    assert train.micro_batch_size is not None
    if config.engine.name == "torch" and train.batch_size % (parts * train.micro_batch_size):
        smaller = math.gcd(train.micro_batch_size, train.batch_size // parts)
        fits = f"; train.micro_batch_size={smaller} fits" if train.batch_size % parts == 0 else ""
        raise ValueError(
            f"train.batch_size: expected a multiple of {parts} ranks x train.micro_batch_size "
            f"{train.micro_batch_size}, found {train.batch_size}{fits}"
        )


def make_engine(config: Config, vocab_size: int, timer: Stopwatch, ranks: Ranks = ALONE) -> Engine:
    """The engine that the config names, with a model at its start; `compile_kernels` comes before it."""
    use_threads(config, ranks)
    check_share(config, ranks)
    if config.engine.name == "ipu":
        from ipu_bert.engines.ipu.build import build_ipu_engine

        make_placement(config, vocab_size)  # refuses what cannot be placed
        return build_ipu_engine(config, make_model(config, vocab_size), optimization(config), timer, ranks)
    from ipu_bert.engines.torch_engine import TorchEngine

    assert config.train.micro_batch_size is not None
    return TorchEngine(
        make_model(config, vocab_size),
        optimization=optimization(config),
        precision=Precision(compute=config.precision.compute, loss_scale=config.precision.loss_scale),
        micro_batch_size=config.train.micro_batch_size,
        block_norm=NORMS[config.sparsity.norm],
        seed=config.run.seed,
        timer=timer,
        ranks=ranks,
    )
