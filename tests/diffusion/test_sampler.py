"""The compiled sampler against a plain Python loop, and what it promises about requests, masks and traces."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax import sampling
from realcustom_jax.diffusion.masks import aggregate, influence_scope
from realcustom_jax.diffusion.sampler import sample_latents
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.diffusion.solvers import timesteps
from realcustom_jax.models.scoring import InfluenceQuantity
from realcustom_jax.toybox import Identity, render_reference

PROMPTS = ["a cat and a robot on the beach", "a dog in the snow"]
STEPS = 5
OPTIONS = {"steps": STEPS, "text_weight": 3.0, "image_weight": 2.0, "gamma_scope": 0.3, "gamma_num": 0.6}


def reference(word: str, seed: int = 9) -> rc.Subject:
    return rc.Subject(render_reference(Identity(word, seed)).image, word)


SUBJECTS = [[reference("cat"), reference("robot", 19)], [reference("dog", 29)]]


@pytest.fixture(scope="module")
def conditioning(micro_pipe):
    """Two requests in one batch, with two subjects and with one (and an empty slot)."""

    def make(**options):
        chosen = micro_pipe.defaults.changed({**OPTIONS, **options})
        made = rc.make_conditioning(micro_pipe, PROMPTS, SUBJECTS, ["", "a house"], chosen)
        return made, chosen.sampler_config(8, 8)

    return make


def compiled(pipe, conditioning, config, seeds):
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    return sampling._sample_latents(
        pipe.params["unet"], conditioning, keys, unet=pipe.models.unet, schedule=pipe.schedule, config=config
    )


def relative(a, b) -> float:
    return float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b)))


class Loop:
    """The method as the design tells it: one request, one pass at a time, solvers as in their papers."""

    def __init__(self, pipe, denoise, conditioning, config, index):
        self.params, self.denoise, self.config = pipe.params["unet"], denoise, config
        self.schedule = pipe.schedule
        self.c = jax.tree.map(lambda x: x[index : index + 1], conditioning)
        self.bars = pipe.schedule.alphas_cumprod()

    def passes(self, x, t, masks, guided):
        """Prediction of one step, in the guidance mode of the config, and its masks."""
        c, s, config = self.c, self.c.settings, self.config
        share = jnp.sqrt(jnp.asarray([self.bars[t]], jnp.float32))
        quantity = InfluenceQuantity(s.gamma_num, 1.0 - share, share)
        time = jnp.asarray([t], jnp.float32)
        text, aux = self.denoise(self.params, x, time, c.text, words=c.words)
        if guided:
            maps = aggregate(aux.word_maps, config.mask_height, config.mask_width, config.mask_normalisation)
            maps = maps * c.flags[..., None, None]
            masks = influence_scope(maps, s.gamma_scope, config.mask_kind, config.mask_overlap)
        visual = {"flags": c.flags, "masks": masks, "quantity": quantity}
        subject, _ = self.denoise(self.params, x, time, c.text, c.features, **visual)
        if config.guidance == "paper":
            empty, _ = self.denoise(self.params, x, time, c.negative_text, words=c.words)
            guided_by_text = empty + s.text_weight * (text - empty)
            return guided_by_text + s.image_weight * (subject - text), masks
        negative, _ = self.denoise(self.params, x, time, c.negative_text, c.negative_features, **visual)
        return negative + s.text_weight * (subject - negative), masks

    def run(self, seed):
        key = jax.random.key(seed)
        x = jax.random.normal(jax.random.fold_in(key, 0), (8, 8, 4))[None]
        config, masks, all_masks = self.config, None, []
        steps = timesteps(config.spacing, config.steps, 1000, self.schedule.steps_offset)
        previous = saved = None
        for i, t in enumerate(steps):
            bar, last = self.bars[t], i == len(steps) - 1
            next_bar = self.bars[steps[i + 1]] if not last else self.bars[0] if "2s" in config.solver else 1.0
            v, masks = self.passes(x, int(t), masks, i < config.guided_steps)
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
        """The update of each solver, as its paper has it."""
        alpha, sigma = math.sqrt(bar), math.sqrt(1 - bar)
        alpha_n, sigma_n = math.sqrt(next_bar), math.sqrt(1 - next_bar)
        epsilon = (x - alpha * z0) / sigma
        if self.config.solver == "ddim":
            eta = self.config.eta
            s = eta * sigma_n / sigma * math.sqrt(1 - bar / next_bar)
            return alpha_n * z0 + math.sqrt(sigma_n**2 - s**2) * epsilon + s * noise
        if self.config.solver == "euler":  # in the variance-exploding form
            return alpha_n * (x / alpha + (sigma_n / alpha_n - sigma / alpha) * epsilon)
        lam = lambda b: math.inf if b == 1 else math.log(math.sqrt(b / (1 - b)))  # noqa: E731
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


CASES = [
    pytest.param(solver, guidance, mask_steps, eta, id=f"{solver}-{guidance}-{mask_steps}-{eta}")
    for solver, eta in (("ddim", 0.0), ("ddim", 0.7), ("euler", 0.0), ("dpmpp_2m", 0.0), ("dpmpp_2s", 0.0))
    for guidance in ("paper", "direct")
    for mask_steps in (None, 2)
]


@pytest.mark.parametrize(("solver", "guidance", "mask_steps", "eta"), CASES)
def test_equals_a_python_loop(micro_pipe, micro_denoise, conditioning, solver, guidance, mask_steps, eta):
    """Latents and masks of both requests; 1e-5 relative is float32 rounding over five guided steps."""
    made, config = conditioning(solver=solver, guidance=guidance, mask_steps=mask_steps, eta=eta)
    masks = check_against_loop(micro_pipe, micro_denoise, made, config)
    assert masks.shape == (2, STEPS, 2, 8, 8)
    if mask_steps:
        np.testing.assert_array_equal(masks[:, mask_steps:], np.repeat(masks[:, 1:2], STEPS - 2, axis=1))


def test_other_predictions_and_mask_options_equal_the_loop(micro_pipe, micro_denoise, conditioning):
    """ε-prediction with RealCustom++'s options: half-size masks, another normalisation; 1e-5, float32."""
    pipe = micro_pipe.replace(schedule=ScheduleConfig(prediction_type="epsilon"))
    options = {"mask_downscale": 2, "mask_normalisation": "min_max_per_channel", "mask_kind": "threshold"}
    made, config = conditioning(solver="dpmpp_2s", guidance="direct", mask_steps=2, **options)
    assert check_against_loop(pipe, micro_denoise, made, config).shape == (2, STEPS, 2, 4, 4)


