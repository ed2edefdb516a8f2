"""Face boxes select visual tokens, and face and body strength weigh them."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax.common.errors import UserError
from realcustom_jax.inputs.face_boxes import face_patches, token_weights
from realcustom_jax.inputs.views import reference_views
from realcustom_jax.models.attention import CrossAttention, VisualControl
from realcustom_jax.models.conditioning import encode_reference
from realcustom_jax.models.config import RealCustomConfig
from realcustom_jax.models.projector import make_projector
from realcustom_jax.toybox import Identity, render_reference

PHOTO = np.random.default_rng(0).integers(0, 256, (48, 32, 3), np.uint8)
PROMPT = "a cat on the beach"


@pytest.fixture(scope="module")
def toybox() -> rc.Pipeline:
    return rc.load("toybox")


def painted_patches(box, height, width, fit, grid, size=96):
    """Oracle for `face_patches`: paint the box white, make the view, and average each patch."""
    image = np.zeros((height, width, 3), np.uint8)
    left, top, right, bottom = box
    image[top:bottom, left:right] = 255
    view = reference_views(image, size, high_res=False, fit=fit)[0, :, :, 0] / 255
    if fit == "pad":  # the padding is white too
        black = reference_views(np.zeros_like(image), size, high_res=False, fit=fit)[0, :, :, 0] / 255
        view = view - black
    return view.reshape(grid, size // grid, grid, size // grid).mean(axis=(1, 3))


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 64), (80, 80), (97, 64)])
def test_patches_equal_the_average_of_a_painted_view(fit, height, width):
    box = (24, 20, 56, 60)
    result = face_patches(box, height, width, fit, grid=4)
    # Lanczos resizing blurs the border of the box over about a pixel of 24 per patch
    np.testing.assert_allclose(result, painted_patches(box, height, width, fit, grid=4), atol=0.05)
    assert result.max() > 0.5


def test_box_outside_its_image_raises():
    with pytest.raises(UserError, match=r"\(40, 0, 50, 10\) lies outside its image of 32x48"):
        face_patches((40, 0, 50, 10), 48, 32, "squash", 4)


def test_box_that_the_crop_removes_raises():
    """The middle 40 of 100 pixels are kept: 30 to 70."""
    with pytest.raises(UserError, match=r"\(0, 0, 30, 40\) lies in the part .* that the square crop removes"):
        face_patches((0, 0, 30, 40), 40, 100, "crop", 4)
    assert face_patches((0, 0, 31, 40), 40, 100, "crop", 4).sum() == pytest.approx(4 * 0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"face": "mika"}, "must be a box"),
        ({"face": (1, 2, 3)}, r"must be \(left, top, right, bottom\)"),
        ({"face": (5, 2, 3, 9)}, "is empty"),
        ({"face": (0, 0, float("nan"), 9)}, "must be finite"),
        ({"face": [(0, 0, 1, 1), None]}, "list of 1 boxes"),
        ({"face_strength": 0.5}, "needs a face box"),
        ({"face": (0, 0, 9, 9), "face_strength": -1}, "face_strength must be 0 or more"),
        ({"body_strength": "all"}, "body_strength must be a number"),
    ],
)
def test_invalid_values_raise_one_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        rc.Subject(PHOTO, "cat", **changes)


def test_weights_are_none_when_all_strengths_are_1(micro_models):
    subjects = [[rc.Subject(PHOTO, "cat", face=(0, 0, 16, 16))]]
    assert token_weights(subjects, 1, micro_models) is None


@pytest.mark.parametrize("projector", ["plain", "deep", "shallow"])
def test_weights_of_photos_slots_and_projectors(micro_models, projector):
    changed = RealCustomConfig(
        **{**dataclasses.asdict(micro_models.realcustom), "projector": projector, "reference_fit": "squash"}
    )
    tower = micro_models.image_configs[0]
    grid = tower.image_size // tower.patch_size
    models = dataclasses.replace(micro_models, realcustom=None)
    object.__setattr__(models, "realcustom", changed)  # its towers need not fit here
    half = (0, 0, 32, 24)  # the upper half
    several = rc.Subject(
        images=[PHOTO, PHOTO], words="cat", face=[None, half], face_strength=2, body_strength=0.5
    )
    weights = token_weights([[several], [rc.Subject(PHOTO, "cat")]], 2, models)
    tokens = tower.tokens * (2 if projector == "shallow" else 1)
    assert weights.shape == (2, 2, 2 * tokens)
    first, second = weights[0, 0].reshape(2, tokens)
    np.testing.assert_array_equal(first, 0.5)
    upper = np.repeat(np.where(np.arange(grid) < grid // 2, 2.0, 0.5), grid)
    np.testing.assert_array_equal(second, np.tile(upper, tokens // grid**2))
    np.testing.assert_array_equal(weights[0, 1], 1)
    np.testing.assert_array_equal(weights[1], 1)


def test_weights_scale_the_shares_of_the_attention():
    """Against softmax(QKᵀ/√d) ∘ w · V in numpy, with scores S on top."""
    rng = np.random.default_rng(1)
    module = CrossAttention(features=8, heads=2, visual=True)
    x, text = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((1, 5, 8), (1, 3, 6)))
    visual = jnp.asarray(rng.normal(size=(1, 1, 7, 4)), jnp.float32)
    params = nn.init(lambda m: m(x, m.encode(text, visual), None, None), module)(jax.random.key(0))["params"]
    context = module.apply({"params": params}, text, visual, method="encode")
    weights = jnp.asarray(rng.uniform(size=(1, 1, 7)), jnp.float32)
    scale = jnp.asarray(1 + rng.uniform(size=(1, 1, 7)), jnp.float32)
    control = VisualControl(jnp.ones((1, 1, 5)), scale)
    result, _ = module.apply({"params": params}, x, context.weighted(weights), control, None)
    plain, _ = module.apply({"params": params}, x, context, None, None)

    q = np.asarray(x[0] @ params["to_q"]["kernel"]).reshape(5, 2, 4)
    k, v = np.asarray(context.visual_k[0, 0]), np.asarray(context.visual_v[0, 0])
    logits = np.einsum("qhd,khd->hqk", q, k) / 2 * np.asarray(scale[0, 0])
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    added = np.einsum("hqk,khd->qhd", p * np.asarray(scale[0, 0] * weights[0, 0]), v).reshape(5, 8)
    expected = np.asarray(plain[0]) + added @ np.asarray(params["to_out_0"]["kernel"])
    np.testing.assert_allclose(result[0], expected, atol=1e-5)  # float32 sums of 8 terms


@pytest.mark.parametrize("projector", ["deep", "shallow"])
def test_projector_tokens_follow_the_order_of_patches(projector):
    """Patches in another order give the same tokens in that order."""
    rng = np.random.default_rng(2)
    count, layers = 9, 4 if projector == "shallow" else 1
    features = [rng.normal(size=(1, count, 16)).astype(np.float32) for _ in range(layers)]
    features.append(rng.normal(size=(1, 4 * count, 16)).astype(np.float32))
    module = make_projector(projector, 16, 8, jnp.float32)
    params = module.init(jax.random.key(3), tuple(features))
    tokens = module.apply(params, tuple(features)).reshape(-1, count, 16)  # (grids, N, C)
    order = rng.permutation(count)
    local = features[-1].reshape(1, count, 4, 16)[:, order].reshape(1, 4 * count, 16)
    shuffled = module.apply(params, (*(x[:, order] for x in features[:-1]), local)).reshape(-1, count, 16)
    np.testing.assert_allclose(shuffled, tokens[:, order], atol=1e-5)  # sums in another order


def face_changes(toybox, models, params) -> tuple[np.ndarray, np.ndarray]:
    """Changes (grids, N) of tokens between two photos whose face alone differs, and which are in the box.

    The whole way from pixels to tokens. Attention of the towers spreads a change to tokens outside.
    """
    size, grid = models.image_configs[0].image_size, 8
    box = (size // 4, 0, size // 2, size // 4)
    photos = [render_reference(Identity("cat", 3)).image] * 2
    photos[1] = photos[1].copy()
    face = photos[1][box[1] : box[3], box[0] : box[2]]
    face[:] = 255 - face
    views = np.stack([reference_views(x, size, models.high_res, "squash") for x in photos])
    features = encode_reference(models, toybox.params, views)
    c = models.realcustom
    module = make_projector(c.projector, c.token_dim, c.projector_head_dim, jnp.float32)
    first, second = module.apply(params or module.init(jax.random.key(0), features), features)
    change = np.abs(second - first).mean(axis=-1).reshape(-1, grid * grid)
    inside = face_patches(box, *photos[0].shape[:2], "squash", grid).reshape(-1) > 0.5
    assert inside.sum() == 4
    return change, inside


def test_tokens_of_a_changed_face_change_most(toybox):
    """With the projector that ships."""
    projector = {"params": toybox.params["unet"]["encoder_hidden_states_vision_projection"]}
    [change], inside = face_changes(toybox, toybox.models, projector)
    assert change[inside].min() > 2 * change[~inside].mean()


@pytest.mark.parametrize(("projector", "grids"), [("deep", 1), ("shallow", 2)])
def test_tokens_of_a_changed_face_change_most_in_high_resolution(toybox, projector, grids):
    """With random projectors over the towers' first layer: tokens in the box change more than any other."""
    layers = ((1,) * (4 if projector == "shallow" else 1),) * len(toybox.models.image_configs)
    changes = {"projector": projector, "feature_layers": layers, "token_dim": 32, "projector_head_dim": 16}
    config = dataclasses.replace(toybox.models.realcustom, **changes)
    change, inside = face_changes(toybox, dataclasses.replace(toybox.models, realcustom=config), None)
    assert len(change) == grids
    for tokens in change:
        assert tokens[inside].min() > tokens[~inside].max()


def test_strengths_of_1_keep_the_bits_and_0_removes_the_subject(toybox):
    photo = render_reference(Identity("cat", 3)).image
    box = (16, 8, 48, 32)

    def sample(**changes):
        subjects = [rc.Subject(photo, "cat", **changes)]
        return rc.sample(toybox, PROMPT, subjects, seed=5, steps=3, progress=False).images

    plain = sample()
    np.testing.assert_array_equal(sample(face=box, face_strength=1, body_strength=1), plain)
    text_only = rc.sample(toybox, PROMPT, seed=5, steps=3, progress=False).images
    # Two programs, with and without a subject slot: rounding may differ by one level.
    absent = sample(face=box, face_strength=0, body_strength=0)
    np.testing.assert_allclose(absent.astype(int), text_only, atol=1)
    face_only, body_only = sample(face=box, body_strength=0), sample(face=box, face_strength=0)
    for image in (face_only, body_only):
        assert np.abs(image.astype(int) - plain).mean() > 0.5
        assert np.abs(image.astype(int) - text_only).mean() > 0.5
    # Without a box body_strength is for all tokens, as a strength is.
    np.testing.assert_allclose(sample(body_strength=0.5).astype(int), sample(strength=0.5), atol=1)
