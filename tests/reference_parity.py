"""Compare this package with the published implementation: `python tests/reference_parity.py FILE.npz`.

Prints one line per quantity: name, relative L2 error, tolerance. Exit status 1 if an error is too large.

Tolerances are float32 rounding through a whole network: 1e-4 for single passes, maps, masks and projectors,
2e-3 for the images of whole sampling loops, whose guidance multiplies differences by 3.5 at every step.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent / "golden"))

import golden_files

from realcustom_jax.diffusion.conditioning import Conditioning, Settings
from realcustom_jax.diffusion.masks import aggregate, influence_scope
from realcustom_jax.diffusion.sampler import sample_latents
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.inputs.views import resize_aligned, strided_split, to_bytes
from realcustom_jax.models.conditioning import interleave_local
from realcustom_jax.models.config import RealCustomConfig, UNetConfig, from_mapping
from realcustom_jax.models.family import unet_shapes
from realcustom_jax.models.init import param_shapes
from realcustom_jax.models.unet import UNet
from realcustom_jax.models.vit import ViT, ViTConfig
from realcustom_jax.options import SamplerConfig
from realcustom_jax.weights.components import on_host, read_params
from realcustom_jax.weights.layouts import DIFFUSERS, TIMM
from realcustom_jax.weights.tensors import Tensors

SINGLE, LOOP = 1e-4, 2e-3
PROJECTORS = {"ProjectorHighResMinAttn": "deep", "ProjectorHighResShallowMinAttnV1": "shallow"}

Row = tuple[str, float, float]


def error(result, expected) -> float:
    result, expected = np.asarray(result, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(result - expected) / np.linalg.norm(expected))


def images(x) -> np.ndarray:
    """(B, C, h, w) → (B, h, w, C) and back by `planes`."""
    return np.moveaxis(np.asarray(x), 1, -1)


def planes(x) -> np.ndarray:
    return np.moveaxis(np.asarray(x), -1, 1)


def tensors(file, prefix: str) -> Tensors:
    """The state dict whose keys begin with a prefix."""
    shapes = {key: value.shape for key, value in file.items()}
    return Tensors("the golden file", shapes, file.__getitem__).select(prefix)


def load_unet(file) -> tuple[UNet, dict]:
    """The UNet of a file, with its parameters; every key must fit."""
    values = json.loads(str(file["config"]))
    settings = values["image_prompt_settings"]["vision_projection_config"]
    options = settings["params"]
    config = from_mapping(UNetConfig, values)
    realcustom = RealCustomConfig(
        token_dim=options["out_dim"],
        projector=PROJECTORS[settings["target"].rsplit(".", 1)[-1]],
        projector_head_dim=options["dim_head"],
        scoring=False,
    )
    unet = UNet(config, realcustom)
    shapes = unet_shapes(unet, text_tokens=77, visual_tokens=4, vision_dim=options["vision_dim"])
    return unet, read_params(tensors(file, "w/"), (DIFFUSERS,), shapes, on_host(np.float32))


def features(file, prefix: str) -> tuple[jax.Array, ...]:
    """Reference features with an axis for the single subject: each (B, 1, N, V)."""
    count = sum(key.startswith(prefix) for key in file)
    return tuple(jnp.asarray(file[f"{prefix}{i}"])[:, None] for i in range(count))


def unet_rows(file) -> Iterator[Row]:
    """Single passes, maps, masks, projector and whole loops of a UNet file."""
    unet, params = load_unet(file)
    batch = file["in_x"].shape[0]
    words = jnp.broadcast_to(jnp.asarray(file["in_target"], jnp.float32)[:, None], (batch, 1, 77))
    x, t = jnp.asarray(images(file["in_x"])), jnp.full((batch,), float(file["in_t"]))

    @jax.jit
    def passes(params, visual, masks):
        def run(module):
            given = {"pooled": file["in_pool"], "time_ids": file["in_ids"]}
            context = module.encode_context(jnp.asarray(file["in_txt"]), visual, **given)
            text = module(x, t, context.text_only(), words=words)
            return text, module(x, t, context, masks=masks), module(x, t, context), context.visual

        return unet.apply({"params": params}, method=run)

    (text, aux), (masked, _), (unmasked, _), tokens = passes(
        params, features(file, "in_vis"), jnp.asarray(file["mask_max_norm"])
    )
    yield "t2i_out", error(planes(text), file["t2i_out"]), SINGLE
    for i, word_map in enumerate(aux.word_maps):
        yield f"map_{i:02d}", error(word_map[:, 0], file[f"map_{i:02d}"]), SINGLE
    gamma = jnp.full((batch,), 0.25)
    grid = file["mask_max_norm"].shape[-2:]
    for name in ("max_norm", "min_max_norm", "min_max_per_channel"):
        scope = influence_scope(aggregate(aux.word_maps, *grid, name), gamma, "soft")
        yield f"mask_{name}", error(scope, file[f"mask_{name}"]), SINGLE
    for kind in ("binary", "threshold"):
        scope = influence_scope(aggregate(aux.word_maps, *grid, "max_norm"), gamma, kind)
        yield f"mask_{kind}", error(scope, file[f"mask_{kind}"]), SINGLE
    yield "vision_tokens", error(tokens[:, 0], file["vision_tokens"]), SINGLE
    yield "ti2i_out", error(planes(masked), file["ti2i_out"]), SINGLE
    yield "ti2i_nomask_out", error(planes(unmasked), file["ti2i_nomask_out"]), SINGLE
    for name in sorted(key.removesuffix("_x0") for key in file if key.endswith("_x0")):
        yield from loop_rows(file, name, unet, params, words)


def loop_rows(file, name: str, unet: UNet, params: dict, words: jax.Array) -> Iterator[Row]:
    """One whole sampling loop: the last z_0 and the masks of every step."""
    steps = len(file[f"{name}_timesteps"])
    start = jnp.asarray(images(file[f"{name}_init"]))
    batch, height, width, _ = start.shape
    numbers = {"text_weight": 3.5, "image_weight": 0.0, "rescale": 0.0, "gamma_scope": 0.25, "gamma_num": 1.0}
    conditioning = Conditioning(
        text=jnp.asarray(file["in_txt"]),
        negative_text=jnp.asarray(file["in_ntxt"]),
        features=features(file, "in_vis"),
        negative_features=features(file, "in_nvis"),
        words=words,
        flags=jnp.ones((batch, 1)),
        strengths=jnp.ones((batch, 1)),
        user_masks=jnp.ones((batch, 1, *file[f"{name}_masks"].shape[-2:])),
        replace_guided=jnp.zeros((batch, 1)),
        settings=Settings(**{key: jnp.full((batch,), value) for key, value in numbers.items()}),
        pooled=jnp.asarray(file["in_pool"]),
        negative_pooled=jnp.asarray(file["in_npool"]),
        time_ids=jnp.asarray(file["in_ids"]),
    )
    mask_height, mask_width = file[f"{name}_masks"].shape[-2:]
    config = SamplerConfig(
        height=height,
        width=width,
        steps=steps,
        mask_steps=4 if steps == 8 else None,
        solver="ddim" if name.startswith("ddim") else "dpmpp_2s",
        guidance="direct",
        mask_height=mask_height,
        mask_width=mask_width,
        mask_normalisation="min_max_per_channel",
        mask_overlap="shared",
        scoring="none",
    )
    run = jax.jit(sample_latents, static_argnames=("unet", "schedule", "config"))
    keys = jax.random.split(jax.random.key(0), batch)
    z0, masks = run(
        params, conditioning, keys, unet=unet, schedule=ScheduleConfig(), config=config, initial=start
    )
    yield f"{name}_masks", error(masks, file[f"{name}_masks"]), SINGLE
    yield f"{name}_x0", error(planes(z0), file[f"{name}_x0"]), LOOP


def tower(file, name: str) -> tuple[ViT, dict, list[int]]:
    """An image tower of a vision file, its parameters, and the blocks whose outputs are taken."""
    values = json.loads(str(file["config"]))[name]
    config = ViTConfig(
        image_size=values["img_size"],
        patch_size=values["patch_size"],
        hidden_size=values["embed_dim"],
        intermediate_size=int(values["embed_dim"] * values["mlp_ratio"]),
        num_hidden_layers=values["depth"],
        num_attention_heads=values["num_heads"],
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        projection_dim=None,
        class_token=f"{name}/cls_token" in file,
        registers=values.get("reg_tokens", 0),
        pre_norm=False,
        patch_bias=True,
        position_prefix=not values.get("no_embed_class", False),
        layer_scale=values.get("layer_scale", False),
        image_mean=tuple(values["mean"]),
        image_std=tuple(values["std"]),
    )
    vit = ViT(config)
    image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    shapes = param_shapes(vit, image)
    return vit, read_params(tensors(file, f"{name}/"), (TIMM,), shapes, on_host(np.float32)), values["blocks"]


def vision_rows(file) -> Iterator[Row]:
    """Views of the reference image and the features of both towers of a vision file."""
    pixels, towers = images(file["in_image"]), [tower(file, name) for name in ("siglip", "dinov2")]
    size = towers[0][0].config.image_size
    wide, local = resize_aligned(pixels, size), strided_split(pixels)
    yield "global_images", error(planes(wide), file["global_images"]), SINGLE
    yield "local_images", error(planes(local), file["local_images"]), SINGLE

    def features_of(views: np.ndarray) -> list[np.ndarray]:
        """Outputs of the chosen blocks without prefix tokens, SigLIP ‖ DINOv2."""
        outputs = []
        for vit, params, blocks in towers:
            states = vit.apply({"params": params}, to_bytes(views) / 127.5 - 1.0).states
            outputs.append([states[block + 1][:, vit.config.prefix :] for block in blocks])
        return [np.concatenate(parts, axis=-1) for parts in zip(*outputs, strict=True)]

    for i, feature in enumerate(features_of(wide)):
        yield f"global_{i}", error(feature, file[f"global_{i}"]), SINGLE
    yield "local", error(interleave_local(features_of(local)[-1]), file["local"]), SINGLE


def check(path: Path) -> Iterator[Row]:
    """All rows of a file; its config tells which kind it is."""
    file = golden_files.read(path)
    config = json.loads(str(file["config"]))
    yield from vision_rows(file) if "siglip" in config else unet_rows(file)


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    failed = False
    for name, value, tolerance in check(Path(sys.argv[1])):
        bad = not value <= tolerance
        failed |= bad
        print(f"{name:24} {value:9.2e}  {tolerance:.0e}{'  ABOVE' if bad else ''}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
