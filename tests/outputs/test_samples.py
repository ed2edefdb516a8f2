"""Results of `sample`: display, saving, previews, and reproduction from a saved file."""

import dataclasses
import io
import json
import runpy
import sys

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from PIL import Image, PngImagePlugin

import realcustom_jax as rc
from realcustom_jax.inputs.checks import still_used
from realcustom_jax.options import SDXL
from realcustom_jax.outputs.records import KEY, read_record
from realcustom_jax.toybox import Identity, render_reference

CAT, DOG = (render_reference(Identity(word, 9)).image for word in ("cat", "dog"))
FEW = {"steps": 3, "gamma_scope": 0.5}
PROMPT = "a cat and a dog"


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """A photo in a file with a soft mask, and two photos in memory."""
    path = tmp_path_factory.mktemp("photos") / "cat.jpg"
    Image.fromarray(CAT).save(path)
    mask = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    cat = rc.Subject(path, "cat", mask=mask, mask_mode="intersect", strength=0.5, match_case=True)
    return [cat, rc.Subject(images=[DOG, Image.fromarray(DOG[::-1])], words=("dogs", "dog"), plurals=True)]


@pytest.fixture(scope="module")
def made(flat_pipe, subjects):
    options = {**FEW, "text_weight": [2.0, 3.0], "mask_layers": (0,)}
    return rc.sample(flat_pipe, PROMPT, subjects, [5, 6], negative_prompt="a house", **options)


def test_each_seed_gives_one_image(flat_pipe):
    out = rc.sample(flat_pipe, "a cat", [rc.Subject(CAT, "cat")], [1, 2, 3, 4], **FEW)
    assert out.images.shape == (4, 16, 16, 3) and [r.seed for r in out.records] == [1, 2, 3, 4]
    assert len({image.tobytes() for image in out.images}) == 4
    single = rc.sample(flat_pipe, "a cat", [rc.Subject(CAT, "cat")], 3, **FEW)
    assert np.abs(single.images[0].astype(int) - out.images[2]).max() <= 1


def test_none_means_the_default(flat_pipe):
    given = rc.sample(flat_pipe, "a cat", seed=0, negative_prompt="", **FEW)
    none = rc.sample(flat_pipe, "a cat", seed=None, negative_prompt=None, **FEW)
    np.testing.assert_array_equal(none.images, given.images)


def test_samples_can_be_indexed(made):
    assert len(made) == 2 and [len(one) for one in made] == [1, 1]
    last = made[-1]
    np.testing.assert_array_equal(last.images, made.images[1:])
    np.testing.assert_array_equal(last.masks, made.masks[1:])
    assert last.words == made.words[1:] and last.records == made.records[1:]
    np.testing.assert_array_equal(made[::-1].images, made.images[::-1])
    np.testing.assert_array_equal(made[np.int64(0)].images, made.images[:1])
    with pytest.raises(IndexError):
        made[2]


def test_representations_fit_on_one_screen(made, flat_pipe, subjects):
    assert [np.asarray(image).tolist() for image in made.pil()] == made.images.tolist()
    sheet = np.asarray(Image.open(io.BytesIO(made._repr_png_())))
    np.testing.assert_array_equal(sheet, np.concatenate(list(made.images), axis=1))
    page = made._repr_html_()
    assert page.count("<img ") == 2 and "a cat and a dog" in page and "seed 6" in page
    text = repr(made)
    assert "2 images of 16x16" in text and "masks of 2 subjects at 3 steps" in text and "seed 5" in text
    for shown in (made, flat_pipe, rc.load("toybox"), *subjects):
        assert len(repr(shown)) < 1500 and repr(shown).count("\n") < 20
    assert "cat.jpg" in repr(subjects[0]) and "strength=0.5" in repr(subjects[0])
    assert "images=2 photos" in repr(subjects[1])


