"""The sampler as a plain Python loop; loaded by `runpy`, as tests are no package."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from realcustom_jax.diffusion.masks import aggregate, influence_scope
from realcustom_jax.diffusion.solvers import timesteps
from realcustom_jax.models.scoring import TokenSelection


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
