"""A finished or running run's model in Hugging Face's format: python -m ipu_bert.export_run RUN FOLDER

RUN is a run's folder or one checkpoint of it. FOLDER gets config.json, model.safetensors and tokenizer.json, which
transformers loads without this project; block-sparse weights are written dense there.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any, Mapping

from ipu_bert import assemble, checkpoint
from ipu_bert.config import Config, from_dict
from ipu_bert.engines.checked_state import check_model
from ipu_bert.export import save_pretrained
from ipu_bert.model import BertForPreTraining


def load_model(path: Path) -> tuple[BertForPreTraining, Config]:
    """The model of a checkpoint or of a run's newest one, with the config it was trained with.

    Raises CheckpointError when there is none or it is damaged.
    """
    path = checkpoint.find(path)
    groups, info = checkpoint.load(path)
    try:
        config = from_dict(info.get("config", {}))
        model = assemble.make_model(config, _vocab_size(groups))
        check_model(model, groups)
    except ValueError as error:
        raise checkpoint.CheckpointError(f"checkpoint {path}: {error}") from None
    model.load_state_dict(groups["model"])
    return model, config


def _vocab_size(groups: Mapping[str, Mapping[str, Any]]) -> int:
    """Rows of the decoder's bias; 1 where there is none, with which the check of the model fails."""
    bias = groups.get("model", {}).get("cls.predictions.bias")
    return max(1, bias.numel()) if bias is not None else 1


def main(argv: list[str]) -> int:
    """Export; a run that cannot be read ends in one line and status 2."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="a run's folder, or one of its checkpoints")
    parser.add_argument("folder", type=Path, help="where config.json, model.safetensors and tokenizer.json go")
    options = parser.parse_args(argv)
    try:
        model, config = load_model(options.run)
        save_pretrained(model, options.folder)
        shutil.copyfile(assemble.open_data(config, progress=False).tokenizer_path, options.folder / "tokenizer.json")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.folder}: config.json, model.safetensors, tokenizer.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