def test_traces_once_per_static_config(micro_pipe):
    """Weights, γ's, seeds, prompts and images change and nothing is traced; another step count is traced."""
    traces = []

    def count(event: str, duration: float, **_) -> None:
        if event == "/jax/core/compile/jaxpr_trace_duration":
            traces.append(event)

    ask = lambda *request, **options: rc.sample(micro_pipe, *request, **{**OPTIONS, **options})  # noqa: E731
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
        ]
        assert traces == []
        ask(PROMPTS[1], SUBJECTS[1], 0, steps=7)  # no other test takes so many
        assert traces
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    for other in others:
        assert not np.array_equal(first.images, other.images)


@pytest.mark.parametrize("guidance", ["paper", "direct"])
def test_an_image_depends_on_its_own_request_alone(micro_pipe, guidance):
    """Alone, in a batch of four, and in another place of it; 1e-5 is float32 in batches of any size."""
    prompts = [*PROMPTS, "a house in the city", "a boat on the water"]
    subjects = [*SUBJECTS, [], [reference("boat")]]

    def latents(order):
        chosen = micro_pipe.defaults.changed({**OPTIONS, "guidance": guidance, "mask_steps": 3})
        made = rc.make_conditioning(
            micro_pipe, [prompts[i] for i in order], [subjects[i] for i in order], [""] * len(order), chosen
        )
        return compiled(micro_pipe, made, chosen.sampler_config(8, 8), [10 + i for i in order])[0]

    together, turned = latents([0, 1, 2, 3]), latents([3, 2, 1, 0])
    for i in range(4):
        assert relative(together[i], turned[3 - i]) <= 1e-5
        assert relative(latents([i])[0], together[i]) <= 1e-5


