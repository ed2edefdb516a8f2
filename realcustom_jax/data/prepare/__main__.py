"""Make a data set of captioned images: `python -m realcustom_jax.data.prepare --source S --data-dir DIR`.

A source is one of
  shards      webdataset or img2dataset .tar files with KEY.jpg, KEY.txt, KEY.json
  a folder    images with NAME.txt beside NAME.jpg, or with a .jsonl file of {"file_name": …, "text": …}
  parquet     tables with a column of encoded images and a column of captions
given as a folder, a file or a pattern, such as --source 'laion/{00000..00099}.tar'. Several are joined.

Filters drop images by size, aspect ratio, aesthetic score and caption length. Broken images and missing
captions are dropped too. The report at the end and in DIR/report.json gives the reasons and their counts.
Images are stored unchanged, unless --resize shrinks them. The train command reads the result:
--config.data.path=DIR.

An interrupted run resumes when it is started again. With --beam it runs as an Apache Beam pipeline; Beam's
options follow after --, and all workers must have access to DIR:
  … --beam -- --runner=FlinkRunner --flink_master=HOST:8081
With --encode MODEL, the model's VAE then runs over all images and, with --encode-text, its text encoders over
all captions; see realcustom_jax.data.encode.
"""

import argparse
import contextlib
import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from realcustom_jax.common.errors import UserError, exit_on_user_error
from realcustom_jax.common.files import disk_errors, write_json
from realcustom_jax.common.progress import Counter
from realcustom_jax.data.image_text import is_written, new_folder
from realcustom_jax.data.prepare.recipe import Recipe
from realcustom_jax.data.prepare.report import Report
from realcustom_jax.data.prepare.run_parts import run_beam, run_here
from realcustom_jax.data.prepare.shards import finish, open_job_folder, write_part
from realcustom_jax.data.prepare.sources import Names, Part, check_sources, list_parts

# A run stops early if too many examples are broken, but not before it has read this many.
_ENOUGH = 1000


def prepare(
    sources: list[str],
    data_dir: str | os.PathLike,
    recipe: Recipe,
    *,
    workers: int = 0,
    limit: int | None = None,
    max_bad_share: float = 0.05,
    beam_options: Sequence[str] | None = None,
) -> Report:
    """Read sources, filter their examples, and write an image_text data set with the sizes of its images.

    Args:
      sources: see `sources.list_parts`.
      data_dir: folder for the data set and report.json.
      recipe: the filters, and the format of the images.
      workers: processes; 0 uses this one.
      limit: number of examples to keep, from the first; None for all.
      max_bad_share: largest share of broken examples; above it no data set is made.
      beam_options: options of an Apache Beam pipeline; None runs on this machine.

    Returns:
      counts of the kept and dropped examples.

    Raises:
      UserError: `data_dir` holds a data set already, a source cannot be read, no example is left, or too many
        are broken. In the last two cases the report is still written.
    """
    final = new_folder(data_dir)
    check_sources(sources, recipe.names)
    parts = list_parts(sources)
    with disk_errors(data_dir):
        work = final.with_name(f"{final.name}.incomplete")
        done = open_job_folder(work, recipe)
        if done:
            print(f"resuming in {work}: {done} parts are done", flush=True)
        started = time.time()
        if beam_options is None:
            results = run_here(parts, recipe, work, workers)
        else:
            results = run_beam(parts, recipe, work, beam_options)
        with contextlib.closing(results):
            total, reports = _collect(results, recipe, work, limit, max_bad_share)
        _write_report(Path(data_dir), total, sources, recipe, time.time() - started)
        _check(total, recipe, max_bad_share)
        finish(work, reports, final)
    return total


def _collect(
    results: Iterator[tuple[Part, Report]],
    recipe: Recipe,
    work: Path,
    limit: int | None,
    max_bad_share: float,
) -> tuple[Report, list[Report]]:
    """Add up the reports of the parts, until the limit or too many broken examples are reached."""
    total, reports = Report(), []
    with Counter(None, "preparing", "part") as counter:
        for part, report in results:
            if limit is not None and total.count + report.count > limit:
                # Write the last part again, with only as many examples as are still missing.
                report = write_part(len(reports), part, recipe, str(work), limit - total.count)
            total.add(report)
            reports.append(report)
            counter.note(f"{total.count:,} images kept")
            counter.update()
            if total.count == limit or (total.read >= _ENOUGH and total.bad_share > max_bad_share):
                break
    return total, reports


