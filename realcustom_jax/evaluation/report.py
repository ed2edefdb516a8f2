"""The command `python -m realcustom_jax.evaluation.report`: the paper's tables, measured on the toybox."""

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from realcustom_jax.common.cli import CommandParser, run_command
from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import write_text
from realcustom_jax.evaluation import plots
from realcustom_jax.evaluation.ablations import GROUPS, SCOPES, Runs
from realcustom_jax.evaluation.judge import SHIPPED, Judge
from realcustom_jax.evaluation.metrics import interval
from realcustom_jax.evaluation.tables import TITLES, cell, table
from realcustom_jax.evaluation.toybox import MEASURES, Benchmark, Results, make_cases
from realcustom_jax.generate import Generator
from realcustom_jax.inputs.encoder_pair import own_pair
from realcustom_jax.pipeline import load
from realcustom_jax.weights.flags import add_precision_flags

STORY = """\
Runs the ablations of the paper's tables 2 and 3 on the toybox benchmark and writes evaluation.md and a plot.

The raw values of each setting are stored in --runs. An interrupted report resumes from them, and a complete
one takes seconds. The text below the marker in evaluation.md is written by hand and is kept.

  python -m realcustom_jax.evaluation.report --model toybox --out docs
"""

MARKER = "<!-- Below is written by hand; everything above is made by `make report`. -->"
GROUND_TRUTH = ("identity_top1", "background_top1", "word_top1", "mask_iou", "leakage")
CLIP = ("clip_t", "clip_i", "clip_i_segmented")
CEILING = "the judge, on real scenes"
FULL = "full"
# The paper's two measures, each with the measure of the toybox that checks the same with exact ground truth.
_PAIRS = (("clip_t", "background_top1"), ("clip_i", "identity_top1"))