@pytest.mark.parametrize("guidance", ["paper", "direct"])
def test_without_influence_it_is_the_text_only_image(micro_pipe, guidance):
    """γ_scope = 0, no subject beside a request with one, no subject at all: the same latents, ≤ 1e-6."""

    def latents(subjects, **options):
        chosen = micro_pipe.defaults.changed({**OPTIONS, "guidance": guidance, **options})
        made = rc.make_conditioning(micro_pipe, PROMPTS, subjects, ["", ""], chosen)
        return np.asarray(compiled(micro_pipe, made, chosen.sampler_config(8, 8), [1, 2])[0])

    text_only = latents([[], []])
    np.testing.assert_allclose(latents(SUBJECTS, gamma_scope=0.0), text_only, rtol=1e-6, atol=1e-6)
    beside = latents([[], SUBJECTS[1]])
    np.testing.assert_allclose(beside[0], text_only[0], rtol=1e-6, atol=1e-6)
    assert relative(beside[1], text_only[1]) > 1e-3


def test_a_full_mask_is_equation_4(micro_pipe, micro_denoise, conditioning):
    """γ_scope = 1 with binary masks acts everywhere: a step equals passes without any mask; 1e-5, float32."""
    made, config = conditioning(gamma_scope=1.0, mask_kind="binary", mask_overlap="shared", steps=1)
    latents, masks = compiled(micro_pipe, made, config, [5, 6])
    assert (np.asarray(masks)[0] == 1).all() and (np.asarray(masks)[1, :, 1] == 0).all()
    loop = Loop(micro_pipe, micro_denoise, made, config, 0)
    c, x = loop.c, jax.random.normal(jax.random.fold_in(jax.random.key(5), 0), (8, 8, 4))[None]
    time, share = jnp.asarray([999.0]), jnp.sqrt(jnp.asarray([loop.bars[999]], jnp.float32))
    quantity = InfluenceQuantity(c.settings.gamma_num, 1.0 - share, share)
    passes = [
        micro_denoise(loop.params, x, time, c.negative_text, words=c.words)[0],
        micro_denoise(loop.params, x, time, c.text, words=c.words)[0],
        micro_denoise(loop.params, x, time, c.text, c.features, flags=c.flags, quantity=quantity)[0],
    ]
    v = passes[0] + 3.0 * (passes[1] - passes[0]) + 2.0 * (passes[2] - passes[1])
    expected = share * x - jnp.sqrt(1 - share**2) * v
    assert relative(latents[0], expected[0]) <= 1e-5


@pytest.mark.parametrize("scoring", ["text", "visual", "mean", "none"])
def test_scoring_choices_differ(micro_pipe, conditioning, scoring):
    """Every ablation of the scoring changes the result, and `none` is γ_num-free."""
    made, config = conditioning(steps=2)
    fused = compiled(micro_pipe, made, config, [1, 2])[0]
    other = dataclasses.replace(config, scoring=scoring)
    result = compiled(micro_pipe, made, other, [1, 2])[0]
    assert relative(result, fused) > 1e-4
    if scoring == "none":
        fewer, _ = conditioning(steps=2, gamma_num=0.1)
        assert relative(compiled(micro_pipe, fewer, other, [1, 2])[0], result) == 0.0


def test_can_be_put_inside_other_transformations(micro_pipe, conditioning):
    """`sample_latents` under the caller's own jit and vmap over keys equals two calls; 1e-5, float32."""
    made, config = conditioning(steps=2)
    unet, schedule = micro_pipe.models.unet, micro_pipe.schedule
    keys = jax.random.split(jax.random.key(0), (2, 2))

    @jax.jit
    def both(params, made, keys):
        run = lambda k: sample_latents(params, made, k, unet=unet, schedule=schedule, config=config)[0]  # noqa: E731
        return jax.vmap(run)(keys)

    result = both(micro_pipe.params["unet"], made, keys)
    for i in range(2):
        single = sample_latents(
            micro_pipe.params["unet"], made, keys[i], unet=unet, schedule=schedule, config=config
        )[0]
        assert relative(result[i], single) <= 1e-5
