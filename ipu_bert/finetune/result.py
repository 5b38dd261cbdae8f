"""The folder that a fine-tuning leaves: model, tokenizer, predictions, measures, card."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ipu_bert.finetune.examples import Labels
from ipu_bert.finetune.measures import Measures
from ipu_bert.finetune.options import Options
from ipu_bert.finetune.rows import Rows
from ipu_bert.finetune.train import Fitted
from ipu_bert.hub.auto import SparseBertForSequenceClassification, write_sparse
from ipu_bert.hub.dense import write_dense
from ipu_bert.hub.folders import CARD, MEASURES, PREDICTIONS, whole_folder
from ipu_bert.hub_files import is_hub_name
from ipu_bert.record.metrics import dumps
from ipu_bert.run_layout import name_for_others
from ipu_bert.sizes.config_json import hugging_face_config
from sparse_ops import files


@dataclass(frozen=True)
class Result:
    """What a fine-tuning has found. judged: "test" or "validation", whose rows, predictions and scores are written.
    measures: of these; None where they have no labels.
    """

    options: Options
    labels: Labels
    fitted: Fitted
    counts: dict[str, int]
    judged: str
    rows: Rows
    predictions: np.ndarray
    scores: np.ndarray
    measures: Measures | None
    max_length: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "start": PurePath(self.options.start.where).name,
            "task": "regression" if self.options.regression else "classification",
            "labels": list(self.labels.classes),
            "rows": self.counts,
            "max_length": self.max_length,
            "training": asdict(self.options.training),
            "sparsity": self.options.start.sparsity,
            "from_scratch": self.options.start.from_scratch,
            "validation": list(self.fitted.epochs),
            "best_epoch": self.fitted.best,
            "moved_blocks": self.fitted.moved,
            "judged_by": self.judged,
            "measures": self.measures,
        }


def write_result(
    model: SparseBertForSequenceClassification, tokenizer: Any, result: Result, folder: Path, sparse: bool
) -> None:
    """Write the folder, whole or not at all; sparse: blocks stay blocks. Raises ValueError as `whole_folder` does."""
    with whole_folder(folder) as aside:
        if sparse:
            write_sparse(model, _config(model, tokenizer, result.labels), aside)
        else:
            write_dense(model, _config(model, tokenizer, result.labels), aside)
        tokenizer.model_max_length = result.max_length
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.save_pretrained(aside)
        files.write(aside / PREDICTIONS, _predictions(result))
        files.write(aside / MEASURES, dumps(result.to_dict()) + "\n")
        files.write(aside / CARD, _card(result, sparse))


def _config(model: SparseBertForSequenceClassification, tokenizer: Any, labels: Labels) -> dict[str, Any]:
    names = labels.classes or ("LABEL_0",)
    return {
        **hugging_face_config(model.config.shape, tokenizer.pad_token_id),
        "architectures": ["BertForSequenceClassification"],
        "problem_type": "single_label_classification" if labels.classes else "regression",
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def _predictions(result: Result) -> str:
    """row from 1, prediction, its probability (of a class), and the label where there is one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    regression = result.options.regression
    writer.writerow(
        ["row", "prediction", *([] if regression else ["probability"]), *(["label"] if result.rows.labels else [])]
    )
    for i, (prediction, score) in enumerate(zip(result.predictions.tolist(), result.scores.tolist())):
        found = [repr(prediction)] if regression else [result.labels.classes[prediction], f"{score:.6f}"]
        writer.writerow([i + 1, *found, *([result.rows.labels[i]] if result.rows.labels else [])])
    return text.getvalue()


def _card(result: Result, sparse: bool) -> str:
    """A model card in the hub's form."""
    where, form = result.options.start.where, "import ipu_bert.hub.auto  # makes the sparse form known\n"
    start, scratch = name_for_others(where), result.options.start.from_scratch
    texts = "its labelled text alone" if scratch else f"its labelled text and from what {start} was trained on"
    base = f'base_model: "{start}"\n' if is_hub_name(where) and not scratch else ""
    shown = result.measures or result.fitted.epochs[result.fitted.best - 1]
    judged = result.judged if result.measures else "validation"
    values = [f"| {name} | {'not defined' if value is None else f'{value:.4f}'} |" for name, value in shown.items()]
    counts = ", ".join(f"{number:,} {name}" for name, number in result.counts.items() if name != "cut")
    return f"""---
library_name: transformers
pipeline_tag: text-classification
{base}tags: [bert{", block-sparse" if sparse else ""}]
---
# A BERT {f"of the sizes of {start}, trained from random weights" if scratch else f"fine-tuned from {start}"}

```python
{form if sparse else ""}from transformers import pipeline

pipeline("text-classification", model="FOLDER")(TEXT)
```

Judged by its {judged} rows. Rows: {counts}; {result.counts["cut"]:,} of more than {result.max_length} tokens were cut.

| measure | value |
|---|---|
{chr(10).join(values)}

Settings and the validation of every epoch are in `{MEASURES}`. It has learned from
{texts}, with whatever is wrong or one-sided in {"it" if scratch else "both"}.
"""
