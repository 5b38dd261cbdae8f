"""The model card: README.md with YAML front matter, in the form that the hub reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Mapping

import yaml

from ipu_bert.config import Config, identity
from ipu_bert.data.source import BOOKCORPUS, WIKIPEDIA
from ipu_bert.record.context import Context
from ipu_bert.record.verdict import FOUND
from ipu_bert.sizes.footprint import ParameterCounts

_DATASETS = {"wikipedia_bookcorpus": [WIKIPEDIA["path"], BOOKCORPUS["path"]]}
_SOURCES = {
    "sotu": "annual messages of the presidents of the United States, 1790 to 2026 (public domain)",
    "mix": "messages of the presidents of the United States, the World English Bible, articles of Wikipedia (CC BY-SA)",
    "wikipedia_bookcorpus": "English Wikipedia and BookCorpus",
    "files": "text of the author's own",
}
_PATHS = ("data.tokenizer",)  # settings that may tell where somebody keeps files


@dataclass(frozen=True)
class CardFacts:
    """What a card says. heldout: means of the evaluation after `step` as metrics.jsonl has them, None where none is.

    base: what to call the model of `model.init`, empty where weights began at random. base_on_hub: whether the hub
    knows it by that. unigram_entropy [nats]: loss of word frequencies alone on the whole held-out text, for a record
    that does not say what it is on the labels that judged. seen_tokens: of the training text. pairs: whether
    next-sentence prediction was trained. skipped: steps up to `step` that changed nothing, as far as records say.
    sparse_form: whether weights are stored as blocks. known_before: what is said of held-out
    documents that the model was trained on before.
    """

    config: Config
    counts: ParameterCounts
    vocab_size: int
    step: int
    base: str
    base_on_hub: bool
    heldout: Mapping[str, Any] | None
    unigram_entropy: float
    seen_tokens: int
    pairs: bool
    skipped: int
    sparse_form: bool
    known_before: tuple[str, ...] = ()


def render_card(facts: CardFacts) -> str:
    """The card's text."""
    front = yaml.safe_dump(_front_matter(facts), sort_keys=False)
    parts = [
        f"---\n{front}---",
        f"# {facts.config.run.name}",
        _opening(facts),
        "## Use\n\n" + _use(facts),
        "## Data\n\n" + _data(facts),
        "## Held-out losses\n\n" + _losses(facts),
        "## Limits\n\n" + _limits(facts),
        "## Settings\n\n" + _settings(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(facts: CardFacts) -> dict[str, Any]:
    data, method = facts.config.data, facts.config.sparsity.method if facts.counts.sparse else "dense"
    language = {"language": data.language} if data.language != "auto" else {}
    sources = {"datasets": _DATASETS[data.source]} if data.source in _DATASETS else {}
    base = {"base_model": facts.base} if facts.base_on_hub else {}
    tags = ["bert", "masked-lm", *(["block-sparse", method] if method != "dense" else [])]
    return {**language, "library_name": "transformers", "pipeline_tag": "fill-mask", **base, **sources, "tags": tags}


def _opening(facts: CardFacts) -> str:
    model, sparsity, counts = facts.config.model, facts.config.sparsity, facts.counts
    kind = {"dense": "dense weights", "static": "a static block-sparse pattern"}.get(
        sparsity.method if counts.sparse else "dense", "dynamic block-sparse weights"
    )
    text = (
        f"A BERT of {model.layers} layers, width {model.hidden_size}, {model.heads} heads, pre-trained with {kind}. "
        f"{counts.total:,} parameters."
    )
    if counts.sparse:
        share = 1.0 - counts.sparse / counts.sparse_as_dense
        text += (
            f" {counts.sparse:,} of them are the values of {counts.sparse_blocks:,} blocks of {sparsity.block_size}x"
            f"{sparsity.block_size}, in the place of {counts.sparse_as_dense:,}: the sparse weights are "
            f"{100 * share:.1f} % zero and were so at every step of this training."
        )
    if facts.base:
        text += f" Training began with the weights of `{facts.base}`, not with random ones."
    return text


def _use(facts: CardFacts) -> str:
    first = "import ipu_bert.hub.auto  # makes the sparse form known\n" if facts.sparse_form else ""
    note = (
        "Weights are stored and multiplied as blocks, by the package `ipu-bert-dynsparse`."
        if facts.sparse_form
        else "Block-sparse weights are written dense here, with zeros, so that transformers alone loads them."
        if facts.counts.sparse
        else "transformers alone loads it."
    )
    return (
        f"```python\n{first}from transformers import pipeline\n\n"
        'pipeline("fill-mask", model="FOLDER_or_NAME")("The people of the [MASK] States")\n```\n\n' + note
    )


def _data(facts: CardFacts) -> str:
    data, train = facts.config.data, facts.config.train
    sequences = facts.step * train.batch_size
    vocabulary = "taken from elsewhere" if data.tokenizer else "trained on this text"
    before = f" What `{facts.base}` had learned before, from which text, is not in these numbers." if facts.base else ""
    return (
        f"{_SOURCES.get(data.source, data.source)}: {facts.seen_tokens:,} training tokens, a WordPiece vocabulary of "
        f"{facts.vocab_size:,} pieces {vocabulary}. Trained for {facts.step:,} steps of {train.batch_size} sequences "
        f"of at most {data.sequence_length} tokens, {sequences:,} sequences in all, by masked LM"
        + (" and next-sentence prediction." if facts.pairs else " alone.")
        + (
            f" {facts.skipped:,} of the steps had no finite loss or gradient and changed nothing."
            if facts.skipped
            else ""
        )
        + before
    )


def _losses(facts: CardFacts) -> str:
    found = facts.heldout
    if found is None or found.get("mlm_loss") is None:
        return "No evaluation of this step was recorded."
    loss, context = found["mlm_loss"], Context.of_record(found)
    # Of the whole held-out text, of which an evaluation asks for the easier part, where an older version judged.
    plain, of = (
        (facts.unigram_entropy, "word frequencies, whole held-out text")
        if context is None
        else (context.word_frequencies_loss, "word frequencies")
    )
    rows = [
        f"| masked LM | {loss:.4f} | {plain:.4f} ({of}) | {100 * found['mlm_accuracy']:.1f} % |",
    ]
    if context is not None:
        rows.append(f"| masked LM, other words around | {context.other_words_loss:.4f} | | |")
    if found.get("nsp_loss") is not None:
        rows.append(
            f"| next sentence | {found['nsp_loss']:.4f} | 0.6931 (a coin toss) | {100 * found['nsp_accuracy']:.1f} % |"
        )
    head = "| task | loss [nats] | of a model that ignores the sentence | right |\n|---|---|---|---|"
    if context is not None:
        says = FOUND[context.found(loss)]
    else:
        says = "Whether the model reads context was not recorded." if loss < plain else FOUND["frequencies"]
    notes = [*([] if says == FOUND["yes"] else [f"**{says}**"]), *(f"{line}." for line in facts.known_before)]
    return "\n\n".join(["\n".join([head, *rows]), *notes])


def _limits(facts: CardFacts) -> str:
    length, positions = facts.config.data.sequence_length, facts.config.model.max_positions
    lines = ["- It has been pre-trained only: for a task of its own it has to be fine-tuned."]
    if positions > length:
        origin = f"as `{facts.base}` had them" if facts.base else "random, as they were before training"
        if facts.config.optim.weight_decay:
            origin += ", but for weight decay, which has made them smaller, all in one proportion"
        lines.append(
            f"- Positions {length} to {positions - 1} have never been trained here: their rows of the position "
            f"embedding are {origin}. The tokenizer's `model_max_length` is {length}; do "
            "not use longer sequences."
        )
    texts = f"its text and from what `{facts.base}` was trained on" if facts.base else "its text alone"
    lines.append(
        f"- It has learned from {texts}, with whatever is wrong or one-sided in {'both' if facts.base else 'it'}."
    )
    if facts.base:
        lines.append(f"- The licence of `{facts.base}`, which is not known here, may bind whoever uses this model.")
    return "\n".join(lines)


def _settings(facts: CardFacts) -> str:
    """All that decides the numbers of a run, without the folders of whoever ran it."""
    settings = identity(facts.config)
    if facts.base:
        settings |= {"model.init": facts.base, "sparsity.init_pattern": facts.config.sparsity.init_pattern}
    shown = {key: PurePath(str(value)).name if key in _PATHS else value for key, value in settings.items()}
    return "```yaml\n" + yaml.safe_dump(shown, sort_keys=True) + "```"