def test_saved_record_contains_the_request(made, subjects, tmp_path):
    """The record read back has the prompts, seed, options, photos and masks."""
    paths = made.save(tmp_path / "out", masks=True)
    assert [path.name for path in paths] == ["image_5.png", "image_6.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(paths[1])), made.images[1])
    assert Image.open(tmp_path / "out" / "image_5_mask_1.png").size == (3 * 8, 8)
    record = read_record(paths[1])
    assert (record.prompt, record.negative_prompt, record.seed) == (PROMPT, "a house", 6)
    options = rc.SamplingOptions(**record.options)
    assert options.text_weight == 3.0 and options.mask_layers == (0,) and options.steps == 3
    cat, dog = record.subjects
    assert cat.photos[0] == subjects[0].image.read_bytes() and len(dog.photos) == 2
    np.testing.assert_array_equal(cat.mask, subjects[0].mask)
    assert (cat.words, cat.mask_mode, cat.strength, cat.match_case) == ("cat", "intersect", 0.5, True)
    assert list(dog.words) == ["dogs", "dog"] and dog.plurals and dog.mask is None


def test_sampling_from_record_reproduces_image(flat_pipe, subjects, tmp_path):
    """Bit for bit, through the saved file."""
    first = rc.sample(flat_pipe, PROMPT, subjects, 5, **FEW)
    record = read_record(first.save(tmp_path)[0])
    options = {name: record.options[name] for name in ("steps", "gamma_scope")}
    again = rc.sample(flat_pipe, record.prompt, record.subjects, record.seed, **options)
    np.testing.assert_array_equal(again.images, first.images)
    np.testing.assert_array_equal(again.masks, first.masks)


def test_record_keeps_original_photo(flat_pipe, tmp_path):
    """A later change of the photo's file has no effect."""
    photo = tmp_path / "cat.png"
    Image.fromarray(CAT).save(photo)
    out = rc.sample(flat_pipe, "a cat", [rc.Subject(photo, "cat")], 1, **FEW)
    content = photo.read_bytes()
    Image.fromarray(DOG).save(photo)
    (path, *_) = out.save(tmp_path / "out")
    (subject,) = read_record(path).subjects
    assert subject.image == content


def test_equal_seeds_get_separate_files(flat_pipe, tmp_path):
    out = rc.sample(flat_pipe, ["a cat", "a dog"], seed=7, **FEW)
    assert [path.name for path in out.save(tmp_path)] == ["image_0_7.png", "image_1_7.png"]


@pytest.mark.parametrize("text", [None, "", "[]", "{}", "5", '{"subjects": [{}]}', "[" * 5000])
def test_image_without_valid_record_raises(tmp_path, text):
    info = PngImagePlugin.PngInfo()
    if text is not None:
        info.add_text(KEY, text)
    Image.fromarray(CAT).save(tmp_path / "x.png", pnginfo=info)
    with pytest.raises(rc.UserError, match="how it was made"):
        read_record(tmp_path / "x.png")


def test_record_is_stored_as_png_text(made):
    buffer = io.BytesIO()
    Image.fromarray(CAT).save(buffer, "PNG", pnginfo=made.records[0].png_info())
    values = json.loads(Image.open(buffer).text[KEY])
    assert values["prompt"] == PROMPT and values["subjects"][0]["words"] == "cat" and values["seed"] == 5


def test_preview_does_not_change_results_or_recompile(flat_pipe, capfd):
    """Previews come every n steps and at the end; images are bit-identical, and nothing is compiled."""
    subject = [rc.Subject(CAT, "cat")]
    plain = rc.sample(flat_pipe, "a cat", subject, steps=7, progress=False)
    traces, seen = [], []

    def count(event: str, duration: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            traces.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        shown = rc.sample(
            flat_pipe, "a cat", subject, steps=7, preview=lambda *a: seen.append(a), every=3, progress=False
        )
        rc.sample(flat_pipe, "a cat", subject, steps=7, progress=True)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert traces == []
    np.testing.assert_array_equal(shown.images, plain.images)
    np.testing.assert_array_equal(shown.masks, plain.masks)
    assert [step for step, _ in seen] == [3, 6, 7]
    np.testing.assert_array_equal(seen[-1][1], plain.images)
    assert not np.array_equal(seen[0][1], plain.images)
    default = []
    rc.sample(flat_pipe, "a cat", subject, steps=7, preview=lambda step, images: default.append(step))
    assert default == [5, 7]


def test_preview_works_on_several_devices(flat_pipe):
    """3 requests on 2 devices: previews omit the padding, and the result is the same."""
    pipe = flat_pipe.on_mesh(Mesh(np.asarray(jax.devices()[:2]), ("data",)))
    request, seen = ("a cat", [rc.Subject(CAT, "cat")], [1, 2, 3]), []
    plain = rc.sample(pipe, *request, steps=3, progress=False)
    shown = rc.sample(pipe, *request, steps=3, preview=lambda *a: seen.append(a), every=1)
    np.testing.assert_array_equal(shown.images, plain.images)
    assert [(step, len(images)) for step, images in seen] == [(1, 3), (2, 3), (3, 3)]
    np.testing.assert_array_equal(seen[-1][1], plain.images)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"every": 2}, "every needs a preview"),
        ({"preview": 5}, "preview must be a function"),
        ({"preview": print, "every": 0}, "every must be 1 or more"),
        ({"fast_preview": True}, "fast_preview needs a preview"),
        ({"preview": print, "fast_preview": 1}, "fast_preview must be True or False, not 1"),
    ],
)
def test_invalid_preview_arguments_raise(flat_pipe, arguments, sentence):
    with pytest.raises(rc.UserError, match=sentence):
        rc.sample(flat_pipe, "a cat", **arguments)


