"""The compiled sampler against a plain Python loop; independent requests; one trace per config."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax.common.errors import UserError
from realcustom_jax.diffusion.masks import aggregate, influence_scope
from realcustom_jax.diffusion.sampler import sample_latents
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.diffusion.solvers import timesteps
from realcustom_jax.models.scoring import TokenSelection
from realcustom_jax.toybox import Identity, render_reference

PROMPTS = ["a cat and a robot on the beach", "a dog in the snow"]
STEPS = 5
OPTIONS = {"steps": STEPS, "text_weight": 3.0, "image_weight": 2.0, "gamma_scope": 0.3, "gamma_num": 0.6}


def reference(word: str, seed: int = 9) -> rc.Subject:
    return rc.Subject(render_reference(Identity(word, seed)).image, word)


SUBJECTS = [[reference("cat"), reference("robot", 19)], [reference("dog", 29)]]
DRAWN = np.arange(64).reshape(8, 8) % 8 < 5  # the left five columns


@pytest.fixture(scope="module")
def conditioning(micro_pipe):
    """Two requests in one batch, with two subjects and with one (and an empty slot), for both UNets."""

    def make(**options):
        chosen = micro_pipe.defaults.changed({**OPTIONS, **options})
        made = rc.make_conditioning(micro_pipe, PROMPTS, SUBJECTS, ["", "a house"], chosen)
        return made, chosen.sampler_config(8, 8)

    return make


SAMPLE = jax.jit(sample_latents, static_argnames=("unet", "schedule", "config"))


def compiled(pipe, conditioning, config, seeds):
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    return SAMPLE(
        pipe.params["unet"], conditioning, keys, unet=pipe.models.unet, schedule=pipe.schedule, config=config
    )


def relative(a, b) -> float:
    return float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b)))


class Loop:
    """The method as a plain loop: one request, one pass at a time, solvers as in their papers."""

    def __init__(self, pipe, denoise, conditioning, config, index):
        self.params, self.denoise, self.config = pipe.params["unet"], denoise, config
        self.schedule = pipe.schedule
        self.c = jax.tree.map(lambda x: x[index : index + 1], conditioning)
        self.bars = pipe.schedule.alphas_cumprod()

    def passes(self, x, t, masks, guided, weighted):
        """Prediction of one step, in the guidance mode of the config, and its masks.

        Runs all passes, also those that the sampler skips at weight 1.
        """
        c, s, config = self.c, self.c.settings, self.config
        share = jnp.sqrt(jnp.asarray([self.bars[t]], jnp.float32))
        token_selection = TokenSelection(s.gamma_num, 1.0 - share, share)
        time = jnp.asarray([t], jnp.float32)
        text, aux = self.denoise(self.params, x, time, c.text, words=c.words)
        if guided:
            masks = self.masks(aux)
        visual = {
            "flags": c.flags,
            "masks": masks,
            "token_selection": token_selection,
            "strengths": c.strengths,
        }
        subject, _ = self.denoise(self.params, x, time, c.text, c.features, **visual)
        if not weighted:
            s = s.replace(text_weight=1.0, image_weight=1.0)
        if config.guidance == "paper":
            empty, _ = self.denoise(self.params, x, time, c.negative_text, words=c.words)
            guided_by_text = empty + s.text_weight * (text - empty)
            added = s.image_weight * (subject - text)
            return guided_by_text + np.where(self.guided_region(masks), added, 0.0), masks
        negative, _ = self.denoise(self.params, x, time, c.negative_text, c.negative_features, **visual)
        return negative + s.text_weight * (subject - negative), masks

    def guided_region(self, masks):
        """Where ω_i acts: where a mask, enlarged bilinearly by 2, is not 0."""
        if self.config.guidance_scope == "image":
            return True
        mask = np.asarray(masks).max(axis=1)[0]
        near = [
            (i // 2, min(max(i // 2 + (1 if i % 2 else -1), 0), len(mask) - 1)) for i in range(2 * len(mask))
        ]
        where = [[mask[np.ix_(rows, columns)].any() for columns in near] for rows in near]
        return np.asarray(where)[None, :, :, None]

    def masks(self, aux):
        """The scopes of the one request, subject by subject."""
        c, config = self.c, self.config
        maps = aggregate(aux.word_maps, config.mask_height, config.mask_width, config.mask_normalisation)
        if config.mask_refine == "self_attention":  # the micro UNet has it on the mask grid
            spread = np.einsum("ij,rj->ri", aux.self_attention[0], np.reshape(maps[0], (maps.shape[1], -1)))
            spread = spread - spread.min(-1, keepdims=True)
            maps = jnp.asarray(spread / (spread.max(-1, keepdims=True) + 1e-6)).reshape(maps.shape)
        replaced = np.asarray(c.replace_guided[0]) > 0
        maps = jnp.where(replaced[None, :, None, None], 0.0, maps * c.flags[..., None, None])
        scopes = influence_scope(maps, c.settings.gamma_scope, config.mask_kind, config.mask_overlap)
        masks = np.array(scopes) * np.asarray(c.user_masks)
        for r in np.flatnonzero(replaced):
            masks[0, :, np.asarray(c.user_masks[0, r]) > 0] = 0
        for r in np.flatnonzero(replaced):
            masks[0, r] = c.user_masks[0, r]
        return jnp.asarray(masks)

    def run(self, seed):
        key = jax.random.key(seed)
        x = jax.random.normal(jax.random.fold_in(key, 0), (8, 8, 4))[None]
        config, masks, all_masks = self.config, None, []
        steps = timesteps(config.spacing, config.steps, 1000, self.schedule.steps_offset)
        previous = saved = None
        for i, t in enumerate(steps):
            bar, last = self.bars[t], i == len(steps) - 1
            next_bar = self.bars[steps[i + 1]] if not last else self.bars[0] if "2s" in config.solver else 1.0
            first, end = (
                share * config.steps - 0.5 for share in (config.guidance_start, config.guidance_stop)
            )
            weighted = first <= i < end
            v, masks = self.passes(x, int(t), masks, i < config.guided_steps, weighted)
            if self.schedule.prediction_type == "epsilon":
                z0 = (x - math.sqrt(1 - bar) * v) / math.sqrt(bar)
            else:
                z0 = math.sqrt(bar) * x - math.sqrt(1 - bar) * v
            noise = jax.random.normal(jax.random.fold_in(key, i + 1), x.shape[1:])
            before = x
            x = self.advance(i, last, x, z0, previous, saved, bar, next_bar, steps, noise)
            if i % 2 == 1:
                saved = before
            previous = z0
            all_masks.append(masks)
        return z0, np.stack([np.asarray(m[0]) for m in all_masks])

    def advance(self, i, last, x, z0, previous, saved, bar, next_bar, steps, noise):
        """The update of each solver, as in its paper."""
        alpha, sigma = math.sqrt(bar), math.sqrt(1 - bar)
        alpha_n, sigma_n = math.sqrt(next_bar), math.sqrt(1 - next_bar)
        epsilon = (x - alpha * z0) / sigma
        if self.config.solver == "ddim":
            eta = self.config.eta
            s = eta * sigma_n / sigma * math.sqrt(1 - bar / next_bar)
            return alpha_n * z0 + math.sqrt(sigma_n**2 - s**2) * epsilon + s * noise
        if self.config.solver == "euler":  # in the variance-exploding form
            return alpha_n * (x / alpha + (sigma_n / alpha_n - sigma / alpha) * epsilon)

        def lam(b):
            return math.inf if b == 1 else math.log(math.sqrt(b / (1 - b)))

        h = lam(next_bar) - lam(bar)
        if i > 0:
            last_bar = self.bars[steps[i - 1]]
        if self.config.solver == "dpmpp_2m":
            d = z0
            if i > 0 and not last:
                r = (lam(bar) - lam(last_bar)) / h
                d = (1 + 1 / (2 * r)) * z0 - 1 / (2 * r) * previous
            return sigma_n / sigma * x - alpha_n * math.expm1(-h) * d
        if i % 2 == 1 or i == 0 or last:  # 2S, first order
            return sigma_n / sigma * x - alpha_n * math.expm1(-h) * z0
        h = lam(next_bar) - lam(last_bar)
        r = (lam(bar) - lam(last_bar)) / h
        growth = alpha_n * math.expm1(-h)
        return (
            sigma_n / math.sqrt(1 - last_bar) * saved - growth * previous - growth / (2 * r) * (z0 - previous)
        )


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
