"""Pre-train BERT with dynamic block sparsity.

python run_pretraining.py --config quickstart                        the small run of the README
python run_pretraining.py --config my.yaml train.steps=500           a file of your own, one setting changed
python run_pretraining.py --config quickstart --dry-run              what would be trained, then stop
python run_pretraining.py --config quickstart --resume               go on where the newest checkpoint stands
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ipu_bert import checkpoint
from ipu_bert.config import Config, ConfigError, load_config


def main(argv: list[str]) -> int:
    """Parse, load the config, run; every error a user can cause ends in one line a thing and an exit status above 0."""
    options = _parser().parse_intermixed_args(argv)
    if options.resume and "=" in options.resume and not Path(options.resume).exists():
        options.overrides.insert(0, options.resume)  # `--resume key=value`: the path was left out
        options.resume = "latest"
    try:
        config = load_config(options.config, options.overrides)
        if options.dry_run:
            return _dry_run(config, options.json)
        for line in config.gave_way:
            print(f"gave way: {line}", file=sys.stderr)
        return _train(config, options.resume)
    except ConfigError as error:
        return _fail(*error.errors)
    except (ValueError, ArithmeticError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _parser() -> argparse.ArgumentParser:
    about, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=about, epilog="examples:\n" + examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", required=True, metavar="NAME_or_FILE", help="a name in configs/ (NAME.yaml), or a YAML file"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings over the config's; docs/config.md has all"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="latest",
        metavar="PATH",
        help="continue from a checkpoint or a run's folder; without PATH, or with `latest`, from this run's newest",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan of the run and stop")
    parser.add_argument("--json", action="store_true", help="with --dry-run: the plan as one JSON object")
    return parser


def _dry_run(config: Config, as_json: bool) -> int:
    from ipu_bert import assemble
    from ipu_bert.sizes.dry_run import render

    found = assemble.plan(config)
    print(json.dumps(found) if as_json else render(found))
    return 0


def _train(config: Config, resume: str | None) -> int:
    from ipu_bert.trainer import InterruptedRunError, Trainer

    start = None
    if resume is not None:
        start = checkpoint.find(Path(config.run.dir if resume == "latest" else resume))
    if config.engine.name == "ipu":
        from ipu_bert.engines.ipu.instances import folder_of_instance

        config.run.dir = folder_of_instance(config.run.dir, config.engine.device)
        if config.engine.device == "offline":
            return _compile(config)
    try:
        folder = Trainer(config, start).run()
    except InterruptedRunError as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.number
    print(f"report: {folder / 'report.md'}")
    return 0


def _compile(config: Config) -> int:
    """Compile for IPUs that are not there, into the executable cache."""
    from ipu_bert.trainer import Trainer

    trainer = Trainer(config)
    trainer.engine.compile(trainer.train_stream.batch(0))
    print(f"compiled; executables are kept in {config.ipu.executable_cache or 'no cache: set ipu.executable_cache'}")
    return 0


def _fail(*lines: str) -> int:
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    return 2


def command() -> int:
    """The console command `ipu-bert`: run_pretraining.py, installed."""
    return main(sys.argv[1:])
