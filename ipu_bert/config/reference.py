"""The page of all settings, docs/config.md, made from the fields of settings.py."""

from __future__ import annotations

import dataclasses
from typing import get_type_hints

import yaml

from ipu_bert.config.values import range_text, type_name
from ipu_bert.settings import Config

_HEAD = """\
# Settings

Made from `ipu_bert/settings.py` by `python -m ipu_bert.config`. A config file has these sections;
`base: NAME` inherits from another file, NAME or NAME.yaml beside it, else from one in `configs/`; `section.key=value`
after `--config` overrides.

Overriding one thing is enough. A default, or a value from a file in `configs/`, gives way to what you write in a file
of your own or in an override, where it is obvious what should follow: `train.batch_size=16` makes a micro-batch of 32
one of 16, `train.steps=40` makes a warm-up of 60 steps one of 4. The dry run and the start of a run say what gave way.
What you write yourself stays as it is, and is refused where it does not fit. What you write and what does nothing
beside the other settings is said there, too, and in the report, one line each:
`no effect: sparsity.updates=40, since sparsity.method is static`. So is what a run does not come up to, as more
`eval.batches` than the held-out text has.
"""


def reference_page() -> str:
    """The text of docs/config.md."""
    lines = _HEAD.splitlines()
    config = Config()
    for section in dataclasses.fields(config):
        settings = getattr(config, section.name)
        types = get_type_hints(type(settings))
        lines += ["", f"## {section.name}", "", settings.__doc__.strip(), ""]
        lines += ["| key | default | what it is |", "|---|---|---|"]
        for f in dataclasses.fields(settings):
            kind = ", ".join(filter(None, (type_name(types[f.name]), range_text(f.metadata))))
            value = getattr(settings, f.name)
            default = "none" if value is None else yaml.safe_dump(value, default_flow_style=True).split("\n")[0].strip()
            lines.append(f"| `{section.name}.{f.name}` | `{default}` | {f.metadata['text']} ({kind}) |")
    return "\n".join(lines) + "\n"
