"""Stable Diffusion's UNet and VAE in plain float64 numpy, over a {PyTorch key: array} state dict.

Written from diffusers' architecture and state-dict names, not from this package: the tests compare the
Flax modules with it where PyTorch is not installed. Channels come second, as in PyTorch; `config` is
diffusers' `config.json`.
"""

import math

import numpy as np


class Weights:
    """A state dict seen from one module: `w / "conv1"` steps in, `w["bias"]` reads, `w.used` was read."""

    def __init__(self, state, prefix="", used=None):
        self.state, self.prefix = state, prefix
        self.used = set() if used is None else used

    def __truediv__(self, name):
        return Weights(self.state, f"{self.prefix}{name}.", self.used)

    def __contains__(self, name):
        return self.prefix + name in self.state

    def __getitem__(self, name):
        self.used.add(self.prefix + name)
        return self.state[self.prefix + name].astype(np.float64)


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def linear(w, x):
    y = x @ w["weight"].T
    return y + w["bias"] if "bias" in w else y


def conv(w, x, stride=1, padding=(1, 1)):
    """padding: rows and columns of zeros before and after."""
    kernel = w["weight"]
    x = np.pad(x, ((0, 0), (0, 0), padding, padding))
    size = kernel.shape[-1]
    rows, columns = ((n - size) // stride + 1 for n in x.shape[2:])
    out = np.zeros((x.shape[0], kernel.shape[0], rows, columns))
    for i in range(rows):
        for j in range(columns):
            window = x[:, :, i * stride : i * stride + size, j * stride : j * stride + size]
            out[:, :, i, j] = np.einsum("bchw,ochw->bo", window, kernel)
    return out + w["bias"][:, None, None]


def group_norm(w, x, groups, eps):
    y = np.empty_like(x)
    for image, result in zip(x, y, strict=True):
        for part, target in zip(np.split(image, groups), np.split(result, groups), strict=True):
            target[...] = (part - part.mean()) / np.sqrt(part.var() + eps)
    return y * w["weight"][:, None, None] + w["bias"][:, None, None]


def layer_norm(w, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w["weight"] + w["bias"]


def attention(w, x, context, heads, seen=None):
    """(B, n, C) attends to (B, m, C'); `seen` gets the probabilities, averaged over heads."""
    q, k, v = linear(w / "to_q", x), linear(w / "to_k", context), linear(w / "to_v", context)
    width = q.shape[-1] // heads
    parts, mean = [], 0
    for h in range(heads):
        own = slice(h * width, (h + 1) * width)
        scores = q[..., own] @ k[..., own].swapaxes(1, 2) / math.sqrt(width)
        parts.append(softmax(scores) @ v[..., own])
        mean = mean + softmax(scores) / heads
    if seen is not None:
        seen.append(mean)
    return linear(w / "to_out.0", np.concatenate(parts, -1))


def pixels_to_tokens(x):
    return x.reshape(*x.shape[:2], -1).swapaxes(1, 2)


def tokens_to_pixels(y, like):
    return y.swapaxes(1, 2).reshape(like.shape)


def resnet(w, x, groups, eps, emb=None):
    h = conv(w / "conv1", silu(group_norm(w / "norm1", x, groups, eps)))
    if emb is not None:
        h = h + linear(w / "time_emb_proj", silu(emb))[:, :, None, None]
    h = conv(w / "conv2", silu(group_norm(w / "norm2", h, groups, eps)))
    return h + (conv(w / "conv_shortcut", x, padding=(0, 0)) if "conv_shortcut.weight" in w else x)


def upsample(w, x):
    return conv(w / "conv", x.repeat(2, axis=2).repeat(2, axis=3))


def transformer(w, x, text, heads, depth, groups, linear_projection, seen):
    y = group_norm(w / "norm", x, groups, 1e-6)
    if not linear_projection:
        y = conv(w / "proj_in", y, padding=(0, 0))
    y = pixels_to_tokens(y)
    if linear_projection:
        y = linear(w / "proj_in", y)
    for d in range(depth):
        block = w / f"transformer_blocks.{d}"
        normed = layer_norm(block / "norm1", y)
        y = y + attention(block / "attn1", normed, normed, heads, seen)
        y = y + attention(block / "attn2", layer_norm(block / "norm2", y), text, heads)
        value, gate = np.split(linear(block / "ff.net.0.proj", layer_norm(block / "norm3", y)), 2, -1)
        y = y + linear(block / "ff.net.2", value * gelu(gate))
    if linear_projection:
        return x + tokens_to_pixels(linear(w / "proj_out", y), x)
    return x + conv(w / "proj_out", tokens_to_pixels(y, x), padding=(0, 0))


def timestep_embedding(t, dim, flip_sin_to_cos, freq_shift):
    half = dim // 2
    angles = np.asarray(t, np.float64)[..., None] * np.array(
        [10000.0 ** (-i / (half - freq_shift)) for i in range(half)]
    )
    halves = [np.sin(angles), np.cos(angles)]
    return np.concatenate(halves[::-1] if flip_sin_to_cos else halves, -1)


def mlp(w, x):
    return linear(w / "linear_2", silu(linear(w / "linear_1", x)))


def per_level(value, levels):
    return list(value) if isinstance(value, (list, tuple)) else [value] * levels


def unet(config, w, x, t, text, pooled=None, time_ids=None, seen=None):
    """UNet2DConditionModel: latents (B, C, h, w), t (B,), text (B, n, C_t), for SDXL pooled and time_ids.

    `seen`, a list for each level, gets the level's self-attention maps.
    """
    levels, groups, eps = len(config["block_out_channels"]), config["norm_num_groups"], config["norm_eps"]
    heads = per_level(config["attention_head_dim"], levels)
    depths = per_level(config["transformer_layers_per_block"], levels)
    frequencies = (config["flip_sin_to_cos"], config["freq_shift"])
    emb = mlp(w / "time_embedding", timestep_embedding(t, config["block_out_channels"][0], *frequencies))
    if config["addition_embed_type"] == "text_time":
        sizes = timestep_embedding(time_ids, config["addition_time_embed_dim"], *frequencies)
        emb = emb + mlp(w / "add_embedding", np.concatenate([pooled, sizes.reshape(len(x), -1)], -1))

    def attend(block, j, x, level):
        return transformer(
            block / f"attentions.{j}", x, text, heads[level], depths[level], groups,
            config["use_linear_projection"], None if seen is None else seen[level],
        )  # fmt: skip

    x = conv(w / "conv_in", x)
    skips = [x]
    for level, kind in enumerate(config["down_block_types"]):
        block = w / f"down_blocks.{level}"
        for j in range(config["layers_per_block"]):
            x = resnet(block / f"resnets.{j}", x, groups, eps, emb)
            if kind == "CrossAttnDownBlock2D":
                x = attend(block, j, x, level)
            skips.append(x)
        if level < levels - 1:
            x = conv(block / "downsamplers.0.conv", x, stride=2)
            skips.append(x)
    block = w / "mid_block"
    x = resnet(block / "resnets.0", x, groups, eps, emb)
    x = attend(block, 0, x, levels - 1)
    x = resnet(block / "resnets.1", x, groups, eps, emb)
    for i, kind in enumerate(config["up_block_types"]):
        block = w / f"up_blocks.{i}"
        for j in range(config["layers_per_block"] + 1):
            x = resnet(block / f"resnets.{j}", np.concatenate([x, skips.pop()], 1), groups, eps, emb)
            if kind == "CrossAttnUpBlock2D":
                x = attend(block, j, x, levels - 1 - i)
        if i < levels - 1:
            x = upsample(block / "upsamplers.0", x)
    return conv(w / "conv_out", silu(group_norm(w / "conv_norm_out", x, groups, eps)))


def vae_middle(w, x, groups):
    x = resnet(w / "resnets.0", x, groups, 1e-6)
    a = w / "attentions.0"
    tokens = pixels_to_tokens(group_norm(a / "group_norm", x, groups, 1e-6))
    x = x + tokens_to_pixels(attention(a, tokens, tokens, heads=1), x)
    return resnet(w / "resnets.1", x, groups, 1e-6)


def vae_out(w, x, groups):
    return conv(w / "conv_out", silu(group_norm(w / "conv_norm_out", x, groups, 1e-6)))


def vae_encode(config, w, images):
    """AutoencoderKL: images (B, 3, H, W) → mean and log-variance of the posterior."""
    groups, levels = config["norm_num_groups"], len(config["block_out_channels"])
    e = w / "encoder"
    x = conv(e / "conv_in", images)
    for level in range(levels):
        block = e / f"down_blocks.{level}"
        for j in range(config["layers_per_block"]):
            x = resnet(block / f"resnets.{j}", x, groups, 1e-6)
        if level < levels - 1:
            x = conv(block / "downsamplers.0.conv", x, stride=2, padding=(0, 1))
    x = vae_out(e, vae_middle(e / "mid_block", x, groups), groups)
    mean, log_variance = np.split(conv(w / "quant_conv", x, padding=(0, 0)), 2, 1)
    return mean, np.clip(log_variance, -30, 20)


def vae_decode(config, w, z):
    """AutoencoderKL: latents that are not scaled (B, c, h, w) → images."""
    groups, levels = config["norm_num_groups"], len(config["block_out_channels"])
    d = w / "decoder"
    x = conv(d / "conv_in", conv(w / "post_quant_conv", z, padding=(0, 0)))
    x = vae_middle(d / "mid_block", x, groups)
    for i in range(levels):
        block = d / f"up_blocks.{i}"
        for j in range(config["layers_per_block"] + 1):
            x = resnet(block / f"resnets.{j}", x, groups, 1e-6)
        if i < levels - 1:
            x = upsample(block / "upsamplers.0", x)
    return vae_out(d, x, groups)
