"""The report: its rows, stored results, the comparison with the paper, and the written page."""

import dataclasses

import numpy as np
import pytest

from realcustom_jax.evaluation import report
from realcustom_jax.evaluation.ablations import GROUPS, SCOPES, Runs
from realcustom_jax.evaluation.toybox import (
    MEASURES,
    Benchmark,
    Setting,
    make_cases,
    real_scene,
    reference,
)


def results(seed, count=30, **fixed):
    rng = np.random.default_rng(seed)
    values = {name: rng.random(count) for name in MEASURES}
    return values | {name: np.full(count, value, float) for name, value in fixed.items()}


def all_groups():
    numbers = iter(range(1000))
    return {title: {name: results(next(numbers)) for name in rows} for title, rows in GROUPS.items()}


def test_report_rows_are_paper_ablations(micro_pipe):
    rows = {name: row for group in GROUPS.values() for name, row in group.items()}
    assert {f"γ_scope {g}" for g in (0.1, 0.2, 0.25, 0.3, 0.4, 0.5)} <= rows.keys()
    for row in rows.values():
        micro_pipe.defaults.changed(row.setting.options)  # raises for an unknown option
    assert rows["mean of both scores"].setting.options == {"scoring": "mean"}
    assert rows["γ_scope 0.5"].paper == (0.2850, 0.8654)
    assert not rows["text only"].setting.subject and not rows["visual tokens, no mask"].setting.masked


class Painter:
    """Fake generator: counts its calls, and paints from the options."""

    def __init__(self, pipe):
        self.pipe, self.made = pipe, []

    def __call__(self, jobs, options, progress):
        self.made.append(options)
        progress(len(jobs))
        rng = np.random.default_rng([job.seed for job in jobs] + [int(100 * options.gamma_scope)])
        return rng.integers(0, 256, (len(jobs), 64, 64, 3), dtype=np.uint8), rng.random(
            (len(jobs), 1, 16, 16)
        )


def test_results_are_cached_by_their_inputs(paired_pipe, random_judge, tmp_path):
    benchmark = Benchmark(make_cases(2), random_judge, None)
    painter = Painter(paired_pipe)
    runs = Runs.open(tmp_path, benchmark, painter)
    first = runs.results("γ_scope 0.3", Setting({"gamma_scope": 0.3}))
    assert len(painter.made) == 2  # the text-only images, which leakage needs, and the setting's own
    again = Runs.open(tmp_path, benchmark, painter).results("other name", Setting({"gamma_scope": 0.3}))
    text = runs.results("text only", Setting(subject=False))
    assert len(painter.made) == 2 and text["leakage"] is None
    assert all(
        (first[name] is None) if again[name] is None else (first[name] == again[name]).all() for name in again
    )
    runs.results("γ_scope 0.25", Setting({"gamma_scope": 0.25}))
    runs.results("full", Setting())  # the same setting under another name
    assert len(painter.made) == 3
    runs.results("no mask", Setting(masked=False))
    more = Benchmark(make_cases(3), random_judge, None)
    Runs.open(tmp_path, more, painter).results("full", Setting())
    assert len(painter.made) == 6  # other requests: text only and its own again
    other = dataclasses.replace(runs, digest="another model")
    other.results("full", Setting())
    assert len(painter.made) == 8


@pytest.mark.parametrize("drawn", [real_scene, reference])
def test_changed_drawings_invalidate_cached_results(paired_pipe, random_judge, tmp_path, monkeypatch, drawn):
    """Results depend on the drawn pixels too, not only on the requests."""
    benchmark, painter = Benchmark(make_cases(2), random_judge, None), Painter(paired_pipe)
    Runs.open(tmp_path, benchmark, painter).results("text only", Setting(subject=False))

    def darker(request):
        scene = drawn(request)
        return dataclasses.replace(scene, image=scene.image // 2)

    monkeypatch.setattr(f"realcustom_jax.evaluation.ablations.{drawn.__name__}", darker)
    Runs.open(tmp_path, benchmark, painter).results("text only", Setting(subject=False))
    assert len(painter.made) == 2


def test_differences_are_paired_by_request():
    """A difference that is smaller than the spread but equal for all requests has an interval without 0."""
    plain, middle = results(1), results(2)
    plain["leakage"] = None
    last = middle | {"clip_t": middle["clip_t"] + 0.01, "clip_i": None}
    lines = report.differences_table({"text": plain, "no mask": middle, "full": last}).splitlines()
    cells = {
        line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:]
        for line in lines
        if "minus" in line
    }
    heads = next(line for line in lines if line.startswith("| difference")).strip("| ").split(" | ")[1:]
    assert list(cells) == ["no mask minus text", "full minus text", "full minus no mask"]
    found = dict(zip(heads, cells["full minus no mask"], strict=True))
    assert found["CLIP-T"] == "0.010 [0.010, 0.010]" and found["CLIP-I"] == "–"
    assert found["leakage"] == "0.000 [0.000, 0.000]"
    assert dict(zip(heads, cells["full minus text"], strict=True))["leakage"] == "–"


def test_order_uses_paired_differences():
    """A difference that is small compared with the spread, but equal for all requests, gets a sign."""
    groups = all_groups()
    full = groups["The method"]["full"]
    scopes = groups["The influence scope"]
    scopes["γ_scope 0.1"]["clip_i"] = full["clip_i"] - 0.01
    scopes["γ_scope 0.5"]["clip_i"] = full["clip_i"] + np.resize([0.01, -0.01], 30)
    scopes["γ_scope 0.25"]["clip_i"] = full["clip_i"]
    lines = report.order_table(groups).splitlines()
    cells = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in lines if line.startswith("| ")}
    assert cells["γ_scope 0.1"][4] == "0.8085 −" and cells["γ_scope 0.1"][5].endswith(" −")
    assert cells["γ_scope 0.5"][4] == "0.8654 +" and cells["γ_scope 0.5"][5].endswith(" ≈")
    assert cells["γ_scope 0.25"][5].endswith(" =")
    assert "text only" not in cells  # not in the paper


def test_report_keeps_handwritten_text(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra 'eval'")
    groups = all_groups()
    files = report.write_report(tmp_path, groups, results(99, leakage=0.0), 30)
    page = files[0].read_text(encoding="utf-8")
    assert "30 requests" in page and "the judge, on real scenes" in page
    assert all(f"| γ_scope {scope} |" in page for scope in SCOPES)
    files[0].write_text(page.replace("30 requests", "old") + "\nWhy it is so.\n", encoding="utf-8")
    images = [path.read_bytes() for path in files[1:]]
    report.write_report(tmp_path, groups, results(99), 30)
    page = files[0].read_text(encoding="utf-8")
    assert page.endswith("\nWhy it is so.\n") and "30 requests" in page and page.count(report.MARKER) == 1
    assert [path.read_bytes() for path in files[1:]] == images  # equal results, equal files
