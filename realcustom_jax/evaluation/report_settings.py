"""The rows of the report: the paper's ablations as settings of the toybox benchmark, with its values."""

import dataclasses
from collections.abc import Mapping

from realcustom_jax.evaluation.toybox import Setting


@dataclasses.dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
      setting: how its images are made.
      paper: CLIP-T and CLIP-I in tables 2 and 3 of the paper (on DreamBench), where it has the row.
    """

    setting: Setting
    paper: tuple[float, float] | None = None


_FULL = (0.3204, 0.8552)
SCOPES = {
    0.1: (0.3200, 0.8085),
    0.2: (0.3195, 0.8431),
    0.25: _FULL,
    0.3: (0.3129, 0.8578),
    0.4: (0.3023, 0.8623),
    0.5: (0.2850, 0.8654),
}
NUMBERS = {0.7: (0.3202, 0.8307), 0.8: _FULL, 0.9: (0.3150, 0.8541)}


def _changed(paper: tuple[float, float] | None = None, **options: object) -> Row:
    return Row(Setting(options), paper)


# Rows of equal settings, such as γ_scope 0.25 and the full method, share their images.
GROUPS: Mapping[str, Mapping[str, Row]] = {
    "The method": {
        "text only": Row(Setting(subject=False)),
        "visual tokens, no mask": Row(Setting(masked=False)),
        "full": Row(Setting(), _FULL),
    },
    "The influence scope": {
        **{f"γ_scope {scope}": _changed(paper, gamma_scope=scope) for scope, paper in SCOPES.items()},
        "γ_scope 0.25, binary mask": _changed((0.2940, 0.8567), gamma_scope=0.25, mask_kind="binary"),
    },
    "The influence quantity": {
        "no scoring": _changed((0.3002, 0.8221), scoring="none"),
        "textual score only": _changed((0.3130, 0.8335), scoring="text"),
        "visual score only": _changed((0.2898, 0.8020), scoring="visual"),
        "mean of both scores": _changed((0.3156, 0.8302), scoring="mean"),
        **{f"γ_num {number}": _changed(paper, gamma_num=number) for number, paper in NUMBERS.items()},
    },
    "Reuse of the mask": {
        "masks of all 25 steps": _changed(steps=25, mask_steps=None),
        "masks of 12 of 25 steps": _changed(steps=25, mask_steps=12),
    },
}
CEILING = "the judge, on real scenes"
