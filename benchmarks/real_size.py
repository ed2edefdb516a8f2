"""Time and memory of SD1.5 or SDXL with RealCustom at full size, with random weights:

  python benchmarks/real_size.py --family sd15 [--size 512] [--steps 2] [--only sample,train] [--keep DIR]

Follows a user's workflow, one process per phase:

  convert  joins the parts of the model in one folder
  sample   loads the folder; samples one subject (a tall photo) and two, each with and without compiling
  cached   samples in a new process with the programs that `sample` compiled
  prepare  prepares photos for training
  encode   stores their latents and text
  train    trains for three steps and is killed
  resume   resumes the run for two more steps and is killed
  export   exports the adapter of the unfinished run
  adapter  samples with that adapter

Prints seconds, compile seconds and peak memory of each phase. With --json the last line is one JSON object.

SDXL in float32 does not fit 24 GB, so sampling uses `offload`. Its training step does not fit either, so a
smaller UNet trains (2 transformer blocks where SDXL has 10) at 256 pixels from stored latents and text.
`python -m realcustom_jax.aot --config configs/sdxl.py` plans the whole step.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from _real_weights import write_parts, write_photos

GROUPS = ("convert", "sample", "encode", "train", "export")
_HERE = Path(__file__).parent
_TRAIN_SIDE = {"sd15": 512, "sdxl": 256}
_TRAINED_BLOCKS = 2  # instead of SDXL's ten
_CAPTIONS = ("a dog on the beach", "a cat in the snow", "a robot at sunset", "a cup in a garden")


class Phases:
    """Runs phases in processes and collects their figures."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.figures: dict[str, dict[str, float]] = {}
        self._environment = os.environ | {
            "REALCUSTOM_JAX_CACHE": str(folder / "cache"),
            "TOKENIZERS_PARALLELISM": "false",
        }

    def run(
        self, name: str, module: str, *arguments: str | Path, until: Callable[[], bool] | None = None
    ) -> None:
        """Run `python -m module` and store its figures under `name`, or under the phases that it reports.

        Args:
          name: name of the phase.
          module: module to run, or a .py file.
          arguments: command-line arguments of the module.
          until: when this returns true, SIGKILL ends the process and its loader workers.
        """
        report = self.folder / f"{name}.json"
        report.unlink(missing_ok=True)
        command = [sys.executable, str(_HERE / "_measured.py"), str(report), module, *map(str, arguments)]
        print(f"--- {name}: {module} {' '.join(map(str, arguments))}", flush=True)
        started = time.perf_counter()
        process = subprocess.Popen(
            command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        watch = _Watch(process.pid, until)
        lines = []
        for line in process.stdout:
            lines.append(line)
            print(f"    {line}", end="", flush=True)
        status, seconds = process.wait(), time.perf_counter() - started
        peak = watch.stop()
        if status and not watch.killed:
            raise SystemExit(f"{name} ended with status {status}:\n{''.join(lines[-20:])}")
        reported = json.loads(report.read_text()) if report.exists() else {}
        inner_phases = reported.pop("phases", {})
        whole = {
            "seconds": seconds,
            "compile_seconds": reported.get("compile_seconds", 0.0),
            "peak_gib": peak,
        }
        self.figures |= {key: {**whole, **values} for key, values in inner_phases.items()} or {name: whole}


class _Watch:
    """Watches a process and its children twice a second: tracks their peak memory, kills them on request."""

    def __init__(self, pid: int, until: Callable[[], bool] | None):
        self._pid, self._until, self._peak, self._stopped = pid, until, 0, threading.Event()
        self.killed = False  # true if this object killed it; false if, for example, the kernel did
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(0.5):
            self._peak = max(self._peak, _session_memory(self._pid))
            if self._until and self._until() and not self.killed:
                self.killed = True
                with contextlib.suppress(ProcessLookupError):  # the process has just ended
                    os.killpg(self._pid, signal.SIGKILL)

    def stop(self) -> float:
        """Stop watching; gives the peak memory in GiB."""
        self._stopped.set()
        self._thread.join()
        return self._peak / 2**30


def _session_memory(session: int) -> int:
    """Bytes used by all processes of a session; shared pages count once per process."""
    total = 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) == session:
                total += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError):
            continue
    return total


def main() -> None:
    args = _parse()
    folder = Path(args.keep or tempfile.mkdtemp(prefix="real_size_"))
    folder.mkdir(parents=True, exist_ok=True)
    groups = args.only.split(",")
    phases, ok = Phases(folder), False
    try:
        _run(phases, args, groups)
        ok = True
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
        print(_table(args, phases.figures))
        if args.json:
            print(json.dumps({"family": args.family, "ok": ok, "phases": phases.figures}))


