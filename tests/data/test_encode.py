"""Stored latents and text: their content, training from them and from pixels, and errors."""

import dataclasses
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax import pipeline
from realcustom_jax.common.errors import UserError
from realcustom_jax.common.pixels import to_signed
from realcustom_jax.data import encode as command
from realcustom_jax.data.buckets import make_buckets
from realcustom_jax.data.encode import (
    Encoding,
    encode_split,
    make_encoding,
    text_fingerprint,
    training_shapes,
    vae_fingerprint,
)
from realcustom_jax.data.encoded import EncodedSplit, encoded_folder, open_encoded, read_info
from realcustom_jax.data.image_text import Split, open_split
from realcustom_jax.data.loader import make_loader
from realcustom_jax.data.prepare.__main__ import prepare
from realcustom_jax.data.prepare.recipe import Recipe
from realcustom_jax.inputs.tokenize import tokenize
from realcustom_jax.inputs.transforms import center_crop_resize
from realcustom_jax.models.conditioning import encode_text
from realcustom_jax.models.family import Models
from realcustom_jax.models.init import init_params
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.training.examples import Curriculum, MakeExample
from realcustom_jax.training.losses import LossConfig, make_loss
from realcustom_jax.weights.keys import flatten, unflatten

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("sources.py"))))
COUNT = 19  # no multiple of the batch of 8, nor of the chunk


