"""`rc.sample` and its command: results, and a one-line error for every wrong input."""

import dataclasses
import importlib
import io
import runpy
import subprocess
import sys
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import realcustom_jax as rc
from realcustom_jax.common.compile_cache import cache_dir, use_compilation_cache
from realcustom_jax.common.pixels import to_signed
from realcustom_jax.generate import request_keys
from realcustom_jax.inputs import encode
from realcustom_jax.inputs.prompts import warn_of_unknown_words
from realcustom_jax.inputs.tokenize import tokenize
from realcustom_jax.inputs.transforms import center_crop_resize, load_image
from realcustom_jax.toybox import Identity, render_reference

CAT = render_reference(Identity("cat", 9)).image
SUBJECT = rc.Subject(CAT, "cat")
FEW = {"steps": 2}


def test_single_request_equals_list_of_one(micro_pipe):
    """Shapes and types of the contract; a list of one request is that request."""
    subject = rc.Subject(CAT, "cat")
    single = rc.sample(micro_pipe, "a cat on the beach", subjects=[subject], seed=7, **FEW)
    assert single.images.shape == (1, 16, 16, 3) and single.images.dtype == np.uint8
    assert single.masks.shape == (1, 2, 1, 8, 8) and single.masks.dtype == np.float32
    listed = rc.sample(micro_pipe, ["a cat on the beach"], subjects=[[subject]], seed=[7], **FEW)
    np.testing.assert_array_equal(single.images, listed.images)
    np.testing.assert_array_equal(single.masks, listed.masks)


def test_text_only_has_no_masks(micro_pipe):
    out = rc.sample(micro_pipe, ["a cat", "a dog"], seed=[1, 2], **FEW)
    assert out.images.shape == (2, 16, 16, 3) and out.masks.shape == (2, 2, 0, 8, 8)
    assert not np.array_equal(out.images[0], out.images[1])


def assert_same_picture(image: np.ndarray, expected: np.ndarray) -> None:
    """Equal up to one level: another batch size is another program, and float32 rounding may cross a .5."""
    assert image.dtype == expected.dtype == np.uint8
    assert np.abs(image.astype(int) - expected.astype(int)).max() <= 1


def test_all_image_types_give_the_same_result(micro_pipe, tmp_path):
    """A path, bytes, a PIL image and an array of the same picture are the same pixels, and give one image."""
    path, buffer = tmp_path / "cat.png", io.BytesIO()
    Image.fromarray(CAT).save(path)
    Image.fromarray(CAT).save(buffer, "PNG")
    kinds = [str(path), path, buffer.getvalue(), Image.open(path), CAT, jnp.asarray(CAT)]
    for kind in kinds:
        np.testing.assert_array_equal(load_image(kind), CAT)
    kinds += [io.BytesIO(buffer.getvalue()), path.open("rb")]  # which can be read only once
    subjects = [[rc.Subject(kind, "cat")] for kind in kinds]
    out = rc.sample(micro_pipe, ["a cat"] * 8, subjects=subjects, seed=3, **FEW)
    for image in out.images[1:]:
        assert_same_picture(image, out.images[0])


def test_each_distinct_image_is_encoded_once(micro_pipe, monkeypatch):
    """Each distinct reference once, and the black image once per pipeline; each slot gets its own."""
    dog = Image.fromarray(render_reference(Identity("dog", 19)).image)
    cat_and_dog = [rc.Subject(CAT, "cat"), rc.Subject(dog, "dog")]
    subjects = [cat_and_dog, [], [rc.Subject(dog, "dog")], cat_and_dog[::-1], cat_and_dog]
    batches, encode_references = [], encode.reference_features

    def spy(pipe, views):
        batches.append(len(views))
        return encode_references(pipe, views)

    monkeypatch.setattr(encode, "reference_features", spy)
    pipe = micro_pipe.replace()  # with a cache of its own

    def make(subjects):
        count = len(subjects)
        return rc.make_conditioning(pipe, ["a cat and a dog"] * count, subjects, [""] * count, pipe.defaults)

    together = make(subjects)
    assert batches == [1, 2]
    np.testing.assert_array_equal(together.flags, [[1, 1], [0, 0], [1, 0], [1, 1], [1, 1]])
    (cat, dog), black = make([[s] for s in cat_and_dog]).features[0][:, 0], together.negative_features[0]
    assert batches == [1, 2], "the pipeline keeps the features of the two references"
    assert black.shape == together.features[0].shape == (5, 2, 16, 16)
    nothing = black[0, 0]
    expected = [[cat, dog], [nothing, nothing], [dog, nothing], [dog, cat], [cat, dog]]
    np.testing.assert_allclose(together.features[0], np.asarray(expected), rtol=1e-5, atol=1e-5)
    assert np.abs(cat - dog).max() > 1e-2 < np.abs(cat - nothing).max()
    np.testing.assert_array_equal(black, np.broadcast_to(nothing, black.shape))


