"""The toybox benchmark: its requests, its settings, and what `evaluate` prints."""

import importlib
import itertools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax import evaluate, pipeline
from realcustom_jax.common.cli import run_command
from realcustom_jax.evaluation import metrics
from realcustom_jax.evaluation.toybox import (
    CONTRACT,
    IDENTITIES,
    SETTINGS,
    Benchmark,
    identities,
    identity,
    make_cases,
    real_scene,
    reference,
    references,
    repeat_pixels,
)
from realcustom_jax.generate import Generator
from realcustom_jax.inputs.encoder_pair import own_pair
from realcustom_jax.toybox import BACKGROUNDS, WORDS, is_held_out, render_scene
from realcustom_jax.weights.digest import params_sha256
from realcustom_jax.weights.keys import flatten


def test_cases_cycle_through_words_backgrounds_and_identities():
    requests = make_cases(320)
    pairs = {(r.word, r.background) for r in requests[:208]}
    assert len(pairs) == len(WORDS) * len(BACKGROUNDS) == 208
    assert len({(r.word, r.number) for r in requests}) == 16 * IDENTITIES
    assert [r.seed for r in requests] == list(range(320))
    assert make_cases(40) == requests[:40]
    assert requests[17].prompt == "a dog in the desert"


def test_each_word_has_20_held_out_identities():
    for word in ("cat", "cup"):
        own = identities(word)
        assert len(set(own)) == 20
        assert all(i.word == word and is_held_out(i.seed) for i in own)


def test_selection_cases_share_no_subject_or_seed_with_results():
    """Colours, pattern and proportions of a subject all come from its identity's number."""
    results, choices = make_cases(320), make_cases(320, held_out=False)
    assert [(r.word, r.background) for r in choices] == [(r.word, r.background) for r in results]
    assert not {r.seed for r in choices} & {r.seed for r in results}
    drawn = {reference(request).identities[0] for request in choices}
    assert len(drawn) == 320 and not any(is_held_out(i.seed) for i in drawn)


@pytest.mark.parametrize("held_out", (True, False))
def test_real_scene_shows_reference_identity(held_out):
    request = make_cases(35, held_out)[34]
    scene, photo = real_scene(request), reference(request)
    assert scene.identities == photo.identities and scene.background == request.background
    assert scene.caption == request.prompt


def test_enlarge_repeats_mask_pixels():
    mask = np.zeros((1, 16, 32), bool)
    mask[0, 3, 5] = True
    large = repeat_pixels(mask)
    assert large.shape == (1, 64, 64) and large.sum() == 8
    assert large[0, 12:16, 10:12].all()


@pytest.fixture(scope="module")
def benchmark(paired_pipe, random_judge):
    return Benchmark(
        make_cases(3),
        random_judge,
        own_pair(paired_pipe.models, paired_pipe.params, paired_pipe.tokenizers),
    )


def test_no_mask_setting_applies_subject_everywhere(paired_pipe, benchmark, one_device):
    generator = Generator(paired_pipe, per_device=3)
    made = {name: benchmark.make(generator, setting) for name, setting in SETTINGS.items()}
    assert made["text_only"][1] is None
    assert made["no_mask"][1].all()
    share = made["full"][1].mean(axis=(1, 2))
    np.testing.assert_allclose(share, 0.25, atol=0.01)  # γ_scope
    images = [made[name][0].astype(int) for name in SETTINGS]
    assert all(image.shape == (3, 64, 64, 3) for image in images)
    assert all(np.abs(a - b).mean() > 0.5 for a, b in itertools.pairwise(images))


