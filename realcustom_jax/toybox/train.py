"""The command `python -m realcustom_jax.toybox.train`: the toybox's model from nothing, in one go."""

import argparse
import dataclasses
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import realcustom_jax
from realcustom_jax.common.cli import CommandParser, run_command
from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import make_folder
from realcustom_jax.common.rules import Rule
from realcustom_jax.weights.parts import TOYBOX

STORY = """\
Trains the toybox's model from nothing: draws the scenes, then runs all stages, each from the model of the one
before. On two CPU cores that takes eleven hours. The same command with the same --out continues where it
stopped.

--out gets data/, a folder for each stage, and at the end model/, which rc.load reads. Options after "--" go
to each stage's train command.

  python -m realcustom_jax.toybox.train --out runs/toybox
  python -m realcustom_jax.toybox.train --out runs/large --size large --minutes 9
"""

_MINUTES = Rule("", float, 0, 10**6, above_0="nothing would run")
_COUNT = Rule("", int, 1, 10**8)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A run of the train command.

    Attributes:
      name: its folder below --out.
      config: stage of the config file.
      changes: options that differ from it.
    """

    name: str
    config: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# `fresh` empty: customize goes on with the weights that RealCustom adds. The curriculum has ended by then.
_AGAIN = {"fresh": "", "curriculum.start": 1.0}
CHAIN = (
    Stage("vae", "vae"),
    Stage("clip", "clip"),
    Stage("instance", "instance"),
    Stage("instance2", "instance", {"steps": 460, "seed": 1}),
    Stage("base", "base"),
    Stage("customize", "customize", {"steps": 2500, "optimizer.end_fraction": 1.0}),
    Stage("customize2", "customize", {**_AGAIN, "seed": 1}),
    Stage("customize3", "customize", {**_AGAIN, "seed": 2, "steps": 4000}),
    Stage("customize4", "customize", {**_AGAIN, "seed": 3, "steps": 2500, "data.subjects": 2}),
)


# The large model learns faster, on a GPU: one run of customize, with two references at once.
LARGE = (
    Stage("vae", "vae"),
    Stage("clip", "clip"),
    Stage("instance", "instance"),
    Stage("base", "base"),
    Stage("customize", "customize"),
)


@dataclasses.dataclass(frozen=True)
class Size:
    """A size of the model.

    Attributes:
      config: file in configs/.
      pixels: side of its images.
      chain: the stages, in order.
      averaged: names of the stages whose mean is the model; empty for the model of the last stage.
    """

    config: str
    pixels: int
    chain: tuple[Stage, ...]
    averaged: tuple[str, ...] = ()


SIZES = {
    "small": Size("tiny.py", 64, CHAIN, averaged=("customize3", "customize4")),
    "large": Size("large.py", 128, LARGE),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """A command of the chain.

    Attributes:
      name: shown when it starts.
      command: module and arguments, after "python -m".
      result: the file that exists when it has ended; the chain makes it if the command does not.
    """

    name: str
    command: tuple[str, ...]
    result: Path


def main() -> None:
    """Run the command line."""
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    args = _arguments(given[:end])
    make_folder(args.out, "--out")
    deadline = None if args.minutes is None else time.monotonic() + 60 * args.minutes
    size = SIZES[args.size]
    for task in tasks(args.out, size, args.examples, args.steps, given[end + 1 :]):
        if task.result.exists():
            continue
        if task.name == "scenes":
            shutil.rmtree(args.out / "data", ignore_errors=True)  # left by an interrupted run
        print(f"{task.name}: python -m {' '.join(task.command)}", flush=True)
        if not run(task, deadline):
            print("stopped: run the same command again to continue", flush=True)
            return
    print(f"the model is {finish(args.out, size)}", flush=True)


def _arguments(given: Sequence[str]) -> argparse.Namespace:
    """The checked arguments of the command."""
    parser = CommandParser("toybox.train", STORY)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the runs")
    parser.add_argument("--size", choices=tuple(SIZES), default="small", help="of the model (%(default)s)")
    parser.add_argument("--minutes", type=float, metavar="N", help="stop after N minutes, to continue later")
    parser.add_argument("--steps", type=int, metavar="N", help="steps of each stage, to try the chain")
    parser.add_argument(
        "--examples", type=int, default=100_000, metavar="N", help="training scenes (%(default)s)"
    )
    args = parser.parse_args(given)
    _COUNT.check("--examples", args.examples)
    if args.steps is not None:
        _COUNT.check("--steps", args.steps)
    if args.minutes is not None:
        _MINUTES.check("--minutes", args.minutes)
    return args


def tasks(
    out: Path, size: Size, examples: int, steps: int | None = None, flags: Sequence[str] = ()
) -> list[Task]:
    """The commands of the chain, in order.

    Args:
      out: folder of the runs.
      size: of the model.
      examples: training scenes.
      steps: steps of each stage; None for its own number.
      flags: options for each train command.
    """
    data = out / "data"
    draw = ("realcustom_jax.toybox", f"--data-dir={data}", f"--train={examples}", f"--size={size.pixels}")
    made = [Task("scenes", draw, out / "scenes_drawn")]
    before: Path | None = None
    for stage in size.chain:
        changes = {"data.path": str(data), **stage.changes}
        if steps is not None:
            changes["steps"] = steps
        if before is not None:
            changes["init_from"] = str(before)
        if stage.config in ("base", "customize"):
            changes["data.encoded"] = True
            if stage.config == "base":  # the VAE is trained: its latents can be stored
                command = ("realcustom_jax.data.encode", f"--data-dir={data}", f"--model={before}")
                made.append(Task("latents", command, out / "latents_stored"))
        options = [f"--config.{name}={value}" for name, value in changes.items()]
        command = ("realcustom_jax.train", f"--config={_config_file(size)}:{stage.config}",
                   f"--workdir={out / stage.name}", *options, *flags)  # fmt: skip
        before = out / stage.name / "model"
        made.append(Task(stage.name, command, before / "model_index.json"))
    if size.averaged:
        made.append(_mean(out, size.averaged))
    few = () if steps is None else (f"--steps={steps}", "--images=200")
    recogniser = out / "recogniser"
    command = ("realcustom_jax.toybox.train_recogniser", f"--out={recogniser}", *few)
    made.append(Task("recogniser", command, recogniser / "model.safetensors"))
    return made


def _mean(out: Path, stages: Sequence[str]) -> Task:
    """The command that averages the models of `stages`."""
    first, *others = (out / name / "model" for name in stages)
    command = ("realcustom_jax.convert", f"--model={first}", *(f"--average={other}" for other in others),
               f"--out={out / 'mean'}", "--dtype=float16")  # fmt: skip
    return Task("mean", command, out / "mean" / "model_index.json")


def run(task: Task, deadline: float | None) -> bool:
    """Run a task; returns whether it ended, rather than being stopped at the deadline.

    Args:
      task: the task.
      deadline: in seconds of `time.monotonic`; None for none.

    Raises:
      UserError: if it failed.
    """

    def end(*_: Any) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, end)
    process = subprocess.Popen([sys.executable, "-m", *task.command])
    try:
        status = process.wait(None if deadline is None else max(deadline - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        process.terminate()  # a training run saves a checkpoint first
        process.wait()
        return False
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        signal.signal(signal.SIGTERM, previous)
    if status:
        raise UserError(f"{task.name} ended with status {status}; what it said is above")
    if task.command[0] == "realcustom_jax.train" and not task.result.exists():
        return False  # it was stopped by SIGTERM from elsewhere
    task.result.touch()
    return True


def finish(out: Path, size: Size) -> Path:
    """Join the chain's model, the recogniser and the shipped model's sampling options in `out`/model."""
    model = out / "model"
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(out / "mean" if size.averaged else out / size.chain[-1].name / "model", model)
    matcher = model / "matcher"
    matcher.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy2(out / "recogniser" / name, matcher / name)
    # Training does not choose them: studies on an earlier model did.
    shutil.copy2(TOYBOX / "realcustom" / "sampling.json", model / "realcustom" / "sampling.json")
    return model


def _config_file(size: Size) -> Path:
    path = Path(realcustom_jax.__file__).resolve().parents[1] / "configs" / size.config
    if not path.is_file():
        raise UserError(f"{path} is missing: run this in a checkout of the repository")
    return path


if __name__ == "__main__":
    run_command(main)
