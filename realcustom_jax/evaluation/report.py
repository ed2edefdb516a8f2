"""The command `python -m realcustom_jax.evaluation.report`: the paper's tables on the toybox."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from realcustom_jax.common.cli import CommandParser, run_command
from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import write_text
from realcustom_jax.evaluation import plots
from realcustom_jax.evaluation.judge import SHIPPED, Judge
from realcustom_jax.evaluation.report_order import differences_table, order_table
from realcustom_jax.evaluation.report_runs import Runs
from realcustom_jax.evaluation.report_settings import CEILING, GROUPS, SCOPES
from realcustom_jax.evaluation.tables import TITLES, table
from realcustom_jax.evaluation.toybox import Benchmark, Results, make_cases
from realcustom_jax.generate import Generator
from realcustom_jax.inputs.encoder_pair import own_pair
from realcustom_jax.pipeline import add_precision_flags, load

STORY = """\
Runs the ablations of the paper's tables 2 and 3 on the toybox benchmark and writes evaluation.md and plots.

The raw values of each setting are kept in --runs: a report that was cut off goes on, and one that is complete
takes seconds. What stands below the marker in evaluation.md is written by hand and stays.

  python -m realcustom_jax.evaluation.report --model toybox --out docs
"""

MARKER = "<!-- Below is written by hand; everything above is made by `make report`. -->"
GROUND_TRUTH = ("identity_top1", "background_top1", "word_top1", "mask_iou", "leakage")
CLIP = ("clip_t", "clip_i", "clip_i_segmented")


def main() -> None:
    parser = CommandParser("evaluation.report", STORY)
    parser.add_argument(
        "--model", default="toybox", metavar="FOLDER", help="a toybox model (the shipped one)"
    )
    parser.add_argument(
        "--requests", type=int, default=208, metavar="N", help="of each setting (%(default)s)"
    )
    add_precision_flags(parser)
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="made at once (%(default)s)")
    parser.add_argument("--judge", type=Path, default=SHIPPED, metavar="FILE", help="the shipped one")
    parser.add_argument("--runs", type=Path, default=Path("runs/report"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="DIR", help="(%(default)s)")
    args = parser.parse_args()
    if args.requests < 2 or args.batch < 1:
        raise UserError(
            f"--requests must be 2 or more and --batch 1 or more, not {args.requests} and {args.batch}"
        )
    plots.check_plots()
    generator = Generator(load(args.model, args.dtype, vae_dtype=args.vae_dtype), args.batch)
    pipe = generator.pipe
    pair = own_pair(pipe.models, pipe.params, pipe.tokenizers)
    benchmark = Benchmark(make_cases(args.requests), Judge.load(args.judge), pair)
    runs = Runs.open(args.runs, benchmark, generator)
    groups = {
        title: {name: runs.results(name, row.setting) for name, row in rows.items()}
        for title, rows in GROUPS.items()
    }
    for path in write_report(args.out, groups, runs.ceiling(), args.requests):
        print(path)


def write_report(
    out: Path, groups: Mapping[str, Mapping[str, Results]], ceiling: Results, requests: int
) -> list[Path]:
    """Write the Markdown and the plots.

    Args:
      out: their folder.
      groups: {title: {row: {measure: a value for each request}}}, as `GROUPS`.
      ceiling: of the judge, on real scenes.
      requests: how many.

    Returns:
      the files.
    """
    page, scope, trade = (out / f"evaluation{name}" for name in (".md", "_scope.png", "_tradeoff.png"))
    parts = [_story(requests)]
    for title, rows in groups.items():
        main = "full" in rows
        parts += [f"## {title}\n", table({**rows, CEILING: ceiling} if main else rows, GROUND_TRUTH)]
        parts += [table({**rows, "real scenes": ceiling} if main else rows, CLIP)]
        parts += [differences_table(rows)] if main else []
    parts += ["## Against the paper\n", order_table(groups)]
    parts += [f"![What γ_scope trades]({scope.name})\n", f"![All settings]({trade.name})\n"]
    before = page.read_text(encoding="utf-8") if page.is_file() else ""
    by_hand = before.split(MARKER, 1)[1] if MARKER in before else "\n"
    write_text(page, "\n".join(parts) + f"\n{MARKER}{by_hand}")
    _plot_scope(scope, groups["The influence scope"])
    _plot_trade(trade, groups)
    return [page, scope, trade]


def _story(requests: int) -> str:
    return f"""# What the method is worth, measured in the toybox

{requests} requests, each a held-out subject on a background, all words and backgrounds in turn, with fixed
seeds. In brackets is the bootstrap 95 % interval over requests. A judge that never conditioned an image says
which of 20 subjects of the same word an image shows (identity top-1, 5 % by chance), its background, its word
and where the subject is. Mask IoU compares the last mask with that region, and, for the judge itself, its
region with the exact one. Leakage is the mean absolute change of pixels, as a share of their range, against
the text-only image of the same seed, where neither image has the subject; that of a real scene is against
the same scene with another subject of the word, and so about what even a perfect image has. CLIP-T and
CLIP-I are by the model's own towers, which also conditioned the images; segmented means that all but the
subject is white.
"""


def _plot_scope(path: Path, rows: Mapping[str, Results]) -> None:
    """What γ_scope trades: measures at each of its values, with intervals."""
    values = {}
    for measure in ("identity_top1", "clip_i", "clip_t", "leakage"):
        column = [rows[f"γ_scope {scope}"][measure] for scope in SCOPES]
        if all(found is not None for found in column):  # without a CLIP pair there are two
            values[TITLES[measure]] = column
    plots.panels(path, list(SCOPES), values, "γ_scope")


def _plot_trade(path: Path, groups: Mapping[str, Mapping[str, Results]]) -> None:
    """Similarity against controllability, all settings; by the background where there is no CLIP pair."""
    known = all(row["clip_t"] is not None for rows in groups.values() for row in rows.values())
    measure = "clip_t" if known else "background_top1"
    points = {
        title: {
            name: (float(np.mean(row[measure])), float(np.mean(row["identity_top1"])))
            for name, row in rows.items()
        }
        for title, rows in groups.items()
    }
    across = f"{TITLES[measure]}: the prompt is obeyed"
    plots.scatter(path, points, across, "identity top-1: the subject is kept")


if __name__ == "__main__":
    run_command(main)
