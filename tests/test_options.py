"""`SamplingOptions`: errors for wrong values, numbers of any library, and JSON round trips."""

import dataclasses
import itertools
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax.diffusion.phases import phases
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.diffusion.solvers import SOLVERS, SPACINGS, make_table
from realcustom_jax.options import SDXL, ProgramOptions

WRONG = [
    ({"text_weight": None}, "text_weight must be one number or a list with one per request, not None"),
    ({"text_weight": "7"}, "text_weight must be one number or a list with one per request, not '7'"),
    ({"text_weight": True}, "text_weight must be one number or a list with one per request, not True"),
    ({"text_weight": [1.0, "a"]}, "text_weight must be one number or a list with one per request, not 'a'"),
    ({"text_weight": [[1.0]]}, "text_weight must be one number or a list with one per request, not [1.0]"),
    ({"text_weight": float("nan")}, "text_weight must be finite in float32, not nan"),
    ({"image_weight": float("inf")}, "image_weight must be finite in float32, not inf"),
    ({"image_weight": 1e39}, "image_weight must be finite in float32, not 1e+39"),
    ({"text_weight": [1.0, float("nan")]}, "text_weight must be finite in float32, not nan"),
    ({"gamma_scope": "a"}, "gamma_scope must be one number or a list with one per request, not 'a'"),
    ({"gamma_scope": 1.5}, "gamma_scope must be from 0 to 1, not 1.5"),
    ({"gamma_scope": [0.5, -0.1]}, "gamma_scope must be from 0 to 1, not -0.1"),
    ({"gamma_num": 2}, "gamma_num must be from 0 to 1, not 2"),
    ({"rescale": -1}, "rescale must be from 0 to 1, not -1"),
    ({"height": 64.0}, "height must be a whole number, not 64.0"),
    ({"width": "64"}, "width must be a whole number, not '64'"),
    ({"steps": "50"}, "steps must be a whole number, not '50'"),
    ({"steps": 2.5}, "steps must be a whole number, not 2.5"),
    ({"steps": True}, "steps must be a whole number, not True"),
    ({"steps": None}, "steps must be a whole number, not None"),
    ({"steps": np.zeros((9, 9))}, "steps must be a whole number, not array([[0., 0., 0., 0.,"),
    ({"steps": 0}, "steps must be 1 or more, not 0"),
    ({"mask_steps": "3"}, "mask_steps must be a whole number, not '3'"),
    ({"mask_steps": 0}, "mask_steps must be 1 or more, not 0"),
    ({"solver": "heun"}, "solver 'heun' is unknown; known: ddim, euler, dpmpp_2m, dpmpp_2s"),
    ({"solver": None}, "solver None is unknown; known: ddim"),
    ({"spacing": "karras"}, "spacing 'karras' is unknown; known: trailing, leading, linspace"),
    ({"eta": 1.01}, "eta must be from 0 to 1, not 1.01"),
    ({"eta": -0.1}, "eta must be from 0 to 1, not -0.1"),
    ({"eta": [0.1, 0.2]}, "eta must be a number, not [0.1, 0.2]"),
    ({"guidance": 3}, "guidance 3 is unknown; known: paper, direct"),
    ({"guidance_scope": "word"}, "guidance_scope 'word' is unknown; known: image, mask"),
    ({"guidance_start": 2}, "guidance_start must be from 0 to 1, not 2"),
    ({"guidance_stop": -0.1}, "guidance_stop must be from 0 to 1, not -0.1"),
    ({"mask_downscale": None}, "mask_downscale must be a whole number, not None"),
    ({"mask_downscale": 0}, "mask_downscale must be 1 or more, not 0"),
    ({"mask_normalisation": "max"}, "mask_normalisation 'max' is unknown; known: max_norm"),
    ({"mask_kind": "hard"}, "mask_kind 'hard' is unknown; known: soft, binary, threshold"),
    ({"mask_overlap": "both"}, "mask_overlap 'both' is unknown; known: strongest, shared"),
    ({"mask_layers": ()}, "mask_layers must be a list of one or more whole numbers, not ()"),
    ({"mask_layers": 2}, "mask_layers must be a list of one or more whole numbers, not 2"),
    ({"mask_layers": "01"}, "mask_layers must be a list of one or more whole numbers, not '01'"),
    ({"mask_layers": (0, 1.0)}, "mask_layers must be a whole number, not 1.0"),
    ({"mask_layers": (0, -1)}, "mask_layers must be 0 or more, not -1"),
    ({"mask_refine": True}, "mask_refine True is unknown; known: none, self_attention"),
    ({"scoring": "best"}, "scoring 'best' is unknown; known: fused"),
    ({"gama_scope": 0.3}, "'gama_scope' is not a sampling option; known: text_weight, image_weight"),
]