@pytest.fixture(scope="module")
def two_texts(micro_pipe, micro_configs) -> Pipeline:
    """The micro model with SDXL's two text encoders and pooled text."""
    first = micro_configs["text_encoder"]
    second = first | {"hidden_size": 8, "with_projection": True, "projection_dim": 12}
    added = {
        "cross_attention_dim": 24,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 12 + 6 * 4,
    }
    configs = micro_configs | {"text_encoder_2": second, "unet": micro_configs["unet"] | added}
    models = Models.from_configs(configs)
    params = init_params(models.param_shapes(), seed=1) | {"vae": micro_pipe.params["vae"]}
    return Pipeline(models, micro_pipe.schedule, params, micro_pipe.tokenizers * 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Split:
    """Pictures of three aspect ratios."""
    folder = tmp_path_factory.mktemp("data")
    sizes = [(32, 24), (20, 40), (26, 26)]
    captions = (b"a cat", b"a dog in the snow")
    samples = [
        {"jpg": common.encode(common.picture(i, *sizes[i % 3])), "txt": captions[i % 2]} for i in range(COUNT)
    ]
    common.write_tar(folder / "0.tar", samples)
    prepare([str(folder)], folder / "out", Recipe())
    return open_split(folder / "out", "train")


@dataclasses.dataclass(frozen=True)
class Encoded:
    encoding: Encoding
    split: EncodedSplit
    pipe: Pipeline


@pytest.fixture(scope="module", params=[False, True], ids=["squares", "buckets, text"])
def encoded(request, micro_pipe, two_texts, data, tmp_path_factory):
    """Latents made in chunks of 5; also text, of a model of SDXL's kind."""
    pipe = two_texts if request.param else micro_pipe
    model = tmp_path_factory.mktemp("models") / "micro"
    pipeline.save(pipe, model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "_CHUNK", 5)
        encoding = make_encoding(str(model), 1, request.param, step=4, max_aspect=2.0, text=request.param)
        encode_split(data, encoding)
    yield Encoded(encoding, open_encoded(data, encoding.vae, encoding.shapes, True, encoding.text), pipe)
    shutil.rmtree(encoded_folder(data))


def test_stored_posterior_equals_vae_output(encoded):
    """Against the VAE on one image at a time: float16 has 11 bits, so 2e-3 of values up to 4.

    The last six images have all aspect ratios and end with the last chunk, whose last batch is not full.
    """
    moments = jax.jit(
        lambda image: encoded.pipe.models.vae.apply(
            {"params": encoded.pipe.params["vae"]}, image, method="moments"
        )
    )
    encoding, split = encoded.encoding, encoded.split
    assert len(split) == COUNT
    shapes = set()
    for i in range(COUNT - 6, COUNT):
        example = split[i]
        ratio = example["image"].shape[0] / example["image"].shape[1]
        shape = min(encoding.shapes, key=lambda s, r=ratio: abs(np.log(s[0] / s[1] / r)))
        shapes.add(shape)
        image = to_signed(center_crop_resize(example["image"], shape))[None]
        mean, log_variance = moments(image)
        assert example["mean"].dtype == np.float16
        np.testing.assert_allclose(example["mean"], mean[0], rtol=1e-3, atol=2e-3)
        np.testing.assert_allclose(example["log_variance"], log_variance[0], rtol=1e-3, atol=2e-3)
    assert len(shapes) == (1 if len(encoding.shapes) == 1 else 3)


def test_stored_text_equals_text_encoder_output(encoded):
    """Against one caption at a time, and the empty one: float16 has 11 bits, of values up to 4."""
    if not encoded.encoding.text:
        assert encoded.split.empty_text is None and "text" not in encoded.split[0]
        return
    pipe, encode = encoded.pipe, jax.jit(encode_text, static_argnums=0)
    captions = set()
    for stored in (*(encoded.split[i] for i in range(COUNT)), {"caption": "", **encoded.split.empty_text}):
        if stored["caption"] in captions:
            continue
        captions.add(stored["caption"])
        ids = [tokenize(tokenizer, stored["caption"]) for tokenizer in pipe.tokenizers]
        for name, expected in zip(("text", "pooled"), encode(pipe.models, pipe.params, ids), strict=True):
            assert stored[name].dtype == np.float16
            np.testing.assert_allclose(stored[name], expected[0], rtol=1e-3, atol=2e-3)
    assert captions == {"a cat", "a dog in the snow", ""}


def batches_of(encoded, data, side: int | None) -> list[dict]:
    """The first batch from pixels, and the same batch from stored values."""
    shapes = encoded.encoding.shapes
    buckets = make_buckets(data.sizes(), shapes) if len(shapes) > 1 else None
    made = []
    for source, empty in ((data, None), (encoded.split, encoded.split.empty_text)):
        transform = MakeExample(
            encoded.pipe.tokenizers, image_size=16, reference_size=side, high_res=False, of_subject=False,
            region_downscale=None, batch_size=4, curriculum=Curriculum(start=1.0), drop_text=0.3,
            drop_image=0.1, drop_both=0.1, text_only=0.5, empty_text=empty,
        )  # fmt: skip
        made.append(next(make_loader(source, transform, batch_size=4, seed=1, buckets=buckets)))
    return made


def test_stored_batch_equals_pixel_batch_otherwise(encoded, data):
    """The reference still comes from pixels, with the same augmentation; the same texts are dropped."""
    pixels, stored = batches_of(encoded, data, side=16)
    assert pixels.keys() == {"image", "ids", "reference", "flag"}
    text = {"text", "pooled"} if encoded.encoding.text else {"ids"}
    assert stored.keys() == {"mean", "log_variance", "reference", "flag", *text}
    for name in pixels.keys() & stored.keys():
        np.testing.assert_array_equal(pixels[name], stored[name])
    if encoded.encoding.text:
        empty = tokenize(encoded.pipe.tokenizers[0], "")
        dropped = [bool((ids[0] == empty).all()) for ids in pixels["ids"]]
        found = [bool((text == encoded.split.empty_text["text"]).all()) for text in stored["text"]]
        assert found == dropped and len(set(dropped)) == 2


def test_loss_from_stored_latents_equals_loss_from_pixels(encoded, data):
    """Same key, same draws: equal up to float16's relative 5e-4 of each number; of the average loss, 1e-3.

    The fake UNet halves its input and adds the text, so the loss depends on both. Another key changes the
    loss by more than three times the tolerance, so the draw from the posterior must be the same one.
    """
    pipe = encoded.pipe
    models = SimpleNamespace(
        vae=pipe.models.vae, vae_config=pipe.models.vae_config, unet_config=pipe.models.unet_config,
        text_encoders=pipe.models.text_encoders, unet=HalvesAndAdds(),
    )  # fmt: skip
    loss = jax.jit(make_loss("base", models, pipe.schedule, LossConfig()))
    params = pipe.params | {"unet": None}
    batches = batches_of(encoded, data, side=None)
    pixels, stored = (float(loss(params, batch, jax.random.key(1))[0]) for batch in batches)
    assert stored == pytest.approx(pixels, rel=1e-3)
    assert float(loss(params, batches[1], jax.random.key(2))[0]) != pytest.approx(pixels, rel=3e-3)
    if encoded.encoding.text:
        for name in ("text", "pooled"):
            other = batches[1] | {name: batches[1][name][::-1]}
            assert float(loss(params, other, jax.random.key(1))[0]) != pytest.approx(pixels, rel=3e-3)


class HalvesAndAdds:
    """A fake UNet."""

    def apply(self, variables, *, method):
        return method(self)

    def encode_context(self, text, features, flags, pooled=None, time_ids=None):
        added = text[:, 1].mean(axis=-1)
        return added if pooled is None else added + pooled.mean(axis=-1)

    def __call__(self, z, t, context, masks=None, token_selection=None):
        return 0.5 * z + context[:, None, None, None], None


def test_split_without_images_decodes_no_image(encoded, data):
    """Text that is not requested is not read either."""
    encoding = encoded.encoding
    split = open_encoded(data, encoding.vae, encoding.shapes, with_image=False)
    assert split[3].keys().isdisjoint({"image", "text", "pooled"}) and split.empty_text is None
    assert {split[i]["caption"] for i in range(COUNT)} == {"a cat", "a dog in the snow"}


def test_interrupted_encoding_resumes(encoded, data, monkeypatch):
    """Killed after two of four chunks: the other two are computed, and the latents are the same."""
    encoding, split = encoded.encoding, encoded.split
    expected = [split[i]["mean"] for i in range(COUNT)]
    folder = encoded_folder(data)
    kept = folder.rename(folder.with_name("kept"))
    calls = []
    monkeypatch.setattr(command, "_CHUNK", 5)
    records = command._records

    def stop(split, chunk, *rest):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(chunk)
        return records(split, chunk, *rest)

    monkeypatch.setattr(command, "_records", stop)
    with pytest.raises(KeyboardInterrupt):
        encode_split(data, encoding)
    assert read_info(folder) is None
    monkeypatch.setattr(command, "_records", lambda *a: calls.append(a[1]) or records(*a))
    reports = []
    monkeypatch.setattr(command.Progress, "stage", lambda _, text, done: reports.append(done))
    monkeypatch.setattr(command.Progress, "step", lambda _, done, total, *names: reports.append(done))
    encode_split(data, encoding)
    # Progress starts at the stored count and advances by batch, not by chunk.
    assert reports[0] == 10 and reports[-1] == COUNT and np.diff(reports).max() <= encoding.batch_size
    encode_split(data, encoding)  # nothing is left to do
    assert calls == [range(5), range(5, 10), range(10, 15), range(15, 19)]
    again = open_encoded(data, encoding.vae, encoding.shapes, with_image=False)
    for i in range(COUNT):
        np.testing.assert_array_equal(again[i]["mean"], expected[i])
    shutil.rmtree(folder)
    kept.rename(folder)


def test_mismatched_latents_raise(encoded, data):
    encoding = encoded.encoding
    with pytest.raises(UserError, match="were made with another VAE than the model's"):
        open_encoded(data, "other", encoding.shapes, True)
    with pytest.raises(UserError, match=r"are of images of .*16×16.*, but training needs 32×32"):
        open_encoded(data, encoding.vae, ((32, 32),), True)
    message = "has no text features.*--encode-text"
    if encoding.text:
        message = "text features in .* were made with other text encoders"
    with pytest.raises(UserError, match=message):
        open_encoded(data, encoding.vae, encoding.shapes, True, text="other")
    for changes in ({"vae": "other"}, {"text": "other"}):
        with pytest.raises(UserError, match="has latents of another VAE or other shapes, or was made with"):
            encode_split(data, dataclasses.replace(encoding, **changes))


def test_missing_latents_error_names_command(tmp_path):
    data = Split(None, tmp_path, "train")
    with pytest.raises(
        UserError, match=r"no stored latents in '.*encoded-train'.*realcustom_jax.data.encode"
    ):
        open_encoded(data, "x", ((16, 16),), True)


def test_fingerprint_covers_encoders_in_half_precision(two_texts):
    params = flatten(two_texts.params)
    half = {path: np.asarray(value, np.float16).astype(np.float32) for path, value in params.items()}

    def changed(part: str) -> dict:
        return {path: value * 1.01 if path.startswith(part) else value for path, value in params.items()}

    def text(params) -> str:
        return text_fingerprint(two_texts, params)

    def equal(fingerprint, flat) -> bool:
        return fingerprint(unflatten(flat)) == fingerprint(two_texts.params)

    for flat, same_vae, same_text in (
        (half, True, True), (changed("vae/decoder"), True, True),
        (changed("vae/encoder/conv_in"), False, True), (changed("text_encoder_2/"), True, False),
    ):  # fmt: skip
        assert [equal(vae_fingerprint, flat), equal(text, flat)] == [same_vae, same_text]
    on_device = jax.tree.map(jnp.asarray, two_texts.params)
    assert vae_fingerprint(on_device) == vae_fingerprint(two_texts.params)
    one = two_texts.replace(tokenizers=two_texts.tokenizers[:1])
    assert text_fingerprint(one, two_texts.params) != text(two_texts.params)


def test_damaged_empty_text_file_raises(encoded, data):
    path = encoded_folder(data) / "empty.safetensors"
    if not encoded.encoding.text:
        assert not path.exists()
        return
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    with pytest.raises(UserError, match=r"empty.safetensors' is missing or damaged; delete that folder"):
        open_encoded(data, encoded.encoding.vae, encoded.encoding.shapes, True, encoded.encoding.text)
    path.write_bytes(whole)


def test_command_stores_latents_and_text(data, two_texts, tmp_path, capsys):
    """On a copy of the data set, without the latents that other tests stored."""
    model, copy = tmp_path / "model", tmp_path / "data"
    pipeline.save(two_texts, model)
    shutil.copytree(data.folder, copy / data.folder.relative_to(data.folder.parents[1]),
                    ignore=shutil.ignore_patterns("encoded-*"))  # fmt: skip
    command.main(["--data-dir", str(copy), "--model", str(model), "--encode-batch", "1", "--encode-text"])
    assert f"wrote {COUNT} latents and text features" in capsys.readouterr().out
    info = read_info(encoded_folder(open_split(copy, "train")))
    assert info.examples == COUNT and info.text == text_fingerprint(two_texts, two_texts.params)


def test_command_encodes_with_requested_dtypes(data, two_texts, tmp_path):
    """Against the modules in float32 and bfloat16, which differ by more than float16's rounding."""
    model, copy = tmp_path / "model", tmp_path / "data"
    pipeline.save(two_texts, model)
    shutil.copytree(data.folder, copy / data.folder.relative_to(data.folder.parents[1]),
                    ignore=shutil.ignore_patterns("encoded-*"))  # fmt: skip
    options = ["--data-dir", str(copy), "--model", str(model), "--encode-batch", "1", "--encode-text"]
    command.main([*options, "--vae-dtype", "bfloat16"])
    split = open_split(copy, "train")
    info = read_info(encoded_folder(split))
    assert (info.vae_dtype, info.text_dtype) == ("bfloat16", "float32")
    stored = open_encoded(split, vae_fingerprint(two_texts.params), ((16, 16),), True, info.text)[0]
    image = center_crop_resize(stored["image"], (16, 16))
    ids = [tokenize(tokenizer, stored["caption"]) for tokenizer in two_texts.tokenizers]

    def errors(dtype) -> tuple[float, float]:
        models = dataclasses.replace(two_texts.models, dtype=dtype)
        params = jax.tree.map(lambda x: jnp.asarray(x, dtype), two_texts.params)
        moments = jax.jit(
            lambda x: models.vae.apply({"params": params["vae"]}, to_signed(x), method="moments")
        )
        mean, _ = moments(image[None])
        text, _ = jax.jit(encode_text, static_argnums=0)(models, params, ids)
        # NumPy, so that differences are taken in float32 whatever the precisions are.
        pairs = ((stored["mean"], mean[0]), (stored["text"], text[0]))
        return tuple(np.abs(np.float32(x) - np.asarray(y, np.float32)).max() for x, y in pairs)

    whole, half = errors(jnp.float32), errors(jnp.bfloat16)
    assert half[0] < 2e-3 < whole[0] and whole[1] < 2e-3 < half[1]
    with pytest.raises(UserError, match="or in another precision; delete it first"):
        command.main(options)


def test_bucket_step_that_unet_cannot_halve_raises(micro_models):
    """Latents are half the pixels, and the UNet halves them once more: multiples of 4."""
    assert training_shapes(micro_models, False, 7, 2.0) == ((16, 16),)
    with pytest.raises(UserError, match="the bucket step 6 must be a multiple of 4 pixels"):
        training_shapes(micro_models, True, 6, 2.0)
