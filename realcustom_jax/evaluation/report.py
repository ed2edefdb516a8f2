"""The command `python -m realcustom_jax.evaluation.report`: the paper's tables on the toybox."""

from collections.abc import Mapping
from pathlib import Path

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
Runs the ablations of the paper's tables 2 and 3 on the toybox benchmark and writes evaluation.md and a plot.

The raw values of each setting are kept in --runs: an interrupted report resumes, and a complete one takes
seconds. What stands below the marker in evaluation.md is written by hand and stays.

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
    page, scope = (out / f"evaluation{name}" for name in (".md", "_scope.png"))
    parts = [_story(requests)]
    for title, rows in groups.items():
        main = "full" in rows
        parts += [f"## {title}\n", table({**rows, CEILING: ceiling} if main else rows, GROUND_TRUTH)]
        parts += [table({**rows, "real scenes": ceiling} if main else rows, CLIP)]
        parts += [differences_table(rows)] if main else []
    parts += ["## Against the paper\n", order_table(groups)]
    parts += [f"![Identity, CLIP-I, CLIP-T and leakage by γ_scope]({scope.name})\n"]
    before = page.read_text(encoding="utf-8") if page.is_file() else ""
    by_hand = before.split(MARKER, 1)[1] if MARKER in before else "\n"
    write_text(page, "\n".join(parts) + f"\n{MARKER}{by_hand}")
    _plot_scope(scope, groups["The influence scope"])
    return [page, scope]


def _story(requests: int) -> str:
    return f"""# The method, measured in the toybox

`make report` makes {requests} requests. Each puts one held-out subject into one background; seeds are fixed.
Brackets hold bootstrap 95 % intervals over requests.

| measure | meaning |
|---|---|
| identity top-1 | the judge picks the true subject among 20 of its word; chance is 0.05 |
| background top-1, word top-1 | the judge picks the right background, the right word |
| mask IoU | overlap of the last mask with the region where the judge sees the subject |
| leakage | mean pixel change from the text-only image of that seed, outside both subjects; pixels in [0, 1] |
| CLIP-T, CLIP-I | scores of the model's own CLIP, which also conditioned the images |
| CLIP-I, segmented | the same with all but the subject white |

The judge is a small network that never conditioned an image. The row *the judge, on real scenes* scores drawn
scenes, so it is the ceiling. Its mask IoU compares the judge's region with the exact mask. Its leakage
compares a scene with the same scene that has another subject of the word.
"""


def _plot_scope(path: Path, rows: Mapping[str, Results]) -> None:
    """What γ_scope trades: measures at each of its values, with intervals."""
    values = {}
    for measure in ("identity_top1", "clip_i", "clip_t", "leakage"):
        column = [rows[f"γ_scope {scope}"][measure] for scope in SCOPES]
        if all(found is not None for found in column):  # without a CLIP pair there are two
            values[TITLES[measure]] = column
    plots.panels(path, list(SCOPES), values, "γ_scope")


if __name__ == "__main__":
    run_command(main)