def test_different_seeds_give_different_noise(micro_pipe):
    """Also seeds with equal lower 32 bits, which `jax.random.key` alone treats as equal."""
    seeds = [5, 2**32 + 5, 2**63 + 5, 2**64 - 1, 6]
    data = jax.random.key_data(request_keys(seeds))
    assert len({tuple(row) for row in np.asarray(data).tolist()}) == len(seeds)
    np.testing.assert_array_equal(data[0], jax.random.key_data(jax.random.key(5)))
    for kind in (np.int64, np.uint8, jnp.asarray):
        np.testing.assert_array_equal(jax.random.key_data(request_keys([kind(5)]))[0], data[0])
    out = rc.sample(micro_pipe, ["a cat", "a cat"], seed=np.asarray([5, 2**32 + 5]), **FEW)
    assert not np.array_equal(out.images[0], out.images[1])


def test_other_image_size_is_sampled(micro_pipe):
    out = rc.sample(micro_pipe, "a cat", subjects=[SUBJECT], height=24, width=16, **FEW)
    assert out.images.shape == (1, 24, 16, 3) and out.masks.shape == (1, 2, 1, 12, 8)


WRONG = {
    "word not in the prompt": (
        {"prompt": "a dog on the beach", "subjects": [SUBJECT]},
        "'cat'.*not in the prompt.*dog",
    ),
    "word cut off": (
        {"prompt": "very " * 80 + "big cat", "subjects": [SUBJECT]},
        "cat.*cut off.*77",
    ),
    "unreadable image": ({"subjects": [rc.Subject(b"not a picture", "cat")]}, "cannot|can't|not .*image"),
    "missing image": ({"subjects": [rc.Subject("no/such/photo.png", "cat")]}, "no/such/photo.png"),
    "height": ({"height": 18}, "height of 18 pixels cannot be halved.*multiple of 4"),
    "width": ({"width": 0}, "width of 0 pixels"),
    "unknown option": ({"gama_scope": 0.3}, "'gama_scope' is not a sampling option; known: text_weight"),
    "another library's name": (
        {"num_inference_steps": 3},
        "'num_inference_steps' is not a sampling option; num_inference_steps is called steps here",
    ),
    "several at once": ({"num_images_per_prompt": 3}, r"several seeds here, as seed=\[0, 1, 2, 3\]"),
    "no seed": ({"seed": []}, "there is no seed"),
    "no pixel left": ({"subjects": [SUBJECT], "gamma_scope": 0.001}, "gamma_scope 0.001 leaves no pixel"),
    "grid too small": ({"subjects": [SUBJECT], "mask_downscale": 8}, "no pixel of the mask grid of 1x1"),
    "option of the other guidance": (
        {"rescale": 0.5},
        "rescale has no effect: it is an option of guidance 'direct', and the guidance is 'paper'",
    ),
    "beyond any memory": ({"width": 2**40}, "need more than .* GiB of memory"),
    "half a character": ({"prompt": "a \ud800 cat"}, "is not valid Unicode: lone surrogate at position 2"),
    "unknown solver": ({"solver": "heun"}, "solver 'heun' is unknown; known: ddim"),
    "unknown guidance": ({"guidance": "strong"}, "guidance 'strong' is unknown; known: paper, direct"),
    "too many mask steps": ({"mask_steps": 5}, "mask_steps must be from 1 to 2"),
    "layer out of range": ({"subjects": [SUBJECT], "mask_layers": (99,)}, "mask_layers"),
    "no such mask grid": ({"mask_downscale": 3}, "mask_downscale 3 does not divide"),
    "subjects not nested": (
        {"prompt": ["a cat", "a cat"], "subjects": [SUBJECT]},
        "subjects must be a list of 2",
    ),
    "no subject": ({"subjects": ["cat.png"]}, "rc.Subject"),
    "seeds": ({"prompt": ["a cat", "a dog"], "seed": [1]}, "seed must be a list of 2"),
    "numbers": ({"prompt": ["a cat", "a dog"], "gamma_scope": [0.1, 0.2, 0.3]}, "gamma_scope must be one"),
    "share": ({"gamma_scope": 1.5}, "gamma_scope must be from 0 to 1"),
    "no prompt": ({"prompt": []}, "no prompt"),
    "prompt None": ({"prompt": None}, "prompt must be a string or a list of strings, not NoneType"),
    "prompt of bytes": ({"prompt": b"a cat"}, "prompt must be a string or a list of strings, not bytes"),
    "prompts not text": ({"prompt": ["a cat", 2]}, "prompt must be .* strings, not a list with int"),
    "negatives": ({"negative_prompt": ["", ""]}, "negative_prompt must be a list of 1"),
    "bare subject": ({"subjects": SUBJECT}, r"subjects must be a list, even for one: subjects=\[rc.Subject"),
    "bare subject for two": ({"prompt": ["a cat"] * 2, "subjects": SUBJECT}, "subjects must be a list, even"),
    "a path for subjects": ({"subjects": "cat.png"}, "subjects must be a list of rc.Subject.*not str"),
    "one subject for each": (
        {"prompt": ["a cat"] * 2, "subjects": [SUBJECT] * 2},
        "subjects must be a list of lists of rc.Subject.*not a list with Subject",
    ),
    "nested too deep": ({"subjects": [[SUBJECT]]}, "a subject must be rc.Subject.*not list"),
    "words of a number": (
        {"subjects": [rc.Subject(CAT, 5)]},
        "target words of .* must be a string or a list of strings, not int",
    ),
    "words empty": ({"subjects": [rc.Subject(CAT, " ")]}, "target words of .* are empty"),
    "words of bytes": (
        {"subjects": [rc.Subject(CAT, [b"cat"])]},
        "or a list of strings, not a list with bytes",
    ),
    "second phrase": ({"subjects": [rc.Subject(CAT, ("cat", "dog"))]}, "'dog' are not in the prompt"),
    "other case": ({"subjects": [rc.Subject(CAT, "Cat", match_case=True)]}, "'Cat' are not in the prompt"),
    "mask missing": ({"subjects": [rc.Subject(CAT, "cat", "no/mask.png")]}, "'no/mask.png' does not exist"),
    "mask unreadable": ({"subjects": [rc.Subject(CAT, "cat", b"no")]}, "the mask cannot be decoded"),
    "mask too large": (
        {"subjects": [rc.Subject(CAT, "cat", np.full((4, 4), 2.0))]},
        r"the mask .* outside \[0, 1\]",
    ),
    "mask of integers": (
        {"subjects": [rc.Subject(CAT, "cat", np.ones((4, 4), np.int64))]},
        "the mask array must be uint8 or floating point, but it is int64",
    ),
    "mask without pixels": (
        {"subjects": [rc.Subject(CAT, "cat", np.ones((0, 4)))]},
        "the mask array must have",
    ),
    "image of a number": ({"subjects": [rc.Subject(5, "cat")]}, "an image must be a path.*not int"),
    "image of a list": ({"subjects": [rc.Subject([CAT], "cat")]}, "an image must be a path.*not list"),
    "seed of float": ({"seed": 7.0}, r"seed must be a whole number, not 7\.0"),
    "seed of text": ({"seed": "7"}, "seed must be a whole number, not '7'"),
    "seed of bool": ({"seed": True}, "seed must be a whole number, not True"),
    "seed in a list": ({"seed": [None]}, "seed must be a whole number, not None"),
    "seed negative": ({"seed": -1}, "seed must be 0 or more, not -1"),
    "seed too large": ({"seed": 2**64}, "seed must be from 0 to .*, not 18446744073709551616"),
    "steps of text": ({"steps": "50"}, "steps must be a whole number, not '50'"),
    "height of float": ({"height": 64.0}, r"height must be a whole number, not 64\.0"),
    "weight not finite": ({"text_weight": float("nan")}, "text_weight must be finite in float32, not nan"),
    "noise that the solver has not": ({"solver": "euler", "eta": 0.5}, "eta is an option of ddim"),
    "more steps than timesteps": ({"steps": 1001}, "number of steps must be from 1 to 1000"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_gives_one_line_error(micro_pipe, case):
    request, sentence = WRONG[case]
    with pytest.raises(rc.UserError, match=f"(?s){sentence}") as error:
        rc.sample(micro_pipe, **{"prompt": "a cat on the beach", **FEW, **request})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mask_mode": "both"}, "mask_mode 'both' is unknown; known: instead, intersect"),
        ({"mask_mode": None}, "mask_mode None is unknown"),
        ({"strength": -0.5}, "strength must be 0 or more, not -0.5"),
        ({"strength": float("nan")}, "strength must be finite in float32, not nan"),
        ({"strength": "1"}, "strength must be a number, not '1'"),
        ({"strength": [1.0]}, r"strength must be a number, not \[1.0\]"),
        ({"plurals": 1}, "plurals must be True or False, not 1"),
        ({"match_case": None}, "match_case must be True or False, not None"),
    ],
)
def test_invalid_subject_raises(changes, sentence):
    with pytest.raises(rc.UserError, match=f"^{sentence}"):
        rc.Subject(CAT, "cat", **changes)


