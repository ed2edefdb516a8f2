"""Plots as PNG files, with matplotlib and adjustText, which only the extra `eval` brings."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import write_whole
from realcustom_jax.evaluation.metrics import interval

Point = tuple[float, float]
NEAR = 12  # pixels, about one and a half markers
ROW = 0.18  # inches, of a legend


def check_plots() -> tuple[Any, Any]:
    """matplotlib's figure module and adjustText, which moves labels off each other.

    Raises:
      UserError: when one is not installed.
    """
    try:
        return importlib.import_module("matplotlib.figure"), importlib.import_module("adjustText")
    except ImportError:
        raise UserError("plots need matplotlib and adjustText: pip install realcustom_jax[eval]") from None


def scatter(path: Path, groups: Mapping[str, Mapping[str, Point]], x: str, y: str) -> None:
    """Numbered points, and beside them what the numbers mean.

    Args:
      path: of the PNG.
      groups: {title: {label: point}}, none of them empty.
      x, y: what the axes show.

    Raises:
      UserError: without matplotlib or adjustText.
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
            legend.append((*axes.plot([], [], color="none"), title))
        for label, point in points.items():
            at.append(point)
            legend.append((dots, f"{len(at)}  {label}"))
    axes.margins(0.15)  # room for numbers at the edges
    for text in figure.legend(*zip(*legend, strict=True), loc="outside right upper", fontsize=8).get_texts():
        if text.get_text() in groups:
            text.set_fontweight("bold")
    _dress(axes, x, y)
    figure.draw_without_rendering()  # the layout must stand before numbers find their place in it
    # Points of settings that hardly differ lie on each other, and share a text.
    texts = [
        axes.text(*at[members[0]], ", ".join(str(i + 1) for i in members), fontsize=8)
        for members in clusters(axes.transData.transform(at), NEAR)
    ]
    # It ends after some turns, not after a second as by default: equal plots are equal files.
    adjust.adjust_text(
        texts, *zip(*at, strict=True), ax=axes, iter_lim=300, expand=(1.3, 1.5),
        arrowprops={"arrowstyle": "-", "color": "grey", "lw": 0.4},
    )  # fmt: skip
    _save(figure, path)


def clusters(points: np.ndarray, near: float) -> list[list[int]]:
    """Numbers of points (n, 2), those together that lie nearer than `near` to the first of them."""
    found: list[list[int]] = []
    for i, point in enumerate(points):
        home = next((c for c in found if np.linalg.norm(points[c[0]] - point) < near), None)
        if home is None:
            found.append([i])
        else:
            home.append(i)
    return found


def curves(
    path: Path,
    at: Sequence[float],
    values: Mapping[str, Sequence[np.ndarray]],
    x: str,
    y: str,
    spread: Callable[[np.ndarray], tuple[float, float]] = interval,
    log: bool = False,
) -> None:
    """Means as curves, each in a band: by default their bootstrap 95 % intervals.

    Args:
      path: of the PNG.
      at: positions along x.
      values: {what the legend says: the values (n,) at each of them}.
      x, y: what the axes show.
      spread: low and high end of the band, of values (n,).
      log: whether y is logarithmic; points at 0 are left out then.
    """
    figure = check_plots()[0].Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name, rows in values.items():
        kept = [i for i, row in enumerate(rows) if not log or row.mean() > 0]
        _curve(axes, [at[i] for i in kept], [rows[i] for i in kept], name, spread)
    if log:
        axes.set_yscale("log")
    # Beside the axes: wherever it lay within, it would hide points of some report.
    figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    _dress(axes, x, y)
    _save(figure, path)


def panels(path: Path, at: Sequence[float], values: Mapping[str, Sequence[np.ndarray]], x: str) -> None:
    """Means as curves in their bootstrap 95 % intervals, each in a panel with its own range.

    Args:
      path: of the PNG.
      at: positions along x.
      values: {what the panel shows: the values (n,) at each of them}.
      x: what the common axis shows.
    """
    figure = check_plots()[0].Figure(figsize=(3 * len(values), 2.8), dpi=120, layout="constrained")
    for axes, (name, rows) in zip(
        figure.subplots(1, len(values), squeeze=False)[0], values.items(), strict=True
    ):
        _curve(axes, at, rows, name, interval)
        _dress(axes, x, name)
    _save(figure, path)


def _curve(
    axes: Any,
    at: Sequence[float],
    rows: Sequence[np.ndarray],
    name: str,
    spread: Callable[[np.ndarray], tuple[float, float]],
) -> None:
    low, high = zip(*(spread(row) for row in rows), strict=True)
    (line,) = axes.plot(at, [row.mean() for row in rows], "o-", label=name, markersize=4)
    axes.fill_between(at, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def _dress(axes: Any, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)


def _save(figure: Any, path: Path) -> None:
    # Without its version in the file, equal plots are equal files.
    write_whole(path, lambda half: figure.savefig(half, format="png", metadata={"Software": None}))