def test_metrics_equal_judge_outputs(benchmark, random_judge):
    rng = np.random.default_rng(0)
    images, plain = rng.integers(0, 256, (2, 3, 64, 64, 3), dtype=np.uint8)
    masks = rng.random((3, 64, 64)) < 0.3
    found = benchmark.measure(images, masks, plain)
    verdict, other = random_judge.look(images), random_judge.look(plain)
    words = [w == r.word for w, r in zip(verdict.words, benchmark.cases, strict=True)]
    assert found["word_top1"].tolist() == words
    places = [b == r.background for b, r in zip(verdict.backgrounds, benchmark.cases, strict=True)]
    assert found["background_top1"].tolist() == places
    ranks = benchmark.ranks(images)
    for n, request in enumerate(benchmark.cases):
        known = references(request.word)
        seen = random_judge.directions(
            np.stack([photo.image for photo in known]), np.stack([photo.masks[0] for photo in known])
        )
        order = np.argsort(-(seen @ verdict.directions[n]))
        assert ranks[n] == order.tolist().index(request.number)
    assert found["identity_top1"].tolist() == (ranks == 0).tolist() and len(set(ranks)) > 1
    np.testing.assert_allclose(found["mask_iou"], metrics.iou(masks, verdict.regions))
    expected = metrics.leakage(images, plain, verdict.regions | other.regions)
    np.testing.assert_allclose(found["leakage"], expected)
    texts = benchmark.pair.text.directions([r.prompt for r in benchmark.cases])
    see = benchmark.pair.image.directions
    np.testing.assert_allclose(found["clip_t"], (see(images) * texts).sum(-1), atol=1e-6)
    photos = see([reference(r).image for r in benchmark.cases])
    np.testing.assert_allclose(found["clip_i"], (see(images) * photos).sum(-1), atol=1e-6)
    alone = [
        np.where(region[..., None], image, 255) for image, region in zip(images, verdict.regions, strict=True)
    ]
    shown = [reference(r) for r in benchmark.cases]
    photos_alone = [np.where(photo.masks[0][..., None], photo.image, 255) for photo in shown]
    expected = (see(np.stack(alone)) * see(np.stack(photos_alone))).sum(-1)
    np.testing.assert_allclose(found["clip_i_segmented"], expected, atol=1e-6)