@pytest.mark.parametrize(("changes", "sentence"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_value_gives_one_line_error(changes, sentence):
    with pytest.raises(rc.UserError, match="^" + re.escape(sentence)) as error:
        rc.SamplingOptions().changed(changes)
    assert "\n" not in str(error.value)


def test_constructor_checks_values():
    with pytest.raises(rc.UserError, match="steps must be a whole number"):
        rc.SamplingOptions(steps="50")


def test_every_option_has_a_wrong_value_case():
    assert {name for changes, _ in WRONG for name in changes} >= set(rc.SamplingOptions.rules())


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"steps": np.int64(8), "height": np.uint8(64)}, {"steps": 8, "height": 64}),
        ({"steps": jnp.asarray(8)}, {"steps": 8}),
        ({"eta": np.float64(0.5), "gamma_num": np.float32(0.5)}, {"eta": 0.5, "gamma_num": 0.5}),
        ({"text_weight": 3}, {"text_weight": 3.0}),
        ({"text_weight": jnp.asarray([1.0, 2.0])}, {"text_weight": (1.0, 2.0)}),
        ({"text_weight": [1, np.float32(2.0)]}, {"text_weight": (1.0, 2.0)}),
        ({"mask_layers": np.arange(2)}, {"mask_layers": (0, 1)}),
        ({"mask_layers": range(1, 3)}, {"mask_layers": (1, 2)}),
        ({"mask_layers": None, "mask_steps": None, "width": None}, {"mask_layers": None, "width": None}),
    ],
    ids=str,
)
def test_numbers_of_any_library_become_python_numbers(given, kept):
    options = rc.SamplingOptions().changed(given)
    for name, value in kept.items():
        assert getattr(options, name) == value and type(getattr(options, name)) is type(value)
    assert isinstance(hash(options), int)


def test_default_mask_steps_are_limited_by_steps():
    """SDXL's default is 12 of 25, which 8 steps reduce to 8; an explicit number is never changed."""
    assert (SDXL.changed({"steps": 8}).mask_steps, SDXL.changed({"steps": 40}).mask_steps) == (8, 12)
    assert SDXL.changed({"steps": 8}).sampler_config(8, 8).guided_steps == 8
    assert SDXL.changed({"steps": 8, "mask_steps": None}).mask_steps is None
    with pytest.raises(rc.UserError, match=r"mask_steps must be from 1 to 8 \(steps\), not 12"):
        SDXL.changed({"steps": 8, "mask_steps": 12}).sampler_config(8, 8)
    with pytest.raises(rc.UserError, match=r"mask_steps must be from 1 to 25 \(steps\), not 26"):
        SDXL.changed({"mask_steps": 26}).sampler_config(8, 8)


@pytest.mark.parametrize(
    ("changes", "subjects", "expected"),
    [
        # ε_T is a term of the weighted prediction, so the pass runs with and without new masks
        ({}, True, [(0, 4, True, False), (4, 14, True, True), (14, 25, False, False)]),
        ({"mask_steps": 20}, True, [(0, 4, True, False), (4, 14, True, True), (14, 20, True, False),
                                    (20, 25, False, False)]),
        ({"guidance": "direct"}, True, [(0, 4, True, False), (4, 10, True, True), (10, 14, False, True),
                                        (14, 25, False, False)]),
        # ε_T is the prediction outside the masks
        ({"guidance_scope": "mask", "mask_steps": 20}, True, [(0, 4, True, False), (4, 14, True, True),
                                                              (14, 25, True, False)]),
        # no subjects, no masks
        ({"guidance": "direct"}, False, [(0, 4, False, False), (4, 14, False, True), (14, 25, False, False)]),
    ],
)  # fmt: skip
def test_phases_split_where_passes_change(changes, subjects, expected):
    """25 steps with guidance from 0.16 to 0.56 (steps 4 … 13) and 10 mask steps."""
    options = rc.SamplingOptions(steps=25, mask_steps=10, guidance_start=0.16, guidance_stop=0.56)
    found = phases(options.changed(changes).sampler_config(8, 8), subjects)
    assert [(phase.start, phase.stop, phase.guided, phase.weighted) for phase in found] == expected


@pytest.mark.parametrize(
    ("refine", "side", "guided"),
    [
        ("none", 64, [True, False]),
        ("self_attention", 32, [True, False]),
        ("self_attention", 64, [True, False, False]),
    ],
)
def test_steps_that_reuse_masks_make_no_large_maps(refine, side, guided):
    """Refined maps of 64×64 latents need large matrices, so steps 10 … 13 have a loop without them."""
    options = rc.SamplingOptions(steps=25, mask_steps=10, guidance_stop=0.56, mask_refine=refine)
    assert [phase.guided for phase in phases(options.sampler_config(side, side))] == guided


