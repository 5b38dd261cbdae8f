"""A finished or running run's model in Hugging Face's format: python -m ipu_bert.export_run RUN FOLDER

RUN is a run's folder or one checkpoint of it. FOLDER gets config.json, model.safetensors and tokenizer.json, which
transformers loads without this project; block-sparse weights are written dense there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ipu_bert.hub.dense import save_pretrained
from ipu_bert.trained import load_model
from sparse_ops import files
from sparse_ops.files import in_words


def main(argv: list[str]) -> int:
    """Export; a run that cannot be read ends in one line and status 2."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="a run's folder, or one of its checkpoints")
    parser.add_argument("folder", type=Path, help="where config.json, model.safetensors and tokenizer.json go")
    options = parser.parse_args(argv)
    try:
        trained = load_model(options.run)
        save_pretrained(trained.model, options.folder)
        files.write(options.folder / "tokenizer.json", trained.text.tokenizer_json)
    except (ValueError, OSError) as error:
        print(f"error: {in_words(error) if isinstance(error, OSError) else error}", file=sys.stderr)
        return 2
    print(f"{options.folder}: config.json, model.safetensors, tokenizer.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