def test_subject_options_reach_the_conditioning(micro_pipe):
    """Words, masks (averaged down to the mask grid), modes and strengths, slot by slot."""
    mask = np.zeros((32, 16), np.uint8)
    mask[:16, :8] = 255
    mask[4:8, 2] = 0  # half of one pixel of the 8×8 grid
    subjects = [
        [rc.Subject(CAT, ["cats", "cat"], mask, plurals=True), rc.Subject(CAT, "dog", strength=2)],
        [],
        [rc.Subject(CAT, "dog", mask > 0, "intersect", 0.5)],
    ]
    made = rc.make_conditioning(micro_pipe, ["a dog and a cat"] * 3, subjects, [""] * 3, micro_pipe.defaults)
    expected = np.zeros((8, 8), np.float32)
    expected[:4, :4], expected[1, 1] = 1.0, 0.5
    assert made.user_masks.shape == (3, 2, 8, 8)
    np.testing.assert_allclose(made.user_masks[0, 0], expected, atol=1e-7)
    np.testing.assert_allclose(made.user_masks[2, 0], expected, atol=1e-7)
    assert (np.asarray(made.user_masks)[[0, 1, 1, 2], [1, 0, 1, 1]] == 1).all()
    np.testing.assert_array_equal(made.replace_guided, [[1, 0], [0, 0], [0, 0]])
    np.testing.assert_array_equal(made.strengths, [[1, 2], [1, 1], [0.5, 1]])
    np.testing.assert_array_equal(made.flags, [[1, 1], [0, 0], [1, 0]])
    assert [np.flatnonzero(w).tolist() for w in made.words[0]] == [[5], [2]]