@pytest.mark.parametrize(
    ("steps", "weighted"), [(1, [0]), (2, [0]), (4, [1]), (8, [1, 2, 3]), (100, range(16, 56))]
)
def test_guidance_interval_is_rounded_to_steps(steps, weighted):
    """0.16 and 0.56 of 4 steps are 0.64 and 2.24, so 1 and 2: one step."""
    options = rc.SamplingOptions(steps=steps, guidance_start=0.16, guidance_stop=0.56)
    found = phases(options.sampler_config(8, 8))
    assert [i for phase in found if phase.weighted for i in range(phase.start, phase.stop)] == list(weighted)
    assert [i for phase in found for i in range(phase.start, phase.stop)] == list(range(steps))


@pytest.mark.parametrize(("start", "stop", "weighted"), [(0.0, 1.0, [True]), (0.5, 0.5, [False])])
def test_full_or_empty_guidance_interval_is_one_phase(start, stop, weighted):
    """One phase, so one compiled program."""
    config = rc.SamplingOptions(steps=4, guidance_start=start, guidance_stop=stop).sampler_config(8, 8)
    assert [phase.weighted for phase in phases(config)] == weighted


def test_guidance_stop_before_start_raises():
    with pytest.raises(rc.UserError, match=r"guidance_start 0.6 and guidance_stop 0.5 must be shares"):
        rc.SamplingOptions(guidance_start=0.6, guidance_stop=0.5).sampler_config(8, 8)


CHANGES = {
    "text_weight": [2.0, 3.0],
    "image_weight": 1.5,
    "rescale": 0.7,
    "gamma_scope": 0.5,
    "gamma_num": 0.6,
    "height": 24,
    "width": 32,
    "steps": 9,
    "mask_steps": 4,
    "solver": "euler",
    "spacing": "leading",
    "eta": 0.25,
    "guidance": "direct",
    "guidance_scope": "mask",
    "guidance_start": 0.25,
    "guidance_stop": 0.75,
    "mask_downscale": 2,
    "mask_normalisation": "min_max_norm",
    "mask_kind": "binary",
    "mask_overlap": "shared",
    "mask_layers": (0, 2),
    "mask_refine": "self_attention",
    "scoring": "mean",
}


def test_model_folder_keeps_sampling_defaults(micro_pipe, tmp_path):
    """All of them changed, through `save` and `load`: equal and, as `jax.jit` needs them, hashable."""
    assert CHANGES.keys() == rc.SamplingOptions.rules().keys()
    chosen = rc.SamplingOptions().changed(CHANGES)
    assert all(getattr(chosen, name) != getattr(rc.SamplingOptions(), name) for name in CHANGES)
    rc.save(micro_pipe.replace(defaults=chosen), tmp_path)
    loaded = rc.load(tmp_path).defaults
    assert loaded == chosen and hash(loaded) == hash(chosen)
    configs = [x.changed({"guidance": "paper"}).sampler_config(8, 8) for x in (loaded, chosen)]
    assert hash(configs[0]) == hash(configs[1])


@pytest.mark.parametrize("base", [rc.SamplingOptions(), SDXL], ids=["SD1.5", "SDXL"])
def test_options_round_trip_through_json(base):
    written = json.dumps(dataclasses.asdict(base.changed(CHANGES)))
    assert base.changed(json.loads(written)) == base.changed(CHANGES)


def test_sampler_config_contains_only_static_options():
    """Every other option is a traced number, or a size that determines the latents and the mask grid."""
    static = ProgramOptions.rules().keys()
    traced = {field.name for field in dataclasses.fields(rc.Settings)}
    assert rc.SamplingOptions.rules().keys() - static - traced == {"height", "width"}
    assert set(rc.SamplingOptions.scalars()) == traced
    for allowed in ({"guidance": "paper"}, {"guidance_scope": "image"}):  # not both changed at once
        changes = CHANGES | allowed
        config = rc.SamplingOptions().changed(changes).sampler_config(8, 12)
        assert {name: getattr(config, name) for name in static} == {name: changes[name] for name in static}
    assert (config.height, config.width, config.mask_height, config.mask_width) == (8, 12, 4, 6)


def test_every_solver_and_spacing_makes_a_table():
    schedule = ScheduleConfig()
    for solver, spacing in itertools.product(SOLVERS, SPACINGS):
        assert make_table(solver, 4, schedule, spacing).t.shape == (4,)
