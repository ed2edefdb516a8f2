"""Plots as PNG files, with matplotlib, which only the extra `eval` brings."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from realcustom_jax.errors import UserError
from realcustom_jax.evaluation.metrics import interval
from realcustom_jax.files import write_whole

Point = tuple[float, float]


def check_plots() -> Any:
    """matplotlib's figure module.

    Raises:
      UserError: when it is not installed.
    """
    try:
        return importlib.import_module("matplotlib.figure")
    except ImportError:
        raise UserError("plots need matplotlib: pip install realcustom_jax[eval]") from None


def scatter(
    path: Path, groups: Mapping[str, Mapping[str, Point]], x: str, y: str, lines: Sequence[str] = ()
) -> None:
    """Labelled points.

    Args:
      path: of the PNG.
      groups: {what the legend says: {label: point}}.
      x, y: what the axes show.
      lines: groups whose points are joined, in their order.

    Raises:
      UserError: without matplotlib.
    """
    figure = check_plots().Figure(figsize=(7, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name, points in groups.items():
        across, up = zip(*points.values(), strict=True)
        axes.plot(across, up, "o-" if name in lines else "o", label=name, markersize=5)
        for label, point in points.items():
            axes.annotate(label, point, xytext=(4, 4), textcoords="offset points", fontsize=7)
    _finish(figure, axes, path, x, y, legend=len(groups) > 1)


def curves(
    path: Path,
    at: Sequence[float],
    values: Mapping[str, Sequence[np.ndarray]],
    x: str,
    y: str,
    spread: Callable[[np.ndarray], tuple[float, float]] = interval,
) -> None:
    """Means as curves, each in a band: by default their bootstrap 95 % intervals.

    Args:
      path: of the PNG.
      at: positions along x.
      values: {what the legend says: the values (n,) at each of them}.
      x, y: what the axes show.
      spread: low and high end of the band, of values (n,).
    """
    figure = check_plots().Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name, rows in values.items():
        low, high = zip(*(spread(row) for row in rows), strict=True)
        (line,) = axes.plot(at, [row.mean() for row in rows], "o-", label=name, markersize=4)
        axes.fill_between(at, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    _finish(figure, axes, path, x, y, legend=True)


def _finish(figure: Any, axes: Any, path: Path, x: str, y: str, legend: bool) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    if legend:
        # Beside the axes: wherever it lay within, it would hide points of some report.
        figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    # Without its version in the file, equal plots are equal files.
    write_whole(path, lambda half: figure.savefig(half, format="png", metadata={"Software": None}))
