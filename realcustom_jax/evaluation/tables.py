"""Markdown tables of means with their intervals."""

from collections.abc import Mapping, Sequence

import numpy as np

from realcustom_jax.evaluation.metrics import interval

# {measure: its column title}
TITLES = {
    "identity_top1": "identity top-1",
    "background_top1": "background top-1",
    "word_top1": "word top-1",
    "mask_iou": "mask IoU",
    "leakage": "leakage",
    "clip_t": "CLIP-T",
    "clip_i": "CLIP-I",
    "clip_i_segmented": "CLIP-I, segmented",
    "dino_i": "DINO-I",
    "dino_i_segmented": "DINO-I, segmented",
    "image_reward": "ImageReward",
}


def cell(
    values: Sequence[float] | np.ndarray | None,
    with_interval: bool = True,
    groups: Sequence[str] | None = None,
) -> str:
    """The mean and its bootstrap 95 % interval, such as "0.613 [0.551, 0.672]"; "–" without values."""
    if values is None or len(values) == 0:
        return "–"
    mean = f"{np.mean(values):.3f}"
    if not with_interval:
        return mean
    low, high = interval(values, groups=groups)
    return f"{mean} [{low:.3f}, {high:.3f}]"


def table(
    rows: Mapping[str, Mapping[str, Sequence[float] | np.ndarray | None]],
    measures: Sequence[str],
    first: str = "setting",
    with_interval: bool = True,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """A Markdown table with one row per name and one column per measure.

    Args:
      rows: {name: {measure: a value for each image, or None}}.
      measures: the columns.
      first: heading of the first column.
      with_interval: whether cells have intervals.
      groups: {name: group of each of its images, see `interval`}; names without groups may be missing.
    """
    lines = [
        f"| {' | '.join([first, *(TITLES[name] for name in measures)])} |",
        f"|{'---|' * (len(measures) + 1)}",
    ]
    for name, values in rows.items():
        own = (groups or {}).get(name)
        cells = [cell(values.get(measure), with_interval, own) for measure in measures]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines) + "\n"
