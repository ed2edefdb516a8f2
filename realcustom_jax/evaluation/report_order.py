"""How settings differ, request by request, and where their order is the paper's and where it is not."""

import itertools
from collections.abc import Mapping

import numpy as np

from realcustom_jax.evaluation.metrics import interval
from realcustom_jax.evaluation.report_settings import GROUPS, Row
from realcustom_jax.evaluation.tables import cell, table
from realcustom_jax.evaluation.toybox import MEASURES, Results

FULL = "full"
# The paper's two measures, and the ones here that say the same with exact ground truth.
_PAIRS = (("clip_t", "background_top1"), ("clip_i", "identity_top1"))


def differences_table(rows: Mapping[str, Results]) -> str:
    """Each two of the rows, the later less the earlier one: all measures that both have."""
    pairs = list(itertools.combinations(rows, 2))
    shown = {f"{later} less {earlier}": _less(rows[later], rows[earlier]) for earlier, later in pairs}
    measures = [name for name in MEASURES if any(found[name] is not None for found in shown.values())]
    return (
        "Paired differences over the same requests. If an interval contains 0, the two settings cannot "
        "be told apart:\n\n" + table(shown, measures, first="difference")
    )


def _less(later: Results, earlier: Results) -> Results:
    return {
        name: None if later[name] is None or earlier[name] is None else later[name] - earlier[name]
        for name in MEASURES
    }


def order_table(groups: Mapping[str, Mapping[str, Results]]) -> str:
    """Each setting against the full method: the sign of the difference in the paper and here.

    A difference here is of the same requests, one by one, so that its interval is narrow; "≈" says that the
    interval holds 0.
    """
    rows = {name: row for group in GROUPS.values() for name, row in group.items() if row.paper}
    ours = {name: results for group in groups.values() for name, results in group.items()}
    heads = ["setting"]
    for clip, truth in _PAIRS:
        short = {"clip_t": "CLIP-T", "clip_i": "CLIP-I"}[clip]
        heads += [f"{short}, paper", f"{short}, here", f"{truth.replace('_top1', ' top-1')}, here"]
    lines = [
        "The paper measured DreamBench with the real CLIP, so only the order compares. The sign after a "
        "value is that of its difference from the full method; ≈ means that the 95 % interval of the paired "
        "differences contains 0.\n",
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
    ]
    for name, row in rows.items():
        lines.append(f"| {' | '.join([name, *_cells(row, ours[name], ours[FULL], name == FULL)])} |")
    return "\n".join(lines) + "\n"


def _cells(row: Row, results: Results, full: Results, is_full: bool) -> list[str]:
    cells = []
    for k, measures in enumerate(_PAIRS):
        reference = GROUPS["The method"][FULL].paper[k]
        cells.append(f"{row.paper[k]:.4f}" + ("" if is_full else f" {_sign(row.paper[k] - reference)}"))
        for measure in measures:
            sign = "" if is_full else f" {_measured_sign(results[measure], full[measure])}"
            cells.append(cell(results[measure], with_interval=False) + sign)
    return cells


def _measured_sign(values: np.ndarray | None, reference: np.ndarray | None) -> str:
    if values is None or reference is None:
        return ""
    difference = values - reference
    if not difference.any():
        return "="
    low, high = interval(difference)
    return "≈" if low <= 0.0 <= high else _sign(float(difference.mean()))


def _sign(difference: float) -> str:
    return "=" if difference == 0 else "+" if difference > 0 else "−"
