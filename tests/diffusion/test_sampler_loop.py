"""The compiled sampler against a plain Python loop: latents and masks of two requests."""

import dataclasses
import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.models.scoring import TokenSelection

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("sampler_helpers.py"))))
PROMPTS, SUBJECTS, OPTIONS, STEPS = common.PROMPTS, common.SUBJECTS, common.OPTIONS, common.STEPS
compiled, relative = common.compiled, common.relative
Loop = runpy.run_path(str(Path(__file__).with_name("python_loop.py")))["Loop"]


def check_against_loop(pipe, denoise, made, config):
    """Latents and masks of both requests against the loop's; returns the compiled sampler's masks."""
    latents, masks = compiled(pipe, made, config, [3, 4])
    for index, seed in enumerate([3, 4]):
        expected, expected_masks = Loop(pipe, denoise, made, config, index).run(seed)
        assert relative(latents[index], expected[0]) <= 1e-5
        np.testing.assert_allclose(masks[index], expected_masks, atol=1e-5)
    return masks


# Together they cover each solver with each guidance, and each with updated and with reused masks.
CASES = [
    pytest.param(solver, guidance, mask_steps, eta, id=f"{solver}-{guidance}-{mask_steps}-{eta}")
    for i, (solver, eta) in enumerate(
        [("ddim", 0.0), ("ddim", 0.7), ("euler", 0.0), ("dpmpp_2m", 0.0), ("dpmpp_2s", 0.0)]
    )
    for guidance, mask_steps in zip(("paper", "direct"), (None, 2) if i % 2 else (2, None), strict=True)
]


@pytest.mark.parametrize(("solver", "guidance", "mask_steps", "eta"), CASES)
def test_sampler_equals_python_loop(flat_pipe, flat_denoise, conditioning, solver, guidance, mask_steps, eta):
    """Latents and masks of both requests; 1e-5 relative is float32 rounding over five guided steps."""
    made, config = conditioning(solver=solver, guidance=guidance, mask_steps=mask_steps, eta=eta)
    masks = check_against_loop(flat_pipe, flat_denoise, made, config)
    assert masks.shape == (2, STEPS, 2, 8, 8)
    if mask_steps:
        np.testing.assert_array_equal(masks[:, mask_steps:], np.repeat(masks[:, 1:2], STEPS - 2, axis=1))


def test_epsilon_prediction_and_mask_options_equal_loop(micro_pipe, micro_denoise, conditioning):
    """ε-prediction with RealCustom++'s options: half-size masks, another normalisation; 1e-5, float32."""
    pipe = micro_pipe.replace(schedule=ScheduleConfig(prediction_type="epsilon"))
    options = {"mask_downscale": 2, "mask_normalisation": "min_max_per_channel", "mask_kind": "threshold"}
    made, config = conditioning(solver="dpmpp_2s", guidance="direct", mask_steps=2, **options)
    assert check_against_loop(pipe, micro_denoise, made, config).shape == (2, STEPS, 2, 4, 4)


def test_mask_scoped_guidance_equals_loop(micro_pipe, micro_denoise, conditioning):
    """ω_i acts only where masks, on a grid half as fine, are not 0; 1e-5, float32."""
    made, config = conditioning(guidance_scope="mask", mask_downscale=2, gamma_scope=0.2, steps=3)
    masks = np.asarray(check_against_loop(micro_pipe, micro_denoise, made, config))
    assert 0.1 < np.mean(masks.max(axis=2) > 0) < 0.6


@pytest.mark.parametrize(
    ("guidance", "scope", "mask_steps", "mask_downscale"),
    [("paper", "image", 4, 1), ("paper", "mask", 1, 2), ("direct", "image", 1, 1)],
)
def test_guidance_interval_equals_loop(
    flat_pipe, flat_denoise, conditioning, guidance, scope, mask_steps, mask_downscale
):
    """Guidance in steps 1 and 2 of 5, weight 1 elsewhere, with updated and reused masks; 1e-5, float32."""
    interval = {"guidance_start": 0.2, "guidance_stop": 0.6, "guidance_scope": scope}
    grid = {"mask_steps": mask_steps, "mask_downscale": mask_downscale}
    made, config = conditioning(guidance=guidance, **interval, **grid)
    check_against_loop(flat_pipe, flat_denoise, made, config)


