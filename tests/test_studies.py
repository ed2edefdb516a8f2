"""Computations in the scripts of `studies/`: leakage, two subjects, loss curves."""

import json
import sys

import flax.linen as nn
import jax
import leakage_of_a_pass
import loss_curves
import numpy as np
import pytest
from by_distance import by_distance
from leakage_curve import in_cells
from leakage_of_a_pass import KINDS, Cuts, Kind, normalised_like_first_half
from story_consistency import SETTINGS, Case, replaced, table_rows
from two_subjects import nearer

from realcustom_jax.common.errors import UserError
from realcustom_jax.evaluation.toybox import make_cases
from realcustom_jax.models.layers import GroupNorm
from realcustom_jax.options import SamplerConfig


def test_rings_follow_distance_from_the_subject():
    """Against a loop over pixels; an image without a subject has no rings, and a ring may be empty."""
    subjects = np.zeros((2, 5, 7), bool)
    subjects[0, 2, 1] = subjects[0, 2, 2] = True
    changes = np.random.default_rng(0).random((2, 5, 7))
    rings = {0: [], 1: [], 2: [], 3: [], 4: []}
    for i, j in np.ndindex(5, 7):
        distance = min(np.hypot(i - 2, j - 1), np.hypot(i - 2, j - 2))
        rings[next((r for r, end in enumerate((0, 1, 2.5, 9)) if distance <= end), 4)].append(
            changes[0, i, j]
        )
    found = by_distance(changes, subjects, (0, 1, 2.5, 9))
    expected = [np.mean(ring) for ring in rings.values() if ring]
    assert len(expected) == 4
    np.testing.assert_allclose(found[0, :4], expected, rtol=1e-12)
    assert np.isnan(found[0, 4]) and np.isnan(found[1]).all()


def test_regions_are_widened_to_whole_latents():
    regions = np.zeros((1, 8, 12), bool)
    regions[0, 5, 3] = True
    expected = np.zeros((1, 8, 12), bool)
    expected[0, 4:8, 0:4] = True
    np.testing.assert_array_equal(in_cells(regions, 4), expected)


def test_second_half_is_normalised_with_first_half_statistics():
    """Equal halves against `GroupNorm`, unequal halves against a numpy loop over groups; 1e-5, float32."""
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(2, 3, 4, 5, 6)).astype(np.float32) * 2 + 1
    module = GroupNorm(2, 1e-3)
    params = {"scale": rng.normal(size=6).astype(np.float32), "bias": rng.normal(size=6).astype(np.float32)}
    bound = module.bind({"params": params})
    own = module.apply({"params": params}, first)
    same = normalised_like_first_half(bound, np.concatenate([first, first]))
    np.testing.assert_allclose(same, np.concatenate([own, own]), atol=1e-5)
    found = np.asarray(normalised_like_first_half(bound, np.concatenate([first, second])))
    np.testing.assert_allclose(found[:3], own, atol=1e-5)
    for n, group in np.ndindex(3, 2):
        channels = slice(3 * group, 3 * group + 3)
        mean, variance = first[n, ..., channels].mean(), first[n, ..., channels].var()
        expected = (second[n, ..., channels] - mean) / np.sqrt(variance + 1e-3)
        expected = expected * params["scale"][channels] + params["bias"][channels]
        np.testing.assert_allclose(found[3 + n, ..., channels], expected, atol=1e-5)


def test_cuts_change_only_the_second_half(micro_pipe):
    """Each kind of cut changes the second of two unequal halves, and never the first."""
    unet, params = micro_pipe.models.unet, micro_pipe.params["unet"]
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, unet.config.in_channels))
    text = jax.random.normal(jax.random.key(1), (2, 5, unet.config.cross_attention_dim))

    context = unet.apply({"params": params}, text, method=type(unet).encode_context)

    def run(**cut):
        cuts = Cuts(Kind("", **cut))
        with nn.intercept_methods(cuts):
            found, _ = unet.apply({"params": params}, x, np.full(2, 500.0), context)
        cuts.check()
        return np.asarray(found)

    plain = run()
    cut = [run(statistics=True), run(attention=True), run(statistics=True, attention=True)]
    for found in cut:
        np.testing.assert_allclose(found[0], plain[0], atol=1e-5)
        assert np.abs(found[1] - plain[1]).max() > 1e-3


def test_kinds_of_a_pass_differ(micro_pipe):
    """One program holds all kinds; each has its own cuts, which the study asserts."""
    config = SamplerConfig(height=8, width=8)  # of the masks; the scenes of 64 pixels have 32x32 latents
    _, changes = leakage_of_a_pass.changes(micro_pipe, config, make_cases(2), [0])
    assert changes.shape == (1, len(KINDS), 2, 32, 32)
    assert len(np.unique(changes.mean(axis=(0, 2, 3, 4)))) == len(KINDS)


def test_pixels_are_assigned_to_the_nearer_mask():
    masks = np.zeros((2, 1, 7), bool)
    masks[0, 0, 0] = masks[1, 0, 4] = True
    np.testing.assert_array_equal(nearer(masks)[:, 0], [[1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1]])


def test_consistency_counts_characters_scenes_and_stories():
    """Two stories of two scenes with two characters, counted by hand."""
    correct = np.asarray([[[1, 1], [1, 0]], [[0, 1], [0, 0]]], bool)
    rows = table_rows(2, {"with masks": correct, "none": np.zeros_like(correct)})
    assert [row[1] for row in rows] == ["8", "4", "4"]
    assert [row[2].split()[:2] for row in rows] == [["4:", "0.500"], ["1:", "0.250"], ["1:", "0.250"]]
    # Whole stories are drawn: the shares of the two are 3/4 and 1/4.
    assert rows[0][2].endswith("[0.250, 0.750]") and rows[0][3] == "0: 0.000 [0.000, 0.000]"


def test_consistency_stories_are_requests_with_their_words():
    story = Case(3, 2).story(**SETTINGS["text only"])
    requests = [story.request(i) for i in range(4)]
    assert len({request.prompt for request in requests}) == len({request.seed for request in requests}) == 4
    assert all(len(r.subjects) == 2 and not any(s.acts for s in r.subjects) for r in requests)
    assert all(s.acts for s in Case(3, 2).story().request(0).subjects)


def test_only_the_marked_table_of_a_page_is_replaced():
    start, end = "<!-- table of studies/story_consistency.py -->\n", "<!-- end of the table -->\n"
    page = replaced(f"a\n{start}old\n{end}b\n", "| x |\n")
    assert page == f"a\n{start}\n| x |\n\n{end}b\n"
    assert replaced(page, "| x |\n") == page
    with pytest.raises(UserError, match="the page needs the lines"):
        replaced("a", "")


def test_losses_above_a_value_form_a_separate_curve(tmp_path, monkeypatch, capsys):
    """In a resumed run, the last line of step 3, which is written twice, counts."""
    losses = {1: 0.5, 2: 5.0, 3: 9.0, 4: 3.0, 5: 1.5}
    lines = [{"step": step, "loss": loss} for step, loss in losses.items()]
    lines.insert(3, {"step": 3, "loss": 0.7})
    lines.append({"step": 5, "sha256": "ab"})
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    flags = ["--windows", "1", "--apart", "2", "--out", str(tmp_path / "losses.png")]
    monkeypatch.setattr(sys, "argv", ["loss_curves.py", str(run), *flags])
    loss_curves.main()
    printed = capsys.readouterr().out
    assert "run, to 2: 0.9000 in the first window" in printed
    assert "run, above 2: 4.0000 in the first window" in printed
    assert (tmp_path / "losses.png").is_file()