def main() -> None:
    """Run the command line."""
    parser = CommandParser("evaluation.report", STORY)
    parser.add_argument(
        "--model", default="toybox", metavar="FOLDER", help="a toybox model (the shipped one)"
    )
    parser.add_argument(
        "--requests", type=int, default=208, metavar="N", help="requests of each setting (%(default)s)"
    )
    add_precision_flags(parser)
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="images per batch (%(default)s)")
    parser.add_argument("--judge", type=Path, default=SHIPPED, metavar="FILE", help="judge (the shipped one)")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/report"), metavar="DIR", help="stored values (%(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("docs"), metavar="DIR", help="folder of the report (%(default)s)"
    )
    args = parser.parse_args()
    if args.requests < 2 or args.batch < 1:
        raise UserError(
            f"--requests must be 2 or more and --batch 1 or more, not {args.requests} and {args.batch}"
        )
    plots.check_plots()  # fail now, not after hours of sampling
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
    """Write the Markdown page and the plots.

    Args:
      out: folder of the files.
      groups: {title: {row: {measure: a value for each request}}}, with the titles and rows of `GROUPS`.
      ceiling: results of real scenes.
      requests: number of requests.

    Returns:
      the files.
    """
    page, scope = (out / f"evaluation{name}" for name in (".md", "_scope.png"))
    parts = [_story(requests)]
    for title, rows in groups.items():
        # The first table also has the ceiling and the differences; the others compare with its rows.
        main = "full" in rows
        parts += [f"## {title}\n", table({**rows, CEILING: ceiling} if main else rows, GROUND_TRUTH)]
        parts += [table({**rows, "real scenes": ceiling} if main else rows, CLIP)]
        parts += [differences_table(rows)] if main else []
    parts += ["## Against the paper\n", order_table(groups)]
    parts += [f"![Identity, CLIP-I, CLIP-T and leakage by γ_scope]({scope.name})\n"]
    # Keep the text below the marker, which explains the numbers.
    before = page.read_text(encoding="utf-8") if page.is_file() else ""
    by_hand = before.split(MARKER, 1)[1] if MARKER in before else "\n"
    write_text(page, "\n".join(parts) + f"\n{MARKER}{by_hand}")
    _plot_scope(scope, groups["The influence scope"])
    return [page, scope]


def _story(requests: int) -> str:
    """The page's introduction."""
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


# ---------------------------------------------------------------- tables


def differences_table(rows: Mapping[str, Results]) -> str:
    """Differences of every pair of rows, the later minus the earlier one, in all measures that both have."""
    pairs = list(itertools.combinations(rows, 2))
    differences = {f"{later} minus {earlier}": _minus(rows[later], rows[earlier]) for earlier, later in pairs}
    measures = [name for name in MEASURES if any(row[name] is not None for row in differences.values())]
    return (
        "Paired differences, request by request. An interval that contains 0 shows no difference:\n\n"
        + table(differences, measures, first="difference")
    )


def _minus(later: Results, earlier: Results) -> Results:
    # The same requests and seeds, so the interval of the differences is narrower than that of either row.
    return {name: _difference(later[name], earlier[name]) for name in MEASURES}


def _difference(later: np.ndarray | None, earlier: np.ndarray | None) -> np.ndarray | None:
    return None if later is None or earlier is None else later - earlier


def order_table(groups: Mapping[str, Mapping[str, Results]]) -> str:
    """Compare each setting with the full method: the sign of the difference in the paper and here.

    "≈" means that the interval of the paired differences contains 0.
    """
    papers = {name: row.paper for group in GROUPS.values() for name, row in group.items() if row.paper}
    ours = {name: results for group in groups.values() for name, results in group.items()}
    heads = ["setting"]
    for clip, truth in _PAIRS:
        short = {"clip_t": "CLIP-T", "clip_i": "CLIP-I"}[clip]
        heads += [f"{short}, paper", f"{short}, here", f"{truth.replace('_top1', ' top-1')}, here"]
    lines = [
        "The paper measured on DreamBench with the real CLIP, so only the order can be compared. The sign "
        "after a value is the sign of its difference from the full method. Here it is ≈ if the 95 % interval "
        "of the paired differences contains 0.\n",
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
    ]
    for name, paper in papers.items():
        cells = _cells(paper, papers[FULL], ours[name], ours[FULL], name == FULL)
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines) + "\n"


def _cells(
    paper: tuple[float, float],
    full_paper: tuple[float, float],
    results: Results,
    full: Results,
    is_full: bool,
) -> list[str]:
    """Cells of one row: for both pairs of measures the paper's value and ours."""
    cells = []
    for value, reference, measures in zip(paper, full_paper, _PAIRS, strict=True):
        cells.append(f"{value:.4f}" + ("" if is_full else f" {_sign(value - reference)}"))
        for measure in measures:
            sign = "" if is_full else f" {_measured_sign(results[measure], full[measure])}"
            cells.append(cell(results[measure], with_interval=False) + sign)
    return cells


def _measured_sign(values: np.ndarray | None, reference: np.ndarray | None) -> str:
    if values is None or reference is None:
        return ""
    difference = values - reference
    if not difference.any():  # equal settings share their images
        return "="
    low, high = interval(difference)
    return "≈" if low <= 0.0 <= high else _sign(float(difference.mean()))


def _sign(difference: float) -> str:
    return "=" if difference == 0 else "+" if difference > 0 else "−"


# ---------------------------------------------------------------- plots


def _plot_scope(path: Path, rows: Mapping[str, Results]) -> None:
    """Plot measures by γ_scope, with intervals."""
    values = {}
    for measure in ("identity_top1", "clip_i", "clip_t", "leakage"):
        column = [rows[f"γ_scope {scope}"][measure] for scope in SCOPES]
        if all(row is not None for row in column):  # a model without a CLIP pair has two of the measures
            values[TITLES[measure]] = column
    plots.panels(path, list(SCOPES), values, "γ_scope")


if __name__ == "__main__":
    run_command(main)