def test_subjects_without_realcustom_weights_raise(micro_pipe):
    base = micro_pipe.replace(models=dataclasses.replace(micro_pipe.models, realcustom=None))
    with pytest.raises(rc.UserError, match="no realcustom/ weights"):
        rc.sample(base, "a cat", subjects=[SUBJECT], **FEW)


def run_sample(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["sample", *arguments])
    runpy.run_module("realcustom_jax.sample", run_name="__main__")


def test_command_writes_images_and_masks(micro_pipe, tmp_path, monkeypatch, capsys):
    rc.save(micro_pipe, tmp_path / "model")
    Image.fromarray(CAT).save(tmp_path / "cat.png")
    arguments = ["--model", str(tmp_path / "model"), "--prompt", "a cat", "--subject"]
    arguments += [f"cat={tmp_path / 'cat.png'}", "--steps", "2", "--seed", "5", "6", "--masks"]
    run_sample(monkeypatch, *arguments, "--out", str(tmp_path / "out"))
    expected = rc.sample(micro_pipe, "a cat", subjects=[SUBJECT], seed=5, **FEW)
    assert_same_picture(np.asarray(Image.open(tmp_path / "out" / "image_5.png")), expected.images[0])
    assert Image.open(tmp_path / "out" / "image_6_mask_0.png").size == (2 * 8, 8)
    assert "image_5.png" in capsys.readouterr().out