def _run(phases: Phases, args: argparse.Namespace, groups: Sequence[str]) -> None:
    folder, model = phases.folder, phases.folder / "model"
    photos = _photos(folder / "photos")
    if "convert" in groups or ("sample" in groups and not model.exists()):
        shutil.rmtree(model, ignore_errors=True)
        phases.run("convert", "realcustom_jax.convert", *_convert(args.family, folder / "parts", model))
    sampling = ["--size", str(args.size), "--steps", str(args.steps), "--photos", photos[0], photos[1]]
    sampling += ["--offload"] if args.family == "sdxl" else []
    requests = str(_HERE / "_real_requests.py")
    if "sample" in groups:
        shutil.rmtree(folder / "cache", ignore_errors=True)
        phases.run("sample", requests, "--model", model, *sampling)
        phases.run("cached", requests, "--model", model, *sampling, "--cached")
    work, data = folder / "run", folder / "data"
    trains = "train" in groups or ("export" in groups and not work.exists())
    encodes = "encode" in groups or (trains and not data.exists())
    trained = model
    if args.family == "sdxl" and (trains or encodes or "export" in groups):
        trained = folder / "trained"
        if not trained.exists():
            convert = _convert(args.family, folder / "trained_parts", trained, _TRAINED_BLOCKS)
            phases.run("convert_trained", "realcustom_jax.convert", *convert)
    side = min(args.train_size or _TRAIN_SIDE[args.family], args.size)
    trained = _at_size(trained, folder / f"model_{side}", side) if trained.exists() else trained
    if encodes:
        shutil.rmtree(data, ignore_errors=True)
        source = ["--source", folder / "photos", "--data-dir", data]
        phases.run("prepare", "realcustom_jax.data.prepare", *source, "--workers", "2")
        encode = ["--data-dir", data, "--model", trained, "--encode-batch", "1", "--encode-text"]
        phases.run("encode", "realcustom_jax.data.encode", *encode)
    if trains:
        shutil.rmtree(work, ignore_errors=True)
        train = _train_arguments(args.family, trained, data, work, side)
        phases.run("train", "realcustom_jax.train", *train, until=lambda: _saved(work, 3))
        phases.run("resume", "realcustom_jax.train", *train, until=lambda: _saved(work, 5))
    if "export" in groups:
        adapter = folder / "adapter"
        shutil.rmtree(adapter, ignore_errors=True)
        phases.run("export", "realcustom_jax.export", "--workdir", work, "--out", adapter)
        phases.run("adapter", requests, "--model", trained, *sampling, "--realcustom", adapter)


def _convert(family: str, parts: Path, model: Path, blocks: int | None = None) -> list[str | Path]:
    """Arguments of `convert`; writes the family's parts first if they are missing."""
    written = write_parts(family, parts, blocks)
    towers = [x for tower in written.towers for x in ("--image-encoder", tower)]
    return [
        "--model",
        written.base,
        "--realcustom",
        written.realcustom,
        *towers,
        "--out",
        model,
        "--dtype",
        "float16",
    ]


def _train_arguments(family: str, model: Path, data: Path, work: Path, side: int) -> list[str]:
    """Arguments of `train`: batch 1, float32, a checkpoint each step, the shapes of the trained model."""
    shapes = {"model.unet.sample_size": side // 8}
    if family == "sdxl":
        shapes["model.unet.transformer_layers_per_block"] = (1, 2, _TRAINED_BLOCKS)
    values = {
        **shapes,
        "init_from": model, "data.path": data, "steps": 100, "batch_size": 1, "log_every": 1,
        "checkpoint_every": 1, "compute_dtype": "float32", "data.workers": 2, "data.prefetch": 1,
        "frozen_dtype": "float32",
        "data.encoded": family == "sdxl", "data.encoded_text": family == "sdxl", "checkpoints_kept": 1,
    }  # fmt: skip
    flags = [f"--config.{name}={value}" for name, value in values.items()]
    config = _HERE.parent / "configs" / f"{family}.py"
    return ["--config", str(config), "--workdir", str(work), *flags]


def _saved(work: Path, step: int) -> bool:
    """Whether a run has a checkpoint of this step or a later one."""
    return any(path.name.isdecimal() and int(path.name) >= step for path in (work / "checkpoints").glob("*"))


def _at_size(model: Path, folder: Path, side: int) -> Path:
    """Make a copy of the model for another image size: a new UNet config, symlinks for the rest."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "unet").mkdir(parents=True)
    for path in model.iterdir():
        if path.name != "unet":
            (folder / path.name).symlink_to(path)
    for path in (model / "unet").iterdir():
        if path.name != "config.json":
            (folder / "unet" / path.name).symlink_to(path)
    values = json.loads((model / "unet" / "config.json").read_text()) | {"sample_size": side // 8}
    (folder / "unet" / "config.json").write_text(json.dumps(values))
    return folder


def _photos(folder: Path) -> list[Path]:
    """Write 40 photos, each with its caption in a .txt file."""
    paths = write_photos(folder, 40)
    for i, path in enumerate(paths):
        path.with_suffix(".txt").write_text(_CAPTIONS[i % len(_CAPTIONS)] + "\n")
    return paths


def _table(args: argparse.Namespace, figures: dict[str, dict[str, float]]) -> str:
    rows = [
        f"| {args.family}, {args.size} pixels, {args.steps} steps | seconds | compiling | peak so far, GiB |",
        "|---|---|---|---|",
    ]
    rows += [
        f"| {name} | {x['seconds']:.1f} | {x['compile_seconds']:.1f} | {x['peak_gib']:.1f} |"
        for name, x in figures.items()
    ]
    return "\n".join(rows)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--family", required=True, choices=("sd15", "sdxl"))
    parser.add_argument("--size", type=int, default=512, help="side of sampled images (%(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="sampling steps (%(default)s)")
    parser.add_argument("--train-size", type=int, help="side of training images (sd15 512, sdxl 256)")
    parser.add_argument("--only", default=",".join(GROUPS), help="phases to run, out of %(default)s")
    parser.add_argument("--keep", metavar="DIR", help="working folder; kept, and its files are reused")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args()
    unknown = set(args.only.split(",")) - set(GROUPS)
    if unknown:
        parser.error(f"--only accepts {', '.join(GROUPS)}, not {', '.join(sorted(unknown))}")
    return args


if __name__ == "__main__":
    main()