def _check(total: Report, recipe: Recipe, max_bad_share: float) -> None:
    """Raise `UserError` if there are too many broken examples, or no example for a split."""
    # Many broken examples mean that something else is wrong, such as a wrong column or a bad download.
    if total.bad_share > max_bad_share:
        raise UserError(
            f"{total.bad:,} of {total.read:,} examples are broken ({total.bad_share:.1%}), more than "
            f"--max-bad-share {max_bad_share:g} allows; {total.worst()}"
        )
    if not total.count:
        print(total.text())
        raise UserError(f"none of the {total.read:,} examples that were read passed the filters")
    for split, other in (("validation", "smaller"), ("train", "larger")):
        wanted = split == "train" or recipe.validation
        if wanted and not total.kept.get(split):
            raise UserError(
                f"--validation {recipe.validation:g} leaves none of the {total.count:,} examples for the "
                f"split '{split}'; use a {other} share"
            )


def _write_report(data_dir: Path, total: Report, sources: list[str], recipe: Recipe, seconds: float) -> None:
    """Write report.json."""
    # JSON has no infinity.
    options = {key: None if value == math.inf else value for key, value in dataclasses.asdict(recipe).items()}
    values = {"sources": sources, "recipe": options, **total.to_json(), "seconds": round(seconds, 1)}
    write_json(data_dir / "report.json", values)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: write the data set and print the report."""
    with exit_on_user_error():
        arguments = sys.argv[1:] if arguments is None else arguments
        args, beam_options = _parse(arguments)
        recipe = _recipe(args)
        encoding = None
        if args.encode:
            from realcustom_jax.data.encode import encode_data_set, from_arguments

            # Check and load first: a mistake must not show only after hours of reading.
            _check_unwritten(args)
            encoding = from_arguments(args.encode, args)
        total = prepare(
            args.source,
            args.data_dir,
            recipe,
            workers=args.workers,
            limit=args.limit,
            max_bad_share=args.max_bad_share,
            beam_options=beam_options,
        )
        print(total.text())
        print(f"wrote {args.data_dir}, see {Path(args.data_dir) / 'report.json'}", flush=True)
        if encoding:
            encode_data_set(args.data_dir, encoding)


def _check_unwritten(args: argparse.Namespace) -> None:
    """Raise `UserError` if the data set already exists."""
    # Perhaps an earlier run was interrupted while encoding, so the message says how to resume that.
    if is_written(args.data_dir):
        raise UserError(
            f"'{args.data_dir}' holds a data set already; to resume storing its latents, run python -m "
            f"realcustom_jax.data.encode --data-dir {args.data_dir} --model {args.encode}, with the same "
            "options"
        )
    new_folder(args.data_dir)


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str] | None]:
    """Parse our options, and Beam's options after `--` (None without --beam)."""
    from realcustom_jax.data.encode import precision_given

    beam_options: list[str] = []
    # Beam's pipelines parse their own options, which differ from runner to runner.
    if "--" in arguments:
        end = arguments.index("--")
        arguments, beam_options = arguments[:end], arguments[end + 1 :]
    args = _parser().parse_args(arguments)
    if beam_options and not args.beam:
        raise UserError(f"options after -- are Beam's, such as {beam_options[0]}, and need --beam")
    if not args.encode and (args.encode_text or args.buckets or precision_given(args)):
        raise UserError(
            "--encode-text, --buckets, --dtype and --vae-dtype are options of the encoding: add --encode "
            "MODEL"
        )
    if not args.data_dir:
        raise UserError("--data-dir is empty, it needs a folder")
    if args.aesthetic_key is not None and args.min_aesthetic is None:
        raise UserError("--aesthetic-key names the score for --min-aesthetic: add --min-aesthetic")
    if args.quality is not None and args.format == "png":
        raise UserError("--quality is for jpeg and webp: png has none")
    if args.beam and args.limit is not None:
        raise UserError("--limit keeps the first examples, but --beam reads in no order; use one of them")
    return args, beam_options if args.beam else None


