"""Helpers of the comparisons with diffusers and transformers; loaded by `runpy`, as tests are no package."""

import re
from collections.abc import Mapping

import numpy as np
import torch

from realcustom_jax.weights.keys import check_keys, flatten, from_torch, torch_key, torch_shape, unflatten

# Relative L2 of float32 networks of some dozen layers, both sides float32: sums in another order leave about
# 1e-6. A wrong activation, epsilon, order of channels or padding shows as 1e-3 and more.
TOLERANCE = 1e-4
# A norm's epsilon matters only for variances of about its size, so inputs of norms are scaled by this.
WEAK = 1e-3

torch.set_num_threads(1)  # the models are tiny, and other test workers want the cores
torch.set_grad_enabled(False)


def randomise(module: torch.nn.Module, seed: int, weak: str | None = None) -> torch.nn.Module:
    """Gives every parameter a value that changes the output: scales about 1, biases about 0, none equal.

    `weak`: a regex of parameters that are multiplied by `WEAK`.
    """
    rng = np.random.default_rng(seed)
    for name, parameter in module.named_parameters():
        value = rng.standard_normal(parameter.shape)
        if parameter.ndim < 2:
            scale = name.endswith((".weight", ".lambda1"))  # of a norm, of a branch
            value = 0.3 * value + float(scale)
        else:
            value *= np.prod(parameter.shape[1:]) ** -0.5
        if weak and re.search(weak, name):
            value *= WEAK
        parameter.copy_(torch.from_numpy(np.asarray(value, np.float32)))
    return module.eval()


def state(module: torch.nn.Module, unused: str | None = None) -> dict[str, torch.Tensor]:
    """The state dict without the keys that match the regex `unused`."""
    tensors = module.state_dict().items()
    return {key: value for key, value in tensors if not (unused and re.search(unused, key))}


def numpy_state(module: torch.nn.Module, unused: str | None = None) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in state(module, unused).items()}


def our_params(shapes, state: Mapping[str, np.ndarray]):
    """Our `params` tree from a state dict with our names, every key used and of the right shape."""
    flat = flatten(shapes)
    check_keys(
        "the state dict",
        {torch_key(path): torch_shape(path, leaf.shape) for path, leaf in flat.items()},
        {key: value.shape for key, value in state.items()},
    )
    return unflatten({path: from_torch(path, state[torch_key(path)]) for path in flat})


def relative_error(ours, theirs) -> float:
    """‖ours − theirs‖ / ‖theirs‖."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape and np.abs(theirs).max() > 1e-6
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def assert_close(ours, theirs, tolerance: float = TOLERANCE) -> None:
    error = relative_error(ours, theirs)
    print(f"relative error {error:.1e}")
    assert error < tolerance


def planes(x) -> torch.Tensor:
    """(B, h, w, C) → PyTorch's (B, C, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


def pixels(x: torch.Tensor) -> np.ndarray:
    """(B, C, h, w) → (B, h, w, C)."""
    return np.moveaxis(x.numpy(), 1, -1)


# transformers' DINOv2 under the names of our `ViT`, as a state dict.
_DINO = {
    r"embeddings\.patch_embeddings\.projection\.(.*)": r"embeddings.patch_embedding.\1",
    r"embeddings\.cls_token": "embeddings.class_embedding",
    r"embeddings\.register_tokens": "embeddings.register_tokens",
    r"embeddings\.position_embeddings": "embeddings.position_embedding.weight",
    r"encoder\.layer\.(\d+)\.norm([12])\.(.*)": r"encoder.layers.\1.layer_norm\2.\3",
    r"encoder\.layer\.(\d+)\.attention\.attention\.([qkv])\w+\.(.*)": (
        r"encoder.layers.\1.self_attn.\2_proj.\3"
    ),
    r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(.*)": r"encoder.layers.\1.self_attn.out_proj.\2",
    r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1": r"encoder.layers.\1.layer_scale\2",
    r"encoder\.layer\.(\d+)\.(mlp\.fc[12]\..*)": r"encoder.layers.\1.\2",
    r"layernorm\.(.*)": r"post_layernorm.\1",
}


def dino_key(key: str) -> str:
    """Our key for a key of transformers' DINOv2; raises unless exactly one pattern matches."""
    [name] = [re.sub(old, new, key) for old, new in _DINO.items() if re.fullmatch(old, key)]
    return f"vision_model.{name}"


def dino_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """In transformers, tokens and positions have leading dimensions of 1."""
    keep = {"class_embedding": 1, "register_tokens": 2, "position_embedding.weight": 2}
    rank = next((rank for end, rank in keep.items() if name.endswith(end)), len(shape))
    return tuple(shape[len(shape) - rank :])