def test_command_parses_subjects(tmp_path, monkeypatch):
    """Phrases, masks, strengths and switches of two subjects, and one without words."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(CAT).save("cat.png")
    Image.fromarray(np.eye(4, dtype=bool)).save("mask.png")
    command = runpy.run_module("realcustom_jax.sample")
    line = "--prompt x --subject cat|kitten=cat.png --subject cat.png --subject auto=cat.png --plurals"
    line += " --mask 2=mask.png --mask-mode intersect --strength 1=0.5 --strength 3=2"
    first, second, third = command["_subjects"](command["_parser"]().parse_args(line.split()), ())
    assert [s.words for s in (first, second, third)] == [("cat", "kitten"), "auto", "auto"]
    assert [s.strength for s in (first, second, third)] == [0.5, 1.0, 2.0]
    assert first.mask is None and third.mask is None and second.mask_mode == "intersect"
    np.testing.assert_array_equal(second.mask, np.eye(4))
    assert first.plurals and not first.match_case
    for subject in (first, second, third):
        np.testing.assert_array_equal(load_image(subject.photos[0]), CAT)


def paired(pipe):
    """The pipeline with encoders that count as trained together."""
    (tower,) = pipe.models.image_configs
    tower = dataclasses.replace(tower, text_paired=True, logit_scale=0.5)
    return pipe.replace(models=dataclasses.replace(pipe.models, image_configs=(tower,)))


def test_auto_words_are_the_most_similar_word(micro_pipe):
    """The highest cosine similarity decides, and the result names the word.

    With random weights no word really matches, so a small logit scale makes every word acceptable.
    """
    pipe, prompt = paired(micro_pipe), "a dog and a cat on the beach"
    # The phrases' similarities, straight from the encoders.
    ids = tokenize(*pipe.tokenizers, [f"a {w} on a plain background" for w in ("dog", "cat", "beach")])
    text = (
        pipe.models.text_encoders["text_encoder"].apply({"params": pipe.params["text_encoder"]}, ids).pooled
    )
    image = to_signed(center_crop_resize(CAT, 16))[None]
    image = (
        pipe.models.image_encoders["image_encoder"]
        .apply({"params": pipe.params["image_encoder"]}, image)
        .pooled
    )
    cosine = (text @ image[0]) / jnp.linalg.norm(text, axis=-1)
    best = ("dog", "cat", "beach")[int(jnp.argmax(cosine))]
    auto = rc.sample(pipe, [prompt, prompt], [[rc.Subject(CAT, "auto")], []], seed=3, **FEW)
    assert auto.words == [[(best,)], []]
    given = rc.sample(pipe, [prompt, prompt], [[rc.Subject(CAT, best)], []], seed=3, **FEW)
    np.testing.assert_array_equal(auto.images, given.images)
    np.testing.assert_array_equal(auto.masks, given.masks)
    three = [rc.Subject(CAT, "auto"), rc.Subject(CAT, ("dog",)), rc.Subject(CAT, "auto")]
    both = rc.sample(pipe, prompt, three, **FEW)
    assert both.words[0][1] == ("dog",) and {both.words[0][0], both.words[0][2]} == {("cat",), ("beach",)}


def test_auto_words_without_paired_encoders_raise(micro_pipe):
    with pytest.raises(rc.UserError, match='give the words of each subject instead of "auto"'):
        rc.sample(micro_pipe, "a cat", [rc.Subject(CAT, "auto")], **FEW)


def test_command_has_a_flag_for_every_option():
    """With the option's own type; options that are not given are left to the model."""
    command = runpy.run_module("realcustom_jax.sample")
    values = {float: "0.5", int: "2"}
    arguments = ["--prompt", "a cat"]
    for name, rule in rc.SamplingOptions.rules().items():
        arguments += ["--" + name.replace("_", "-"), values.get(rule.kind) or rule.choices[-1]]
    options = command["given_options"](command["_parser"]().parse_args(arguments))
    assert options.keys() == rc.SamplingOptions.rules().keys()
    assert options["mask_layers"] == (2,) and options["eta"] == 0.5 and options["scoring"] == "none"
    assert command["given_options"](command["_parser"]().parse_args(arguments[:2])) == {}


