"""A small RealCustom++ model: SDXL's two text encoders, SigLIP and DINOv2 towers, the published form."""

import copy
import dataclasses

import huggingface_hub
import jax
import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax import pipeline
from realcustom_jax.common.errors import UserError
from realcustom_jax.inputs.views import reference_views
from realcustom_jax.models.config import RealCustomConfig
from realcustom_jax.models.family import Models
from realcustom_jax.models.init import init_params
from realcustom_jax.options import SDXL
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.toybox import Identity, render_reference
from realcustom_jax.weights.components import to_tensors
from realcustom_jax.weights.exports import export_added, export_flax, export_timm, export_unet
from realcustom_jax.weights.keys import flatten, join_added, split_added, unflatten
from realcustom_jax.weights.layouts import DIFFUSERS
from realcustom_jax.weights.original_layout import ORIGINAL_UNET
from realcustom_jax.weights.tensors import write_tensors
from realcustom_jax.weights.towers import open_tower

TOWER = {
    "image_size": 16, "patch_size": 4, "hidden_size": 128, "intermediate_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "projection_dim": None,
    "pre_norm": False, "patch_bias": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def plus(micro_configs, micro_tokenizer) -> Pipeline:
    """An SDXL-shaped pipeline with the deep projector and towers with heads of 64 channels."""
    configs = copy.deepcopy(micro_configs)
    encoder = configs["text_encoder"]
    configs["text_encoder_2"] = encoder | {"hidden_size": 8, "with_projection": True, "projection_dim": 8}
    configs["unet"] |= {
        "cross_attention_dim": 24,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 8 + 6 * 4,
    }
    configs["image_encoder"] = TOWER | {"class_token": False}
    configs["image_encoder_2"] = TOWER | {"registers": 2, "layer_scale": True}
    configs["realcustom"] = {
        "token_dim": 16, "projector": "deep", "projector_head_dim": 8, "scoring": False,
        "feature_layers": ((-2,), (-2,)),
    }  # fmt: skip
    models = Models.from_configs(configs)
    rng = np.random.default_rng(0)
    params = {
        path: (value + 0.05 * rng.standard_normal(value.shape)).astype(np.float32)
        for path, value in flatten(init_params(models.param_shapes(), 0)).items()
    }
    schedule = pipeline.ScheduleConfig()
    return Pipeline(models, schedule, unflatten(params), (micro_tokenizer,) * 2, SDXL)


@pytest.fixture(scope="module")
def saved(plus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plus") / "model"
    pipeline.save(plus, folder)
    return folder


def assert_same(loaded: Pipeline, expected: Pipeline) -> None:
    assert loaded.models == expected.models
    ours, theirs = flatten(expected.params), flatten(loaded.params)
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        np.testing.assert_array_equal(theirs[path], value, err_msg=path)


def test_plus_folder_round_trips_bit_exactly(plus, saved):
    loaded = rc.load(saved)
    assert_same(loaded, plus)
    assert loaded.defaults == SDXL and len(loaded.tokenizers) == 2


def test_every_encoder_changes_the_image(plus):
    """Other weights in any text encoder or image tower give another image."""
    reference = render_reference(Identity("cat", 3)).image
    few = {"steps": 3, "mask_steps": 2}

    def image(pipe: Pipeline, picture=reference) -> np.ndarray:
        subjects = [rc.Subject(picture, "cat")]
        return rc.sample(pipe, "a cat on the beach", subjects=subjects, seed=1, **few).images

    first = image(plus)
    assert first.shape == (1, 16, 16, 3)
    for component in ("text_encoder", "text_encoder_2", "image_encoder", "image_encoder_2"):
        changed = jax.tree.map(lambda x: x[::-1], plus.params[component])
        assert not np.array_equal(first, image(plus.replace(params={**plus.params, component: changed})))


def test_reference_views_are_whole_image_and_strided_parts():
    """A picture of 2×2 blocks of four grays: each part of the split is flat, the whole keeps the corners."""
    tile = np.array([[0, 80], [160, 240]], np.uint8)
    picture = np.repeat(np.tile(tile, (8, 8))[..., None], 3, axis=-1)
    views = reference_views(picture, 8, high_res=True)
    assert views.shape == (5, 8, 8, 3)
    for view, gray in zip(views[1:], (0, 80, 160, 240), strict=True):
        assert np.abs(view.astype(int) - gray).max() <= 1  # ×255 of ÷255, truncated as published
    assert views[0, 0, 0, 0] == 0 and abs(int(views[0, -1, -1, 0]) - 240) <= 1
    np.testing.assert_array_equal(reference_views(picture, 16, high_res=False), picture[None])


@pytest.mark.parametrize("export", [export_unet, export_added])
def test_checkpoint_file_loads_over_base(plus, saved, tmp_path, export, caplog):
    """With a base's weights in the file, which are then used, as in the published one, or without."""
    other = jax.tree.map(lambda x: x + np.float32(1.0), plus.params["unet"])
    export(plus.replace(params={**plus.params, "unet": other}), tmp_path / "plus.safetensors", "float32")
    base = tmp_path / "base"
    bare = dataclasses.replace(plus.models, realcustom=None, image_configs=())
    params = {name: value for name, value in plus.params.items() if not name.startswith("image")}
    params["unet"], _ = split_added(plus.params["unet"])
    pipeline.save(plus.replace(models=bare, params=params), base)
    towers = [saved / "image_encoder", saved / "image_encoder_2"]
    loaded = rc.load(base, realcustom=tmp_path / "plus.safetensors", image_encoders=towers)
    # Heads of 64 channels are assumed, as in the published model; a file does not tell.
    expected = dataclasses.replace(plus.models.realcustom, projector_head_dim=64, scoring_dim=256)
    assert loaded.models == dataclasses.replace(plus.models, realcustom=expected)
    whole = export is export_unet
    wanted = other if whole else join_added(params["unet"], split_added(other)[1])
    jax.tree.map(np.testing.assert_array_equal, loaded.params["unet"], wanted)
    assert ("also holds a base UNet" in caplog.text) == whole
    # A UNet that is given explicitly has priority.
    given = rc.load(base, realcustom=tmp_path / "plus.safetensors", image_encoders=towers, unet=base / "unet")
    ours, _ = split_added(given.params["unet"])
    jax.tree.map(np.testing.assert_array_equal, ours, params["unet"])


def test_checkpoint_with_partial_base_raises(plus, saved, tmp_path):
    tensors = to_tensors(DIFFUSERS, plus.params["unet"], "float32")
    del tensors["conv_in.weight"]
    write_tensors(tmp_path / "part.safetensors", tensors)
    with pytest.raises(UserError, match=r"of the \d+ tensors of a base UNet: conv_in.weight is missing"):
        rc.load(saved, realcustom=tmp_path / "part.safetensors")


@pytest.mark.parametrize("form", ["folder", "diffusers", "original"])
def test_other_base_unet_loads_from_folder_or_file(plus, saved, tmp_path, form):
    other = jax.tree.map(lambda x: x + np.float32(1.0), plus.params["unet"])
    base, _ = split_added(other)
    if form == "folder":
        pipeline.save(plus.replace(params={**plus.params, "unet": other}), tmp_path / "other")
        unet = tmp_path / "other"
    else:
        unet = tmp_path / "unet.safetensors"
        layout, prefix = (DIFFUSERS, "") if form == "diffusers" else (ORIGINAL_UNET, "model.diffusion_model.")
        write_tensors(unet, to_tensors(layout, base, "float32", prefix))
    loaded = rc.load(saved, unet=unet)
    ours, added = split_added(loaded.params["unet"])
    jax.tree.map(np.testing.assert_array_equal, ours, base)
    _, kept = split_added(plus.params["unet"])
    jax.tree.map(np.testing.assert_array_equal, added, kept)


def test_base_unet_of_other_shape_raises(plus, saved, micro_pipe, tmp_path):
    pipeline.save(micro_pipe, tmp_path / "other")
    with pytest.raises(UserError, match=r"the UNet in .*other/unet has another shape: \w+ is .*, not "):
        rc.load(saved, unet=tmp_path / "other")


def test_mismatched_or_unrelated_checkpoint_raises(plus, micro_pipe, saved, tmp_path):
    export_added(micro_pipe, tmp_path / "other.safetensors", "float32")
    with pytest.raises(UserError, match="takes 1 layers of each of 2 image towers"):
        rc.load(saved, realcustom=tmp_path / "other.safetensors")
    with pytest.raises(
        UserError, match=r"other\.safetensors, named as diffusers does, does not fit the model: .* mis-sh"
    ):
        rc.load(saved, realcustom=tmp_path / "other.safetensors", image_encoders=[saved / "image_encoder"])
    vae = saved / "vae" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(UserError, match="holds nothing that RealCustom adds"):
        rc.load(saved, realcustom=vae)


def test_flax_weights_load_bit_exactly(plus, saved, tmp_path):
    """From a folder with only `.msgpack` weights."""
    export_flax(plus, tmp_path, "float32")
    assert not list(tmp_path.rglob("*.safetensors"))
    for name in ("tokenizer", "tokenizer_2", "scheduler", "realcustom"):
        (tmp_path / name).symlink_to(saved / name)
    assert_same(rc.load(tmp_path), plus)


def test_timm_towers_load_with_equal_features(plus, saved, tmp_path):
    """timm adds the class token's position to the class token itself: the same float32 sum."""
    export_timm(plus, tmp_path, "float32")
    loaded = rc.load(saved, image_encoders=[tmp_path / "image_encoder", tmp_path / "image_encoder_2"])
    # transformers' default for SigLIP is the tanh GELU, timm's the exact one, which the fixture has
    assert loaded.models == plus.models
    siglip = (loaded.params["image_encoder"], plus.params["image_encoder"])
    jax.tree.map(np.testing.assert_array_equal, *siglip)
    images = np.random.default_rng(0).uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
    tower = plus.models.image_encoders["image_encoder_2"]
    ours, theirs = (tower.apply({"params": p.params["image_encoder_2"]}, images).last for p in (plus, loaded))
    np.testing.assert_array_equal(ours, theirs)
    export_timm(loaded, tmp_path / "again", "float32")
    for name in ("image_encoder", "image_encoder_2"):
        files = [
            (folder / name / "model.safetensors").read_bytes() for folder in (tmp_path, tmp_path / "again")
        ]
        assert files[0] == files[1]


def test_tower_at_other_size_has_resampled_positions(saved):
    config, params = open_tower(saved / "image_encoder_2", image_size=24)
    assert config.image_size == 24
    positions = params["vision_model"]["embeddings"]["position_embedding"]["embedding"]
    assert positions.shape == np.asarray(positions).shape == (1 + 36, 128)


def test_mismatched_towers_raise(plus):
    small = dataclasses.replace(plus.models.image_configs[1], patch_size=8)
    with pytest.raises(
        UserError, match=r"must take images of one size and give as many tokens; got 16 \(16 "
    ):
        dataclasses.replace(plus.models, image_configs=(plus.models.image_configs[0], small))
    with pytest.raises(UserError, match="RealCustom needs an image encoder"):
        dataclasses.replace(plus.models, image_configs=())
    with pytest.raises(UserError, match=r"feature_layers \(7,\): the image tower has 3 layers"):
        layers = RealCustomConfig(projector="deep", feature_layers=((7,), (-2,)))
        dataclasses.replace(plus.models, realcustom=layers)


def test_parameters_load_into_dtype_and_shards(saved):
    """Eight devices: a matrix is sharded, a vector replicated; the values are those of the file."""
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("fsdp",))

    def sharding(path: str, shape: tuple[int, ...]) -> jax.sharding.NamedSharding:
        spec = ("fsdp",) if len(shape) == 2 and shape[0] % 8 == 0 else ()
        assert path.split("/")[0] in ("unet", "vae", "text_encoder", "text_encoder_2", "image_encoder",
                                      "image_encoder_2")  # fmt: skip
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

    pipe = rc.load(saved, param_dtype=jax.numpy.bfloat16, sharding=sharding)
    kernel = pipe.params["text_encoder"]["text_model"]["encoder"]["layers_0"]["mlp"]["fc1"]["kernel"]
    assert kernel.dtype == jax.numpy.bfloat16
    assert kernel.addressable_shards[0].data.shape == (kernel.shape[0] // 8, kernel.shape[1])
    whole = rc.load(saved).params["text_encoder"]["text_model"]["encoder"]["layers_0"]["mlp"]["fc1"]["kernel"]
    np.testing.assert_array_equal(np.asarray(kernel), np.asarray(whole).astype(kernel.dtype))


# ---------------------------------------------------------------- the hub


@pytest.fixture
def cached(saved, tmp_path, monkeypatch):
    """A local hub cache with the model as `someone/plus`, and no network."""
    repository = tmp_path / "models--someone--plus"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "snapshots" / "abc").symlink_to(saved, target_is_directory=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_hub_id_loads_from_cache(plus, cached):
    assert_same(rc.load("someone/plus"), plus)


def test_unknown_hub_id_raises(cached):
    with pytest.raises(UserError, match="'someone/else' is neither a folder nor in the local hub cache"):
        rc.load("someone/else")
    with pytest.raises(UserError, match="'someone/plus' at revision 'v2' is neither a folder nor"):
        rc.load("someone/plus", revision="v2")


def test_revision_without_hub_repository_raises(saved):
    for path, revision, sentence in (
        (saved, "v1", f"revision 'v1' needs a hub repository, but '{saved}' is not on the hub"),
        ("toybox", "v1", "but 'toybox' is not on the hub"),
        ("someone/plus", 1, "revision must be the name of a branch, tag or commit, not 1"),
    ):
        with pytest.raises(UserError, match=sentence):
            rc.load(path, revision=revision)
