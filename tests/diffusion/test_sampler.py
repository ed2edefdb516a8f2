"""Properties of the sampler: independent requests, subjects without influence, one trace per config."""

import dataclasses
import functools
import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax.common.errors import UserError
from realcustom_jax.diffusion.phases import phases
from realcustom_jax.diffusion.sampler import sample_latents
from realcustom_jax.models.unet import UNet

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("sampler_helpers.py"))))
PROMPTS, SUBJECTS, OPTIONS, DRAWN = common.PROMPTS, common.SUBJECTS, common.OPTIONS, common.DRAWN
SAMPLE, compiled, reference, relative = common.SAMPLE, common.compiled, common.reference, common.relative


@pytest.mark.parametrize("guidance", ["paper", "direct"])
def test_without_guidance_only_generation_branch_runs(flat_pipe, conditioning, guidance):
    """Weights then have no effect, and a subject without influence gives the text-only image; ≤ 1e-6."""
    off = {"guidance": guidance, "guidance_stop": 0.0, "steps": 2, "mask_steps": 1}
    made, config = conditioning(**off)
    latents = compiled(flat_pipe, made, config, [1, 2])[0]
    other, _ = conditioning(**off, text_weight=9.0, image_weight=9.0)
    np.testing.assert_array_equal(compiled(flat_pipe, other, config, [1, 2])[0], latents)
    nowhere, _ = conditioning(**off, gamma_scope=0.0)
    empty = rc.make_conditioning(flat_pipe, PROMPTS, [[], []], ["", ""], flat_pipe.defaults.changed(off))
    text_only = compiled(flat_pipe, empty, config, [1, 2])[0]
    assert relative(compiled(flat_pipe, nowhere, config, [1, 2])[0], text_only) <= 1e-6
    assert relative(latents, text_only) > 1e-3


def test_mask_scoped_guidance_is_text_only_outside_mask(flat_pipe):
    """After one step, latents outside a user's mask are bit-identical to those without a subject."""
    chosen = flat_pipe.defaults.changed({**OPTIONS, "guidance_scope": "mask", "steps": 1})
    dog = dataclasses.replace(SUBJECTS[1][0], mask=DRAWN)

    def latents(subjects):
        made = rc.make_conditioning(flat_pipe, PROMPTS[1:] * 2, subjects, [""] * 2, chosen)
        return np.asarray(compiled(flat_pipe, made, chosen.sampler_config(8, 8), [1, 1])[0])

    drawn, without = latents([[dog], []])
    np.testing.assert_array_equal(drawn[~DRAWN], without[~DRAWN])
    assert (np.abs(drawn - without).max(axis=-1)[DRAWN] > 1e-4).all()


def test_mask_scoped_guidance_without_paper_guidance_raises(micro_pipe):
    chosen = micro_pipe.defaults.changed({"guidance_scope": "mask", "guidance": "direct"})
    with pytest.raises(UserError, match="guidance_scope 'mask' needs guidance 'paper'"):
        chosen.sampler_config(8, 8)


@pytest.mark.parametrize("guidance", ["paper", "direct"])
def test_zero_strength_equals_absent_subject(flat_pipe, guidance):
    """Strength 0 or flag 0 in a slot equals the request without it: masks bit-identical, latents to 1e-6.

    Only values change between the two calls, so nothing is compiled again.
    """
    chosen = flat_pipe.defaults.changed({**OPTIONS, "guidance": guidance, "steps": 3, "mask_kind": "binary"})
    cat, robot = SUBJECTS[0]
    no_cat, no_robot = (dataclasses.replace(subject, strength=0) for subject in (cat, robot))

    def run(subjects, flags=None):
        made = rc.make_conditioning(flat_pipe, PROMPTS[:1] * 6, subjects, [""] * 6, chosen)
        made = made if flags is None else made.replace(flags=jnp.asarray(flags))
        return map(np.asarray, compiled(flat_pipe, made, chosen.sampler_config(8, 8), [1] * 6))

    latents, masks = run([[no_cat, robot], [cat, no_robot], [robot], [cat], [no_cat, no_robot], []])
    for i, alone, kept in ((0, 2, 1), (1, 3, 0), (4, 5, 0)):
        np.testing.assert_array_equal(masks[i, :, kept], masks[alone, :, 0])
        assert not masks[i, :, 1 - kept].any()
        assert relative(latents[i], latents[alone]) <= 1e-6
    pair = [cat, robot]
    flags = [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]
    flagged, flagged_masks = run([pair] * 6, flags)
    for i in (0, 1, 4):
        np.testing.assert_array_equal(flagged_masks[i], masks[i])
        assert relative(flagged[i], latents[i]) <= 1e-6
    assert min(relative(flagged[2], latents[i]) for i in (0, 1)) > 1e-3 < relative(latents[0], latents[4])