def test_command_reproduces_image_from_file(flat_pipe, tmp_path, monkeypatch, capsys):
    """From the file alone; further flags override the record."""
    rc.save(flat_pipe, tmp_path / "model")
    photo, model = tmp_path / "cat.png", str(tmp_path / "model")
    Image.fromarray(CAT).save(photo)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sample", *map(str, arguments)])
        runpy.run_module("realcustom_jax.sample", run_name="__main__")

    request = ["--model", model, "--prompt", "a cat", "--subject", f"cat={photo},{photo}", "--steps", 3]
    run(*request, "--seed", 5, "--gamma-scope", 0.5, "--out", tmp_path / "one")
    photo.unlink()
    first = tmp_path / "one" / "image_5.png"
    run("--from", first, "--out", tmp_path / "two")
    assert (tmp_path / "two" / "image_5.png").read_bytes() == first.read_bytes()
    run(
        "--from",
        first,
        "--seed",
        6,
        "--prompt",
        "a cat on the beach",
        "--strength",
        "1=0.5",
        "--out",
        tmp_path / "three",
    )
    other = read_record(tmp_path / "three" / "image_6.png")
    assert (other.prompt, other.seed, other.options["steps"]) == ("a cat on the beach", 6, 3)
    assert (
        len(other.subjects[0].photos) == 2
        and other.subjects[0].strength == 0.5
        and other.model["model"] == model
    )


@pytest.fixture
def vary(flat_pipe, tmp_path, monkeypatch):
    """Runs `sample --from FILE` with flags; returns the record of the image that it makes."""
    model = str(tmp_path / "model")
    rc.save(flat_pipe, model)

    def run(made, *flags):
        source = dataclasses.replace(made.records[0], model={"model": model})
        (path, *_) = dataclasses.replace(made[0], records=(source,)).save(tmp_path / "first")
        monkeypatch.setattr(
            sys, "argv", ["sample", "--from", str(path), "--out", str(tmp_path / "out"), *flags]
        )
        runpy.run_module("realcustom_jax.sample", run_name="__main__")
        return read_record(tmp_path / "out" / path.name)

    return run


@pytest.mark.parametrize(
    ("before", "flags", "reset"),
    [
        (
            {"image_weight": 3.0, "guidance_scope": "mask"},
            ("--guidance", "direct"),
            "image_weight guidance_scope",
        ),
        ({"guidance": "direct", "rescale": 0.5}, ("--guidance", "paper"), "rescale"),
        ({"gamma_num": 0.4}, ("--scoring", "none"), "gamma_num"),
        ({"eta": 0.7}, ("--solver", "euler"), "eta"),
        ({"mask_steps": 1, "text_weight": 4.0}, ("--steps", "4"), "mask_steps"),
        ({"image_weight": 3.0, "guidance_scope": "mask"}, ("--text-weight", "2"), ""),
    ],
)
def test_given_option_resets_conflicting_recorded_options(flat_pipe, vary, before, flags, reset):
    """Those return to the model's defaults, the others stay. Given explicitly, each is an error."""
    subject = rc.Subject(CAT, "cat")
    made = rc.sample(flat_pipe, "a cat", [subject], 5, **{**FEW, **before})
    record = vary(made, *flags)
    (name, value), defaults = (flags[0][2:].replace("-", "_"), flags[1]), flat_pipe.defaults
    expected = {**made.records[0].options, **{one: getattr(defaults, one) for one in reset.split()}}
    kind = rc.SamplingOptions.rules()[name].kind
    assert record.options == {**json.loads(json.dumps(expected)), name: kind(value)}
    for one in reset.split():
        if one != "mask_steps":
            again = {name: kind(value), one: before[one], **FEW}
            with pytest.raises(rc.UserError, match=one):
                rc.sample(flat_pipe, "a cat", [subject], 5, **again)


