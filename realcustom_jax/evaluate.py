"""The command `python -m realcustom_jax.evaluate`: measure a model on the toybox or on DreamBench."""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from realcustom_jax.common.cli import CommandParser, run_command
from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import make_folder
from realcustom_jax.common.hosts import connect
from realcustom_jax.common.progress import Counter
from realcustom_jax.evaluation import dreambench, plots
from realcustom_jax.evaluation.dino import load_dino
from realcustom_jax.evaluation.dreambench_data import read_cases
from realcustom_jax.evaluation.dreambench_report import write_report
from realcustom_jax.evaluation.judge import SHIPPED, Judge
from realcustom_jax.evaluation.reward import load_image_reward
from realcustom_jax.evaluation.scores import Scorer
from realcustom_jax.evaluation.tables import table
from realcustom_jax.evaluation.toybox import (
    CONTRACT,
    MEASURES,
    SETTINGS,
    Benchmark,
    Results,
    make_cases,
    means,
)
from realcustom_jax.generate import Generator
from realcustom_jax.inputs import encoder_pair
from realcustom_jax.inputs.checks import check_has_effect
from realcustom_jax.inputs.prompts import text_or_file
from realcustom_jax.options import add_option_flags, given_options
from realcustom_jax.pipeline import load_model, model_settings
from realcustom_jax.weights.flags import add_model_flags, given_model

STORY = """\
Measures whether images show the given subject and obey the prompt.

The toybox benchmark uses subjects that no training has seen, on all backgrounds. It makes images from the
text alone, with the subject acting everywhere (no mask), and with the full method. A judge network, which
plays no part in making the images, checks whether an image shows the right one of 20 subjects of the same
word, the right word and the right background, and finds the region of the subject. Leakage is the change
outside of the subject, compared with the text-only image of the same seed. The row "judge" measures real
scenes; their leakage compares with the same scenes with another subject of the word, so even a perfect image
has about this much. With --json, the last line of the output is a JSON object.

  python -m realcustom_jax.evaluate --model toybox --requests 200 --json

DreamBench is the folder of google/dreambooth: 30 subjects × 25 prompts × 4 seeds. Images and scores that are
already in --out are not made again, and with --multihost all hosts of a pod share the work. The results are
one JSON file per image, a table and a plot.

  python -m realcustom_jax.evaluate --model FOLDER --dreambench dreambooth --out runs/dreambench \\
    --clip openai/clip-vit-base-patch32 --dino facebook/dino-vits16
"""


# Options of one benchmark, which the other one would ignore.
_TOYBOX = ("requests", "judge")
_DREAMBENCH = ("out", "seeds", "subjects", "clip", "dino", "image_reward", "masks")


def main() -> None:
    """Run the command line."""
    parser = _parser()
    args = parser.parse_args()
    _check_has_effect(args, parser)
    if args.requests < 1 or args.batch < 1:
        raise UserError(f"--requests and --batch must be 1 or more, not {args.requests} and {args.batch}")
    connect(args.multihost)  # must come before anything uses JAX's devices
    if args.dreambench:
        _dreambench(args)
    else:
        _toybox(args)