def test_real_scene_leakage_is_change_around_subject(random_judge):
    requests = make_cases(3)
    found = Benchmark(requests, random_judge, None).ceiling()["leakage"]
    others = [identities(request.word)[(request.number + 1) % 20] for request in requests]
    assert all(other != identity(request) for other, request in zip(others, requests, strict=True))
    pair = [
        np.stack(
            [render_scene(r.background, [who], r.seed, 64).image for r, who in zip(requests, of, strict=True)]
        )
        for of in (map(identity, requests), others)
    ]
    outside = [
        ~np.any(regions, axis=0)
        for regions in zip(*(random_judge.look(x).regions for x in pair), strict=True)
    ]
    change = np.abs(pair[0].astype(float) - pair[1]).mean(axis=-1) / 255
    expected = [one[where].mean() for one, where in zip(change, outside, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)  # the same sums in float64
    assert min(expected) > 0


def test_reference_photo_ranks_first_among_identities(random_judge):
    """Even an untrained judge finds the same image among the 20, held out or not."""
    benchmark = Benchmark(make_cases(3) + make_cases(3, held_out=False), random_judge, None)
    photos = [reference(r) for r in benchmark.cases]
    directions = random_judge.directions(
        np.stack([p.image for p in photos]), np.stack([p.masks[0] for p in photos])
    )
    candidates = benchmark.candidates()
    assert candidates.shape == (6, 20, 96)
    assert (metrics.rank(directions, candidates) == 0).all()
    assert (metrics.rank(np.roll(directions, 1, axis=0), candidates) > 0).all()


def test_evaluate_prints_contract_json(paired_pipe, random_judge, one_device, tmp_path, monkeypatch, capsys):
    rc.save(paired_pipe, tmp_path / "model")
    random_judge.save(tmp_path / "judge.safetensors")
    arguments = ["--model", str(tmp_path / "model"), "--judge", str(tmp_path / "judge.safetensors")]
    arguments += ["--requests", "3", "--batch", "3", "--json"]
    arguments += ["--height", "64", "--width", "64", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    evaluate.main()
    lines = capsys.readouterr().out.splitlines()
    results = json.loads(lines[-1])
    assert list(results) == ["text_only", "no_mask", "full", "judge"]
    for name, row in results.items():
        assert tuple(row) == CONTRACT
        nothing = {"mask_iou", "leakage"} if name == "text_only" else set()
        assert {key for key, value in row.items() if value is None} == nothing
        assert all(0 <= row[key] <= 1 for key in CONTRACT[:4] if row[key] is not None)
    assert results["full"]["leakage"] > 0
    assert any(line.startswith("| full | ") for line in lines)


@pytest.fixture(scope="module")
def folders(paired_pipe, tmp_path_factory):
    """A model, and one of the same shapes with all parameters negated."""
    one, other = (tmp_path_factory.mktemp(name) for name in ("one", "other"))
    rc.save(paired_pipe, one)
    rc.save(paired_pipe.replace(params=jax.tree.map(np.negative, paired_pipe.params)), other)
    return one, other


def test_flags_select_model_components(folders, paired_pipe, one_device):
    """With the dtypes that the flags give; the offloaded model has the same digest."""
    one, other = folders
    line = f"--model {one} --unet {other}/unet --realcustom {other}/realcustom --dtype bfloat16"
    line += f" --image-encoder {other}/image_encoder --vae-dtype bfloat16 --batch 3"
    args = evaluate._parser().parse_args(line.split())
    generator = evaluate._generator(args, {})
    assert generator.batch == 3 and generator.pipe.models.dtype == jnp.bfloat16
    for path, value in flatten(generator.pipe.params).items():
        expected = flatten(paired_pipe.params)[path] * (-1 if path.startswith(("unet", "image")) else 1)
        assert value.dtype == (jnp.float32 if "scoring/" in path else jnp.bfloat16)
        np.testing.assert_array_equal(value, expected.astype(value.dtype))
    offloaded = evaluate._generator(evaluate._parser().parse_args([*line.split(), "--offload"]), {}).pipe
    assert offloaded.offloaded and params_sha256(offloaded.params) == params_sha256(generator.pipe.params)


@pytest.mark.parametrize("module", ["evaluation.report", "toybox.demo"])
def test_other_commands_accept_dtype_flags(module, folders, tmp_path, monkeypatch):
    """The dtypes reach the model that they load."""
    command, loaded = importlib.import_module(f"realcustom_jax.{module}"), []

    def load(*args, **options):
        loaded.append(pipeline.load(*args, **options))
        raise KeyboardInterrupt

    if module == "toybox.demo":
        monkeypatch.setattr(command.rc, "load", load, raising=False)
    else:
        monkeypatch.setattr(command.plots, "check_plots", lambda: None)
        monkeypatch.setattr(command, "load", load)
    line = ["--model", str(folders[0]), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [module, *line, "--dtype", "float16", "--vae-dtype", "bfloat16"])
    with pytest.raises(KeyboardInterrupt):
        command.main()
    (pipe,) = loaded
    assert (pipe.models.dtype, pipe.models.vae_dtype) == (jnp.float16, jnp.bfloat16)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--requests", "0"], ["--requests", "not 0"]),
        (["--model", "nowhere", "--judge", "nowhere.safetensors"], ["nowhere.safetensors"]),
        (["--gamma-scope", "2"], ["--gamma-scope", "from 0 to 1"]),
        (["--dreambench", "nowhere"], ["nowhere/prompts_and_classes.txt"]),
        (["--dreambench", "nowhere", "--seeds", "1", "1"], ["--seeds has one value twice"]),
        (["--bogus"], ["--bogus"]),
        *(
            ([option, *value], [option, "needs --dreambench"])
            for option, *value in (
                ("--seeds", "1"), ("--subjects", "dog"), ("--clip", "x"), ("--dino", "x"), ("--masks", "x"),
                ("--out", "x"), ("--image-reward",),
            )
        ),
        (["--dreambench", "nowhere", "--requests", "5"], ["--requests is for the toybox"]),
        (["--dreambench", "nowhere", "--judge", "x"], ["--judge is for the toybox"]),
        (["--dreambench", "nowhere", "--masks", "x"], ["--masks needs --clip or --dino"]),
    ],
)  # fmt: skip
def test_user_mistake_gives_one_line_error(arguments, parts, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    with pytest.raises(SystemExit) as stop:
        run_command(evaluate.main)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: ")
    assert all(part in lines[0] for part in parts), lines
