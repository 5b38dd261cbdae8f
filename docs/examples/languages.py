"""One command for each text, whatever its language: python docs/examples/languages.py TEXT... prints the table of
docs/text.md. A tiny model and a few steps; each run, with its report, is in runs/languages/NAME."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from ipu_bert import assemble
from ipu_bert.config import load_config

TINY = (
    "model.layers=1 model.hidden_size=64 data.sequence_length=32 data.max_predictions=5 data.vocab_size=1500 "
    "data.short_sequence_probability=0.1 data.heldout_fraction=0.4 train.steps=200 train.batch_size=4 "
    "optim.warmup_steps=60 sparsity.updates=5 eval.batches=8 "
    "log.tensorboard=false"
)
HEAD = (
    "text | MB | rules | [UNK] % | pieces a word | room % | NSP random % | held-out MLM | word frequencies | "
    "prepared, s"
)


def row(path: Path) -> str:
    """Train on one text, and a line of what its report says."""
    folder = Path("runs/languages", path.stem)
    command = [sys.executable, "run_pretraining.py", "--config", "quickstart", "data.source=files", f"data.path={path}"]
    subprocess.run([*command, *TINY.split(), f"run.dir={folder}"], check=True, stdout=subprocess.DEVNULL)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    quality, heldout = report["data"]["quality"], report["heldout"]
    cost = quality["cost"]
    config = load_config(str(folder / "config.yaml"))
    stream = assemble.make_stream(config, assemble.open_data(config, progress=False), "train")
    labels = np.concatenate([stream.batch(index).next_sentence_labels for index in range(400)])
    seconds = sum(cost[part] for part in ("reading", "vocabulary", "tokenizing", "writing"))
    values = (
        path.stem,
        f"{cost['text_bytes'] / 1e6:.3f}",
        ", ".join(quality["rules"]),
        f"{100 * quality['unknown']:.2f}",
        f"{quality['pieces_a_word']:.2f}",
        f"{100 * quality['shown']:.0f}",
        f"{100 * labels.mean():.1f}" if quality["pairs"] else "no pairs",
        f"{heldout['mlm_loss']:.2f}",
        f"{heldout['word_frequencies_loss']:.2f}",
        f"{seconds:.1f}",
    )
    return f"| {' | '.join(values)} |"


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit("languages.py: expected TEXT..., found none")
    print(f"| {HEAD} |\n|{' --- |' * (HEAD.count('|') + 1)}")
    for argument in sys.argv[1:]:
        try:
            print(row(Path(argument)), flush=True)
        except subprocess.CalledProcessError as error:
            sys.exit(error.returncode)  # it has said what is wrong
