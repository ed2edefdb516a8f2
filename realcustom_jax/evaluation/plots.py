"""Plots as PNG files. They need matplotlib and adjustText, from the extra `eval`."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import write_whole
from realcustom_jax.evaluation.metrics import interval

Point = tuple[float, float]
NEAR = 12  # pixels, about one and a half markers: nearer points share a label
ROW = 0.18  # height of a legend's row in inches


def check_plots() -> tuple[Any, Any]:
    """Import matplotlib's figure module, and adjustText, which moves labels apart.

    Raises:
      UserError: one of them is not installed.
    """
    try:
        return importlib.import_module("matplotlib.figure"), importlib.import_module("adjustText")
    except ImportError:
        raise UserError("plots need matplotlib and adjustText: pip install realcustom_jax[eval]") from None


def scatter(path: Path, groups: Mapping[str, Mapping[str, Point]], x: str, y: str) -> None:
    """Plot numbered points, with a legend that explains the numbers.

    Args:
      path: the PNG file.
      groups: {title: {label: point}}, none of them empty.
      x, y: labels of the axes.

    Raises:
      UserError: matplotlib or adjustText is not installed.
    """
    figures, adjust = check_plots()
    rows = sum(1 + len(points) for points in groups.values())
    figure = figures.Figure(figsize=(9, max(6, rows * ROW)), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    at, legend = [], []
    for title, points in groups.items():
        across, up = zip(*points.values(), strict=True)
        (dots,) = axes.plot(across, up, "o", markersize=5)
        if len(groups) > 1:
            # An invisible line, because a legend cannot have headings.
            legend.append((*axes.plot([], [], color="none"), title))
        for label, point in points.items():
            at.append(point)
            legend.append((dots, f"{len(at)}  {label}"))
    axes.margins(0.15)  # room for numbers at the edges
    for text in figure.legend(*zip(*legend, strict=True), loc="outside right upper", fontsize=8).get_texts():
        if text.get_text() in groups:
            text.set_fontweight("bold")
    _label(axes, x, y)
    # adjustText works in pixels.
    figure.draw_without_rendering()  # computes the layout, which placing the numbers needs
    # Points of nearly equal settings overlap, so they share a text.
    texts = [
        axes.text(*at[members[0]], ", ".join(str(i + 1) for i in members), fontsize=8)
        for members in clusters(axes.transData.transform(at), NEAR)
    ]
    # A limit of iterations instead of the default time limit: equal data must give equal files.
    adjust.adjust_text(
        texts, *zip(*at, strict=True), ax=axes, iter_lim=300, expand=(1.3, 1.5),
        arrowprops={"arrowstyle": "-", "color": "grey", "lw": 0.4},
    )  # fmt: skip
    _save(figure, path)


def clusters(points: np.ndarray, near: float) -> list[list[int]]:
    """Group the indices of points (n, 2): a group has the points nearer than `near` to its first point."""
    groups: list[list[int]] = []
    for i, point in enumerate(points):
        group = next((g for g in groups if np.linalg.norm(points[g[0]] - point) < near), None)
        if group is None:
            groups.append([i])
        else:
            group.append(i)
    return groups


def curves(
    path: Path,
    at: Sequence[float],
    values: Mapping[str, Sequence[np.ndarray]],
    x: str,
    y: str,
    spread: Callable[[np.ndarray], tuple[float, float]] = interval,
    log: bool = False,
) -> None:
    """Plot means as curves, each with a band, by default of bootstrap 95 % intervals.

    Args:
      path: the PNG file.
      at: positions on the x axis.
      values: {label in the legend: values (n,) at each position}.
      x, y: labels of the axes.
      spread: values (n,) → low and high end of the band.
      log: whether y is logarithmic; points at 0 are then left out.
    """
    figure = check_plots()[0].Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name, rows in values.items():
        kept = [i for i, row in enumerate(rows) if not log or row.mean() > 0]
        _curve(axes, [at[i] for i in kept], [rows[i] for i in kept], name, spread)
    if log:  # a logarithmic axis cannot show 0, see above
        axes.set_yscale("log")
    # Outside of the axes, where it hides no points.
    figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    _label(axes, x, y)
    _save(figure, path)


def panels(path: Path, at: Sequence[float], values: Mapping[str, Sequence[np.ndarray]], x: str) -> None:
    """Plot means with bootstrap 95 % intervals, each curve in its own panel with its own range.

    Args:
      path: the PNG file.
      at: positions on the x axis.
      values: {label of the panel: values (n,) at each position}.
      x: label of the x axis.
    """
    figure = check_plots()[0].Figure(figsize=(3 * len(values), 2.8), dpi=120, layout="constrained")
    for axes, (name, rows) in zip(
        figure.subplots(1, len(values), squeeze=False)[0], values.items(), strict=True
    ):
        _curve(axes, at, rows, name, interval)
        _label(axes, x, name)
    _save(figure, path)


def _curve(
    axes: Any,
    at: Sequence[float],
    rows: Sequence[np.ndarray],
    name: str,
    spread: Callable[[np.ndarray], tuple[float, float]],
) -> None:
    """Draw one curve with its band."""
    low, high = zip(*(spread(row) for row in rows), strict=True)
    (line,) = axes.plot(at, [row.mean() for row in rows], "o-", label=name, markersize=4)
    axes.fill_between(at, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def _label(axes: Any, x: str, y: str) -> None:
    """Add labels and a grid."""
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)


def _save(figure: Any, path: Path) -> None:
    # Without matplotlib's version in the file, equal plots are equal files.
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png", metadata={"Software": None}))