@pytest.mark.parametrize("guidance", ["paper", "direct"])
def test_user_masks_strengths_and_refinement_equal_loop(micro_pipe, guidance):
    """One request with a replacing mask, one with an intersecting mask; strengths 0.5 and 1.7. 1e-5, float32.

    Masks 1e-4: refined maps are divided by their small range, which enlarges rounding.
    """
    drawn = np.random.default_rng(5).random((8, 8)) * (np.arange(8) < 5)
    (cat, robot), (dog,) = SUBJECTS
    subjects = [
        [dataclasses.replace(cat, mask=drawn, strength=0.5), robot],
        [dataclasses.replace(dog, mask=drawn, mask_mode="intersect", strength=1.7)],
    ]
    options = {"guidance": guidance, "mask_refine": "self_attention", "mask_normalisation": "min_max_norm"}
    chosen = micro_pipe.defaults.changed({**OPTIONS, **options, "steps": 3, "mask_steps": 2})
    made = rc.make_conditioning(micro_pipe, PROMPTS, subjects, ["", "a house"], chosen)
    config = chosen.sampler_config(8, 8)
    latents, masks = compiled(micro_pipe, made, config, [3, 4])
    np.testing.assert_allclose(masks[0, :, 0], np.stack([drawn] * 3), atol=1e-6)
    assert (np.asarray(masks[0, :, 1])[:, drawn > 0] == 0).all() and np.asarray(masks[0, :, 1]).any()
    for index, seed in enumerate([3, 4]):
        loop = Loop(micro_pipe, refined_pass(micro_pipe), made, config, index)
        expected, expected_masks = loop.run(seed)
        np.testing.assert_allclose(masks[index], expected_masks, atol=1e-4)
        assert relative(latents[index], expected[0]) <= 1e-5


def refined_pass(pipe):
    """`micro_denoise` that also returns the self-attention of the finest level."""

    @jax.jit
    def denoise(params, latents, t, text, features=None, flags=None, strengths=None, **options):
        def run(module):
            context = module.encode_context(text, features, flags, strengths)
            return module(latents, t, context, self_attention_level=0, **options)

        return pipe.models.unet.apply({"params": params}, method=run)

    return denoise


def test_full_mask_equals_equation_4(micro_pipe, micro_denoise, conditioning):
    """γ_scope = 1 with binary masks acts everywhere: a step equals passes without any mask; 1e-5, float32."""
    made, config = conditioning(gamma_scope=1.0, mask_kind="binary", mask_overlap="shared", steps=1)
    latents, masks = compiled(micro_pipe, made, config, [5, 6])
    assert (np.asarray(masks)[0] == 1).all() and (np.asarray(masks)[1, :, 1] == 0).all()
    loop = Loop(micro_pipe, micro_denoise, made, config, 0)
    c, x = loop.c, jax.random.normal(jax.random.fold_in(jax.random.key(5), 0), (8, 8, 4))[None]
    time, share = jnp.asarray([999.0]), jnp.sqrt(jnp.asarray([loop.bars[999]], jnp.float32))
    token_selection = TokenSelection(c.settings.gamma_num, 1.0 - share, share)
    passes = [
        micro_denoise(loop.params, x, time, c.negative_text, words=c.words)[0],
        micro_denoise(loop.params, x, time, c.text, words=c.words)[0],
        micro_denoise(
            loop.params, x, time, c.text, c.features, flags=c.flags, token_selection=token_selection
        )[0],
    ]
    v = passes[0] + 3.0 * (passes[1] - passes[0]) + 2.0 * (passes[2] - passes[1])
    expected = share * x - jnp.sqrt(1 - share**2) * v
    assert relative(latents[0], expected[0]) <= 1e-5