def test_help_describes_command_and_every_option(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run_sample(monkeypatch, "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert not stop.value.code and "the reference image for words of the prompt" in text
    for rule in rc.SamplingOptions.rules().values():
        assert rule.help in text
    assert "share of the image where a subject may act: 0 to 1 (0.25)" in text
    assert "(ddim, SDXL dpmpp_2s)" in text and "(all, SDXL 12)" in text and "(the model's own)" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "no/such/model"], "no model folder 'no/such/model'"),
        (["--subject", "cat"], "--subject 'cat' must be WORDS=IMAGE, such as dog=photo.png, or an IMAGE"),
        (["--mask", "mask.png"], "--mask 'mask.png' must be N=VALUE"),
        (["--mask", "1=mask.png"], "--mask '1=mask.png' is for subject 1, but the number of subjects is 0"),
        (["--subject", "cat=CAT", "--mask", "1=no.png"], "the image 'no.png' does not exist"),
        (
            ["--subject", "cat=CAT", "--strength", "0=1"],
            "--strength '0=1' is for subject 0, but the number of subjects is 1",
        ),
        (["--subject", "cat=CAT", "--strength", "1=1", "--strength", "1=2"], "given twice for subject 1"),
        (["--subject", "cat=CAT", "--strength", "1=-1"], "--strength 1 must be 0 or more, not -1.0"),
        (["--subject", "cat=CAT", "--strength", "1=much"], "--strength 1 must be a number, not 'much'"),
        (["--num-inference-steps", "5"], "--num-inference-steps is called --steps here, see --help"),
        (["--cfg_scale=5"], "--cfg_scale is called --text-weight here, see --help"),
        (["--mask-mode", "intersect"], "--mask-mode needs a --mask"),
        (["--plurals"], "--plurals needs a --subject: it is about its words"),
        (["--match-case"], "--match-case needs a --subject: it is about its words"),
        (["--subject", "dog=CAT"], "the target words 'dog' are not in the prompt; its words are: a, cat"),
        (["--height", "30"], "the height of 30 pixels cannot be halved"),
        (["--width", "1099511627776"], "GiB of memory"),
        (["--steps", "2000"], "the number of steps must be from 1 to 1000"),
        (["--steps", "5", "--mask-steps", "6"], "mask_steps must be from 1 to 5"),
        (["--negative-prompt", "@none"], "--negative-prompt '@none': there is no file 'none'"),
        (["--from", "CAT"], "'CAT' does not say how it was made"),
        (["--from", "none"], "the image 'none' does not exist"),
        (["--mask-mode", "both"], "argument --mask-mode: invalid choice: 'both'"),
        (["--steps", "2.5"], "argument --steps: invalid int value: '2.5', see --help"),
        (["--steps", "0"], "--steps must be 1 or more, not 0"),
        (["--gamma-scope", "1.5"], "--gamma-scope must be from 0 to 1, not 1.5"),
        (["--text-weight", "nan"], "--text-weight must be finite in float32, not nan"),
        (["--solver", "heun"], "--solver 'heun' is unknown; known: ddim"),
        (["--mask-layers", "0", "-1"], "--mask-layers must be 0 or more, not -1"),
        (["--gama-scope", "0.5"], "unrecognized arguments: --gama-scope 0.5"),
        (["--mask-st", "1"], "unrecognized arguments: --mask-st 1"),
        (["--subject", "cat=no/such.png"], "the image 'no/such.png' does not exist"),
        (["--seed", "-1"], "--seed must be 0 or more, not -1"),
        (["--seed", "five"], "argument --seed: invalid int value: 'five'"),
        (["--seed", "1", "2", "1"], "--seed 1 is given twice"),
        (["--out", "FILE"], "is a file, it must be a folder"),
        (["--out", "gs://b/images"], "is an address, not a folder"),
        (["--out", "FILE/deeper"], "cannot be written to: Not a directory"),
    ],
    ids=" ".join,
)
def test_command_mistake_gives_one_line_and_status_2(monkeypatch, tmp_path, capsys, arguments, sentence):
    (tmp_path / "FILE").touch()
    Image.fromarray(CAT).save(tmp_path / "CAT", "PNG")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run_sample(monkeypatch, "--prompt", "a cat", *arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1


def test_mistakes_are_found_before_loading_a_model(monkeypatch, tmp_path, capsys):
    """Words, sizes and steps, from the model's configs alone."""
    Image.fromarray(CAT).save(tmp_path / "cat.png")
    monkeypatch.setattr("realcustom_jax.pipeline.load", lambda *_, **__: pytest.fail("loaded"))
    for wrong, message in (
        (["--subject", f"dog={tmp_path / 'cat.png'}"], "'dog' are not in the prompt"),
        (["--width", "33"], "33"),
        (["--mask-steps", "99"], "mask_steps"),
    ):
        with pytest.raises(SystemExit) as status:
            run_sample(monkeypatch, "--prompt", "a cat", "--out", str(tmp_path / "out"), *wrong)
        assert status.value.code == 2 and message in capsys.readouterr().err


def test_public_names_and_sample_docstring_are_complete():
    """Importing the command keeps `rc.sample`; `dir` has the public names; the docstring has every option."""
    importlib.import_module("realcustom_jax.sample")
    del sys.modules["realcustom_jax.sample"]  # other tests run it as a command
    assert callable(rc.sample) and not isinstance(rc.sample, types.ModuleType)
    assert set(rc.__all__) <= set(dir(rc))
    with pytest.raises(AttributeError, match="no attribute 'unknown'"):
        _ = rc.unknown
    for name, rule in rc.SamplingOptions.rules().items():
        assert f"{name}: " in rc.sample.__doc__ and rule.help in " ".join(rc.sample.__doc__.split())


def test_package_imports_without_jax_and_reloads():
    """Loader workers import it; notebooks reload it. In a process of its own, as this one has JAX already."""
    code = """
import importlib, sys
import realcustom_jax as rc
import realcustom_jax.data.cut_outs, realcustom_jax.data.image_text, realcustom_jax.inputs.plurals
assert "jax" not in sys.modules
import realcustom_jax.common.errors
assert rc.UserError is realcustom_jax.common.errors.UserError and "jax" not in sys.modules
assert importlib.reload(rc).UserError is rc.UserError
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_words_give_a_warning():
    """The toybox's tokenizer stores its known words; known words give no warning."""
    pipe = rc.load("toybox")
    with pytest.warns(UserWarning, match=r"know 'dragon', 'moon'.*things: cat, dog.*places: on the beach"):
        warn_of_unknown_words(pipe.tokenizers, ["a red dragon on the moon"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_unknown_words(pipe.tokenizers, ["a photo of a two-tone cat in a room, under the night sky"])


def test_non_finite_result_raises(micro_pipe):
    """NaN in the UNet's weights, or in the VAE's, gives no black image."""
    for part in ("unet", "vae"):
        params = dict(micro_pipe.params)
        params[part] = jax.tree.map(lambda x: x * jnp.nan, params[part])
        with pytest.raises(rc.UserError, match="the result of request 0, 1 is not finite"):
            rc.sample(micro_pipe.replace(params=params), ["a cat", "a dog"], **FEW)


def test_python_api_uses_compilation_cache(monkeypatch):
    """In our own folder, unless the user has configured one."""
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == str(cache_dir() / "xla")
        jax.config.update("jax_compilation_cache_dir", "/somewhere/else")
        use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == "/somewhere/else"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_command_without_prompt_fails(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run_sample(monkeypatch)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: the following arguments are required: --prompt, see --help\n"
