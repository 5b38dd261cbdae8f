"""Pre-train BERT with dynamic block sparsity.

python run_pretraining.py --config quickstart                        the small run of the README
python run_pretraining.py --config my.yaml train.steps=500           a file of your own, one setting changed
python run_pretraining.py --config quickstart --dry-run              what would be trained, then stop
python run_pretraining.py --config quickstart --resume               go on where the newest checkpoint stands
python run_pretraining.py --config quickstart --resume auto          go on if there is a checkpoint, else start

exit status: 0 done; 2 something is wrong, one line each says what; 75 stopped by SIGTERM, SIGHUP, SIGUSR1 or SIGQUIT
and saved: the same command with --resume auto goes on; 130 stopped by Ctrl-C and saved
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from pathlib import Path

from ipu_bert import checkpoint
from ipu_bert.config import Begun, Config, ConfigError, identity, load_config, not_as_written
from ipu_bert.data.errors import SettingError
from ipu_bert.ranks import ALONE, RankError, Ranks, join
from ipu_bert.record.metrics import dumps
from ipu_bert.run_place import Found, look, newest_checkpoint, of_another_folder, settle
from ipu_bert.same_run import begun, check_goes_on
from ipu_bert.signals import InterruptedRunError, delayed, raised
from sparse_ops.arguments import Parser, named
from sparse_ops.ends import out_of
from sparse_ops.files import in_words
from sparse_ops.saying import answer, printable, say

TIMED_STEPS = 10  # of --throughput


def main(argv: list[str]) -> int:
    """Parse, load the config, run; every error a user can cause ends in one line a thing and an exit status above 0."""
    parser = _parser()
    with delayed():  # what argparse restores at its end, and was stopped before it kept, is an error of its own
        options = parser.parse_intermixed_args(_with_path(argv))
    planned = options.dry_run or options.measure
    if options.json and not (planned or options.throughput):
        return _fail("--json: expected --dry-run, --measure or --throughput with it, found none")
    ranks, config = ALONE, None
    try:
        ranks = joined = join()
        with ranks.together():
            _check(options)
            config = load_config(
                options.config, options.overrides, lambda folder: _begun(folder, options.resume, joined)
            )
            ranks = _of_engine(config, ranks)
            elsewhere = of_another_folder(Path(options.config), Path(config.run.dir))
            if elsewhere and ranks.first and not any(one.startswith("run.dir=") for one in options.overrides):
                say(elsewhere, sys.stderr)
            if planned:
                return _dry_run(
                    config, _checkpoint(config.run.dir, options.resume) if ranks.first else None, options, ranks
                )
            for line in not_as_written(config) if ranks.first else ():
                say(line, sys.stderr)
            if options.throughput:
                return _throughput(config, options.json, options.steps or TIMED_STEPS, ranks)
            with raised():
                return _train(config, options.resume, ranks)
    except InterruptedRunError as stop:
        saved = stop.saved or (newest_checkpoint(config) if config else None)
        if ranks.first:
            say(str(InterruptedRunError(stop.number, saved)), sys.stderr)
        return stop.status
    except RankError as error:
        _fail(*filter(None, [str(error)]))
        return error.status
    except ConfigError as error:
        return _fail(*error.errors)
    except checkpoint.DamagedCheckpointError as error:
        return _fail(f"{error}; {_way_on(error.path, options)}")
    except SettingError as error:
        return _fail(f"data.{error}")
    except (ValueError, ArithmeticError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        say("stopped", sys.stderr)
        return 130
    except OSError as error:
        return _fail(in_words(error))
    except BaseException as error:  # a panic of tokenizers is no Exception
        problem = out_of(error)
        if not problem:
            raise
        smaller = "; try a smaller train.micro_batch_size or a smaller model"
        return _fail(problem + smaller * problem.startswith("out of memory"))


def _with_path(argv: list[str]) -> list[str]:
    """The arguments with `latest` after a --resume whose PATH was left out before a key=value."""
    found: list[str] = []
    for argument in argv:
        key, equals, _ = argument.partition("=")
        if found[-1:] == ["--resume"] and equals and "/" not in key and not os.path.exists(argument):
            found.append("latest")
        found.append(argument)
    return found


def _parser() -> argparse.ArgumentParser:
    about, _, examples = (__doc__ or "").partition("\n\n")
    parser = Parser(
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
        type=named,
        metavar="PATH",
        help="continue from a checkpoint or a run's folder; without PATH, or with `latest`, from this run's newest; "
        "with `auto` from the newest if there is one, else start",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan of the run and stop")
    parser.add_argument(
        "--measure", action="store_true", help="a dry run that also times a few steps: hours of the run"
    )
    parser.add_argument(
        "--throughput",
        action="store_true",
        help="time some steps and a pattern update, report samples a second and stop",
    )
    parser.add_argument("--steps", type=_count, metavar="N", help="with --throughput: steps to time after a first (10)")
    parser.add_argument(
        "--json", action="store_true", help="with --dry-run or --throughput: one JSON object in place of text"
    )
    return parser


def _dry_run(config: Config, start: Path | None, options: argparse.Namespace, ranks: Ranks) -> int:
    from ipu_bert import assemble
    from ipu_bert.sizes.dry_run import render
    from ipu_bert.starting import check_place

    done, info = 0, None
    if start is not None:
        mine, info = {**identity(config), **assemble.text_identity(config)}, checkpoint.read_info(start)
        check_goes_on(start, mine, info, config.train.last_step)
        done = info["step"]
    elif ranks.first:  # it alone has looked for a checkpoint to go on from
        check_place(config)
    found = {**assemble.plan(config, ranks, info), "goes_on_from": start}
    lines = [render(found)]
    if options.measure:
        from ipu_bert.measure import measure

        times = measure(config, ranks, ranks.plain_from_first(done))
        found["measured"] = times.to_dict()
        lines += ["", times.render()]
    if ranks.first:
        answer(dumps(found) if options.json else "\n".join(lines))
    return 0


def _check(options: argparse.Namespace) -> None:
    """Raises ValueError for options that do not go together."""
    others = {"--dry-run": options.dry_run, "--measure": options.measure, "--resume": options.resume}
    for name, given in others.items():
        if options.throughput and given:
            raise ValueError(f"--throughput: expected without {name}: it times steps from a run's start and stops")
    if options.steps and not options.throughput:
        raise ValueError("--steps: expected with --throughput; train.stop_at=N ends a run after step N")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:10]) < 10**9:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, found {text!r}")
    return int(text)


def _throughput(config: Config, as_json: bool, steps: int, ranks: Ranks) -> int:
    from ipu_bert.throughput import throughput

    found = throughput(config, steps, ranks)
    if ranks.first:
        answer(dumps(found.to_dict()) if as_json else found.render())
    return 0


def _of_engine(config: Config, started: Ranks) -> Ranks:
    """The ranks that the engine's steps are shared by: those that torchrun or, of IPUs, poprun started.

    Raises ValueError where the other one started them.
    """
    if config.engine.name != "ipu":
        return started
    if started.count > 1:
        raise ValueError("engine.name: expected torch under torchrun, found ipu: poprun starts processes for IPUs")
    from ipu_bert.engines.ipu.instances import find_instances

    return find_instances(config.engine.device)


def _start(config: Config, resume: str | None, ranks: Ranks) -> tuple[Path | None, Found]:
    """The checkpoint that rank 0 finds to go on from, if any, once nobody else trains in the run's folder.

    Beside it what was there before it was looked for. Raises as `_checkpoint`.
    """
    folder, start = Path(config.run.dir), None
    found = settle(folder) if resume is not None and ranks.first else look(folder)
    if ranks.first:
        start = _checkpoint(config.run.dir, resume)
    path = ranks.text_from_first(str(start) if start else "")
    return Path(path) if path else None, found


def _begun(folder: str, resume: str | None, ranks: Ranks) -> Begun | None:
    """What the run that goes on in a folder began with, as rank 0 reads it; None where none goes on.

    That there is no checkpoint, where one was asked for, is told by `_start`.
    """
    found, path = None, None
    if ranks.first:
        with contextlib.suppress(checkpoint.CheckpointError):
            path = _checkpoint(folder, resume)
        found = begun(path) if path is not None else None
    values = ranks.plain_from_first(vars(found) if found else None)
    return Begun(**values) if values else None


def _checkpoint(folder: str, resume: str | None) -> Path | None:
    """What --resume means now for a run's folder, if anything.

    Raises CheckpointError where one was asked for and there is none.
    """
    if resume is None:
        return None
    try:
        return checkpoint.find(Path(folder if resume in ("latest", "auto") else resume))
    except checkpoint.CheckpointError:
        if resume == "auto":
            return None
        raise


def _train(config: Config, resume: str | None, ranks: Ranks) -> int:
    from ipu_bert.trainer import Trainer

    start, found = _start(config, resume, ranks)
    if config.engine.name == "ipu" and config.engine.device == "offline":
        return _compile(config, ranks)
    folder = Trainer(config, start, ranks, found).run()
    if ranks.first:
        say(f"report: {folder / 'report.md'}", sys.stdout)
    return 0


def _compile(config: Config, ranks: Ranks) -> int:
    """Compile for IPUs that are not there, into the executable cache."""
    from ipu_bert.trainer import Trainer

    trainer = Trainer(config, ranks=ranks)
    trainer.engine.compile(trainer.train_stream.share(0, *trainer.engine.share))
    kept_in = config.ipu.executable_cache or "no cache: set ipu.executable_cache"
    say(f"compiled; executables are kept in {kept_in}", sys.stdout)
    return 0


def _way_on(damaged: Path, options: argparse.Namespace) -> str:
    """What to do about a damaged checkpoint."""
    intact = checkpoint.intact_before(damaged)
    if intact is None:
        return "no intact checkpoint is before it"
    command = ["python", "run_pretraining.py", "--config", options.config, "--resume", str(intact), *options.overrides]
    return f"{intact} before it is intact: go on with {shlex.join(command)}"


def _fail(*lines: str) -> int:
    for line in lines:
        say(f"error: {printable(' '.join(line.splitlines()))}", sys.stderr)
    return 2