def test_sampler_traces_once_per_static_config(flat_pipe):
    """Other weights, γ's, seeds, prompts and images trace nothing; another step count does."""
    traces = []

    def count(event: str, duration: float, **_) -> None:
        if event == "/jax/core/compile/jaxpr_trace_duration":
            traces.append(event)

    def ask(*request, **options):
        return rc.sample(flat_pipe, *request, **{**OPTIONS, **options})

    first = ask(PROMPTS[1], SUBJECTS[1], 0)
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        others = [
            ask(PROMPTS[1], SUBJECTS[1], 1),
            ask(
                PROMPTS[1], SUBJECTS[1], 0, text_weight=1.0, image_weight=5.0, gamma_scope=0.9, gamma_num=0.31
            ),
            ask("a photo of a fish in the forest", [reference("fish", 39)], 0),
            ask(PROMPTS[1], SUBJECTS[1], 0, negative_prompt="a house"),
            ask(PROMPTS[1], [dataclasses.replace(SUBJECTS[1][0], strength=0.2)], 0),
            ask(PROMPTS[1], [dataclasses.replace(SUBJECTS[1][0], mask=DRAWN)], 0),
            ask(PROMPTS[1], [dataclasses.replace(SUBJECTS[1][0], mask=DRAWN, mask_mode="intersect")], 0),
        ]
        assert traces == []
        ask(PROMPTS[1], SUBJECTS[1], 0, steps=7)  # a step count that no other test uses
        assert traces
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    for other in others:
        assert not np.array_equal(first.images, other.images)


@pytest.mark.parametrize("guidance", ["paper", "direct"])
def test_image_depends_only_on_its_own_request(flat_pipe, guidance):
    """Alone, in a batch of four, and in another place of it; 1e-5 is float32 in batches of any size."""
    prompts = [*PROMPTS, "a house in the city", "a boat on the water"]
    boat = dataclasses.replace(reference("boat"), mask=DRAWN, strength=0.7)
    subjects = [*SUBJECTS, [], [boat]]

    def latents(order):
        chosen = flat_pipe.defaults.changed({**OPTIONS, "guidance": guidance, "mask_steps": 3})
        made = rc.make_conditioning(
            flat_pipe, [prompts[i] for i in order], [subjects[i] for i in order], [""] * len(order), chosen
        )
        return compiled(flat_pipe, made, chosen.sampler_config(8, 8), [10 + i for i in order])[0]

    together, reversed_order = latents([0, 1, 2, 3]), latents([3, 2, 1, 0])
    for i in range(4):
        assert relative(together[i], reversed_order[3 - i]) <= 1e-5
        assert relative(latents([i])[0], together[i]) <= 1e-5


@pytest.mark.parametrize("guidance", ["paper", "direct"])
def test_subject_without_influence_gives_text_only_image(flat_pipe, guidance):
    """γ_scope = 0, no subject beside a request with one, no subject at all: the same latents, ≤ 1e-6."""

    def latents(subjects, **options):
        chosen = flat_pipe.defaults.changed({**OPTIONS, "guidance": guidance, **options})
        made = rc.make_conditioning(flat_pipe, PROMPTS, subjects, ["", ""], chosen)
        return np.asarray(compiled(flat_pipe, made, chosen.sampler_config(8, 8), [1, 2])[0])

    text_only = latents([[], []])
    np.testing.assert_allclose(latents(SUBJECTS, gamma_scope=0.0), text_only, rtol=1e-6, atol=1e-6)
    beside = latents([[], SUBJECTS[1]])
    np.testing.assert_allclose(beside[0], text_only[0], rtol=1e-6, atol=1e-6)
    assert relative(beside[1], text_only[1]) > 1e-3


@pytest.mark.parametrize("scoring", ["text", "visual", "mean", "none"])
def test_scoring_modes_change_result(flat_pipe, conditioning, scoring):
    """Every ablation of the scoring changes the result, and `none` is γ_num-free."""
    made, config = conditioning(steps=2)
    fused = compiled(flat_pipe, made, config, [1, 2])[0]
    other = dataclasses.replace(config, scoring=scoring)
    result = compiled(flat_pipe, made, other, [1, 2])[0]
    assert relative(result, fused) > 1e-4
    if scoring == "none":
        fewer, _ = conditioning(steps=2, gamma_num=0.1)
        assert relative(compiled(flat_pipe, fewer, other, [1, 2])[0], result) == 0.0


def test_sample_latents_works_inside_jit_and_vmap(flat_pipe, conditioning):
    """`sample_latents` under the caller's own jit and vmap over keys equals two calls; 1e-5, float32."""
    made, config = conditioning(steps=2)
    unet, schedule = flat_pipe.models.unet, flat_pipe.schedule
    keys = jax.random.split(jax.random.key(0), (2, 2))

    @jax.jit
    def both(params, made, keys):
        def run(k):
            return sample_latents(params, made, k, unet=unet, schedule=schedule, config=config)[0]

        return jax.vmap(run)(keys)

    result = both(flat_pipe.params["unet"], made, keys)
    for i in range(2):
        single = SAMPLE(flat_pipe.params["unet"], made, keys[i], unet=unet, schedule=schedule, config=config)[
            0
        ]
        assert relative(result[i], single) <= 1e-5


def test_equal_passes_of_the_phases_are_traced_once(flat_pipe, conditioning, monkeypatch):
    """Direct guidance has four passes in its three phases, of three kinds."""
    made, config = conditioning(guidance="direct", steps=6, mask_steps=2, guidance_stop=0.5)
    assert len(phases(config)) == 3
    traced, call = [], UNet.__call__

    def spy(self, latents, *args, **kwargs):
        traced.append(latents.shape)
        return call(self, latents, *args, **kwargs)

    monkeypatch.setattr(UNet, "__call__", spy)
    jax.clear_caches()
    keys = jax.random.split(jax.random.key(0), 2)
    run = functools.partial(
        sample_latents, unet=flat_pipe.models.unet, schedule=flat_pipe.schedule, config=config
    )
    jax.eval_shape(run, flat_pipe.params["unet"], made, keys)
    assert len(traced) == 3