def test_option_without_effect_on_record_raises(flat_pipe, vary, capsys):
    """As in a call with all of these options."""
    made = rc.sample(
        flat_pipe, "a cat", [rc.Subject(CAT, "cat")], 5, guidance="direct", scoring="none", **FEW
    )
    for flag, sentence in (
        ("--image-weight", "image_weight has no effect"),
        ("--gamma-num", "gamma_num has no"),
    ):
        with pytest.raises(SystemExit):
            vary(made, flag, "0.5")
        assert sentence in capsys.readouterr().err


def test_recorded_options_apply_to_model_with_other_defaults():
    """Only options that the recorded guidance uses are kept, whatever the model's defaults."""
    recorded = {"guidance": "direct", "image_weight": 12.5, "guidance_scope": "image", "steps": 50}
    defaults = SDXL.changed({"guidance": "paper", "guidance_scope": "mask", "image_weight": 2.0})
    kept = still_used(recorded, {}, defaults)
    assert kept == {"guidance": "direct", "guidance_scope": "image", "steps": 50}


@pytest.mark.filterwarnings("ignore:the model does not know")
def test_word_flags_apply_to_recorded_subjects(flat_pipe, vary):
    made = rc.sample(flat_pipe, "a cat", [rc.Subject(CAT, "cat")], 5, **FEW)
    record = vary(made, "--plurals", "--prompt", "two cats")
    assert record.subjects[0].plurals and not record.subjects[0].match_case


@pytest.fixture
def hub(flat_pipe, tmp_path, monkeypatch):
    """A local hub cache of `someone/model`, whose tag v1 has other weights than main."""
    repository = tmp_path / "hub" / "models--someone--model"
    unet = jax.tree.map(lambda x: 0.5 * x, flat_pipe.params["unet"])
    pipes = {"main": flat_pipe, "v1": flat_pipe.replace(params={**flat_pipe.params, "unet": unet})}
    (repository / "refs").mkdir(parents=True)
    for revision, pipe in pipes.items():
        rc.save(pipe, repository / "snapshots" / f"commit-of-{revision}")
        (repository / "refs" / revision).write_text(f"commit-of-{revision}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return pipes


def test_record_contains_revision_and_param_dtype(hub, tmp_path, monkeypatch):
    """Those that were given to `load`, so that the command loads the same model again."""
    request = ("a cat", [rc.Subject(CAT, "cat")], 5)
    pipe = rc.load("someone/model", revision="v1", param_dtype="bfloat16")
    first = rc.sample(pipe, *request, **FEW)
    (path,) = first.save(tmp_path / "one")
    source = read_record(path).model
    assert (source["revision"], source["dtype"], source["param_dtype"]) == ("v1", "float32", "bfloat16")
    again = tmp_path / "two" / path.name
    monkeypatch.setattr(sys, "argv", ["sample", "--from", str(path), "--out", str(again.parent)])
    runpy.run_module("realcustom_jax.sample", run_name="__main__")
    assert again.read_bytes() == path.read_bytes()
    # Without them the image differs by more than rounding.
    for other in (hub["main"], hub["v1"]):
        assert np.abs(rc.sample(other, *request, **FEW).images - first.images.astype(int)).max() > 1
    plain = rc.load("someone/model", param_dtype=jnp.float32)
    assert plain.source.keys() == {"model", "dtype", "vae_dtype"}
