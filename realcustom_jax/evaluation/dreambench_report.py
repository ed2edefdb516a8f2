"""The table and the plot of DreamBench, made from the JSON files of its images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from realcustom_jax.common.files import write_text
from realcustom_jax.evaluation.dreambench import read_result
from realcustom_jax.evaluation.dreambench_data import LIVE, Case
from realcustom_jax.evaluation.plots import scatter
from realcustom_jax.evaluation.tables import table

ALL = "all"  # name of the row with all images


def collect(cases: Sequence[Case], out: Path, measures: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """{row: {measure: values}}, with rows for all images, live subjects, objects, and each subject."""
    rows: dict[str, dict[str, list[float]]] = {}
    for case in cases:
        scores = read_result(out, case)["scores"]
        for row in _rows(case):
            for name in measures:
                rows.setdefault(row, {}).setdefault(name, []).append(scores[name])
    # Summary rows first, then the subjects in the order of the cases.
    first = [name for name in (ALL, "live subjects", "objects") if name in rows]
    return {name: rows[name] for name in [*first, *(name for name in rows if name not in first)]}


def _rows(case: Case) -> tuple[str, str, str]:
    """The rows to which an image belongs."""
    return ALL, "live subjects" if case.word in LIVE else "objects", case.subject


def _subjects(cases: Sequence[Case]) -> dict[str, list[str]]:
    """{row: the subject of each of its images}, with the images in the order of `collect`."""
    subjects: dict[str, list[str]] = {}
    for case in cases:
        for row in _rows(case):
            subjects.setdefault(row, []).append(case.subject)
    return subjects


def write_report(
    cases: Sequence[Case], out: Path, measures: Sequence[str], settings: Mapping[str, object]
) -> tuple[str, list[Path]]:
    """Write `report.md` and, if there are both CLIP measures, `report.png`.

    Returns:
      the table, and the files.
    """
    rows = collect(cases, out, measures)
    # Images of one subject are similar, so the bootstrap draws whole subjects. A row with a single subject
    # draws images.
    groups = {name: names for name, names in _subjects(cases).items() if len(set(names)) > 1}
    text = table(rows, measures, first="subject", groups=groups)
    how = ", ".join(f"{key} {value}" for key, value in settings.items())
    subjects = len({case.subject for case in cases})
    story = (
        f"# DreamBench\n\n{len(cases)} images of {subjects} subjects: {how}.\n\n"
        "CLIP-I and DINO-I are means over all pairs of a generated image and a photo of its subject. "
        "Brackets show the bootstrap 95 % interval over subjects, or over images for a single subject.\n\n"
    )
    files = [out / "report.md"]
    write_text(files[0], story + text)
    if {"clip_t", "clip_i"} <= set(measures):
        files.append(out / "report.png")
        points = {
            name: (float(np.mean(row["clip_t"])), float(np.mean(row["clip_i"]))) for name, row in rows.items()
        }
        # The mean in another colour than the subjects.
        both = {"mean": {ALL: points[ALL]}, "subjects": {t.subject: points[t.subject] for t in cases}}
        scatter(files[1], both, "CLIP-T: the prompt is obeyed", "CLIP-I: the subject is kept")
    return text, files