def _check_has_effect(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Raise `UserError` for an option that would be ignored."""
    ignored, why = (_TOYBOX, "is for the toybox, not with") if args.dreambench else (_DREAMBENCH, "needs")
    for name in ignored:
        if getattr(args, name) != parser.get_default(name):
            raise UserError(f"--{name.replace('_', '-')} {why} --dreambench")
    if args.masks and not (args.clip or args.dino):
        raise UserError("--masks needs --clip or --dino, which score the subject alone")


def _generator(args: argparse.Namespace, options: Mapping[str, Any]) -> Generator:
    """Load the model, after checking that each given option has an effect on it."""
    _, _, defaults = model_settings(args)
    check_has_effect(options, defaults.changed(options))
    return Generator(load_model(args), args.batch)


# ---------------------------------------------------------------- the toybox


def _toybox(args: argparse.Namespace) -> None:
    """Run the toybox benchmark and print its table."""
    options = given_options(args)
    negative = text_or_file("--negative-prompt", args.negative_prompt)
    judge = Judge.load(args.judge)
    generator = _generator(args, options)
    pipe = generator.pipe
    pair = encoder_pair.own_pair(pipe.models, pipe.params, pipe.tokenizers)
    benchmark = Benchmark(make_cases(args.requests), judge, pair)
    rows: dict[str, Results] = {}
    plain = None
    with Counter(len(SETTINGS) * args.requests, "sampling", "image") as counter:
        for name, setting in SETTINGS.items():
            counter.note(name)
            setting = dataclasses.replace(
                setting, options={**options, **setting.options}, negative_prompt=negative
            )
            images, masks = benchmark.make(generator, setting, counter.update)
            if plain is None:  # the first setting is text only; leakage compares the others with it
                plain, rows[name] = images, benchmark.measure(images)
            else:
                rows[name] = benchmark.measure(images, masks, plain)
    rows["judge"] = benchmark.ceiling()
    print(f"{args.requests} requests; brackets show the bootstrap 95 % interval\n")
    print(table(rows, MEASURES))
    if args.json:
        print(json.dumps({name: means(results, CONTRACT) for name, results in rows.items()}))


# ---------------------------------------------------------------- DreamBench


def _dreambench(args: argparse.Namespace) -> None:
    """Run DreamBench: make missing images, score them, and write the report."""
    for name in ("seeds", "subjects"):
        values = getattr(args, name) or []
        if len(set(values)) < len(values):
            raise UserError(f"--{name} has one value twice: {' '.join(map(str, values))}")
    cases = read_cases(Path(args.dreambench), args.subjects, args.seeds)
    options = given_options(args)
    negative = text_or_file("--negative-prompt", args.negative_prompt)
    settings = {"model": str(args.model), **options, **given_model(args)}
    if negative:
        settings["negative_prompt"] = negative
    # Mistakes first: loading the models takes minutes.
    make_folder(args.out, "--out")
    dreambench.check_settings(args.out / dreambench.SETTINGS, settings)
    if args.clip:
        plots.check_plots()
    scorer = _scorer(args)
    own = dreambench.own_share(cases)
    made = dreambench.make_missing(own, args.out, lambda: _generator(args, options), options, negative)
    scored = dreambench.score_missing(own, args.out, scorer)
    print(f"{made} images made and {scored} scored of {len(own)}", flush=True)
    if not scorer.measures:
        print("no scores: --clip, --dino and --image-reward score images", flush=True)
    if jax.process_count() > 1:
        # The report needs the files of all hosts, which must share the folder.
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("dreambench")
    if scorer.measures and jax.process_index() == 0:
        text, files = write_report(cases, args.out, scorer.measures, settings)
        print(f"\n{text}\n{' '.join(map(str, files))}")
        if args.json:
            results = [dreambench.read_result(args.out, case)["scores"] for case in cases]
            print(json.dumps({m: float(np.mean([r[m] for r in results])) for m in scorer.measures}))


def _scorer(args: argparse.Namespace) -> Scorer:
    """The scorer with the models that the options name."""
    return Scorer(
        encoder_pair.load_pair(args.clip) if args.clip else None,
        load_dino(args.dino) if args.dino else None,
        load_image_reward() if args.image_reward else None,
        args.masks,
        args.clip or "",
        args.dino or "",
    )


# ---------------------------------------------------------------- the command line


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("evaluate", STORY, "%(prog)s [--model FOLDER] [--dreambench FOLDER] [options]")
    parser.add_argument(
        "--multihost", action="store_true", help="share the work with the other hosts of a TPU pod"
    )
    parser.add_argument("--json", action="store_true", help="print the means as a JSON object at the end")
    parser.add_argument(
        "--batch", type=int, default=8, metavar="N", help="images per batch and device (%(default)s)"
    )
    toybox = parser.add_argument_group("the toybox")
    toybox.add_argument(
        "--requests", type=int, default=208, metavar="N", help="images of each setting (%(default)s)"
    )
    toybox.add_argument(
        "--judge", type=Path, default=SHIPPED, metavar="FILE",
        help="judge from evaluation.train_judge (the shipped one)",
    )  # fmt: skip
    bench = parser.add_argument_group("DreamBench")
    bench.add_argument("--dreambench", metavar="FOLDER", help="folder in the layout of google/dreambooth")
    bench.add_argument(
        "--out",
        type=Path,
        default=Path("runs/dreambench"),
        metavar="DIR",
        help="folder of all results (%(default)s)",
    )
    bench.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2, 3], metavar="N", help="noise seeds (0 1 2 3)"
    )
    bench.add_argument("--subjects", nargs="+", metavar="NAME", help="names of subjects (all 30)")
    bench.add_argument("--clip", metavar="FOLDER", help="CLIP for CLIP-T and CLIP-I, a folder or hub id")
    bench.add_argument("--dino", metavar="FOLDER", help="DINO for DINO-I, a folder or hub id")
    bench.add_argument(
        "--image-reward", action="store_true", help="score with ImageReward (needs the package image-reward)"
    )
    bench.add_argument(
        "--masks", type=Path, metavar="DIR",
        help="also score the subject alone, by masks SUBJECT/PHOTO.png and SUBJECT/NUMBER_SEED.png in DIR",
    )  # fmt: skip
    parser.add_argument(
        "--negative-prompt", default="", metavar="TEXT",
        help="what no image should show, or @FILE with that text",
    )  # fmt: skip
    add_model_flags(parser)
    parser.set_defaults(model="toybox")
    add_option_flags(parser)
    return parser


if __name__ == "__main__":
    run_command(main)