def _parser() -> argparse.ArgumentParser:
    # Imported here, because worker processes import this module and do not need JAX.
    from realcustom_jax.common.cli import CommandParser
    from realcustom_jax.data.encode import add_arguments

    parser = CommandParser("data.prepare", __doc__, "%(prog)s --source SOURCE --data-dir DIR [options]")
    add = parser.add_argument
    add("--source", action="append", required=True, metavar="SOURCE", help="may be given several times")
    add("--data-dir", required=True, metavar="DIR", help="folder for the data set")
    add(
        "--workers",
        type=_integer(0, 4096),
        default=os.cpu_count(),
        metavar="N",
        help="processes (%(default)s)",
    )
    add("--limit", type=_integer(1), metavar="N", help="keep the first N images")
    add(
        "--validation",
        type=_share,
        default=0.0,
        metavar="SHARE",
        help="share of examples in the split validation (%(default)s)",
    )
    add("--max-bad-share", type=_share, default=0.05, metavar="SHARE",
        help="largest share of broken examples; above it no data set is made (%(default)s)")  # fmt: skip
    add("--beam", action="store_true", help="run on Apache Beam; its options follow after --")
    group = parser.add_argument_group("filters").add_argument
    group("--min-side", type=_integer(1), default=1, metavar="PIXELS",
          help="smallest short side (%(default)s)")  # fmt: skip
    group(
        "--max-aspect", type=_number(1), default=math.inf, metavar="RATIO", help="largest aspect ratio (any)"
    )
    group("--min-aesthetic", type=_number(), metavar="SCORE", help="lowest aesthetic score (any)")
    group("--min-caption", type=_integer(1), default=1, metavar="N",
          help="fewest characters of a caption (%(default)s)")  # fmt: skip
    group("--max-caption", type=_integer(1), default=math.inf, metavar="N",
          help="most characters of a caption (any)")  # fmt: skip
    group = parser.add_argument_group("names of columns, and of fields in .json and .jsonl").add_argument
    group("--image-key", metavar="NAME", help="image or its file name (image, jpg, file_name, …)")
    group("--caption-key", metavar="NAME", help="caption (caption or text)")
    group("--aesthetic-key", metavar="NAME", help="aesthetic score (aesthetic_score)")
    group = parser.add_argument_group("format of the stored images").add_argument
    group(
        "--resize", type=_integer(1), metavar="PIXELS", help="shrink so that the short side is PIXELS (off)"
    )
    group("--format", choices=("jpeg", "webp", "png"), default="jpeg",
          help="format of images that must be encoded again (%(default)s)")  # fmt: skip
    group("--quality", type=_integer(1, 100), metavar="N", help="quality of jpeg and webp (95)")
    group = parser.add_argument_group("latents and text features, for training without encoders")
    group.add_argument("--encode", metavar="MODEL", help="model folder, hub id, or toybox (none)")
    add_arguments(group)
    return parser


def _recipe(args: argparse.Namespace) -> Recipe:
    """The recipe that the options describe."""
    if args.min_caption > args.max_caption:
        raise UserError(f"--min-caption {args.min_caption} is above --max-caption {args.max_caption}")
    # Most options have the names of the recipe's fields.
    fields = {field.name for field in dataclasses.fields(Recipe)} - {"names"}
    optional = ("aesthetic_key", "quality")  # the recipe has their defaults
    given = {
        name: value
        for name, value in vars(args).items()
        if name in fields and not (name in optional and value is None)
    }
    return Recipe(Names(args.image_key, args.caption_key), **given)


def _integer(least: int, most: float = math.inf) -> Callable[[str], int]:
    """Type of an option: a whole number in a range."""

    def parse(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            upper = "" if most == math.inf else f" and at most {most}"
            raise argparse.ArgumentTypeError(f"must be at least {least}{upper}, not {value}")
        return value

    parse.__name__ = "whole number"  # argparse prints it: "invalid whole number value: …"
    return parse


def _number(least: float = -math.inf) -> Callable[[str], float]:
    """Type of an option: a finite number, at least `least`."""

    def parse(text: str) -> float:
        value = float(text)
        if not least <= value < math.inf:  # also rejects NaN
            raise argparse.ArgumentTypeError(
                f"must be a number{'' if least < 0 else f' of at least {least}'}, not {text}"
            )
        return value

    parse.__name__ = "number"
    return parse


def _share(text: str) -> float:
    """Type of an option: a share of 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, not {text}")
    return value


if __name__ == "__main__":
    main()
