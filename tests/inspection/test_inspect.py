"""`rc.inspect` against `rc.sample` and against the sampler as a Python loop."""

import dataclasses
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

import realcustom_jax as rc
from realcustom_jax.common.progress import progress_of
from realcustom_jax.diffusion.masks import aggregate
from realcustom_jax.generate import run_requests
from realcustom_jax.inputs.requests import requests_of
from realcustom_jax.inputs.views import reference_views
from realcustom_jax.toybox import Identity, render_reference

_LOOP = Path(__file__).parents[1] / "diffusion" / "python_loop.py"
Loop = runpy.run_path(str(_LOOP))["Loop"]

PROMPT = "a cat and a dog on the beach"
CAT, DOG = (render_reference(Identity(word, 9)).image for word in ("cat", "dog"))
SUBJECTS = [rc.Subject(CAT, "cat"), rc.Subject(DOG, "dog")]
OPTIONS = {"steps": 4, "mask_steps": 2, "gamma_num": 0.6, "text_weight": 3.0}


def look(pipe, subjects=SUBJECTS, **changes) -> rc.Inspection:
    return rc.inspect(pipe, PROMPT, subjects, 5, progress=False, **{**OPTIONS, **changes})


class Recording(Loop):
    """Keeps the word maps, and the best ⌊γ_num N⌋ tokens by the scores, of every step."""

    def __init__(self, pipe, denoise, *arguments):
        self.maps, self.kept = [], []

        def spy(params, *args, **kwargs):
            e, aux = denoise(params, *args, **kwargs)
            if aux.scores is not None and kwargs["masks"] is not None:
                scores = np.asarray(aux.scores[0])
                order = np.argsort(-scores, axis=-1, kind="stable")[:, : int(0.6 * scores.shape[-1])]
                kept = np.zeros(scores.shape, bool)
                np.put_along_axis(kept, order, True, axis=-1)
                if len(self.kept) < len(self.maps):
                    self.kept.append(kept)
            return e, aux

        super().__init__(pipe, spy, *arguments)

    def passes(self, x, t, masks, guided, weighted):
        self.maps.append(self.maps[-1] if self.maps else None)
        return super().passes(x, t, masks, guided, weighted)

    def masks(self, aux):
        config = self.config
        grid = config.mask_height, config.mask_width
        self.maps[-1] = np.asarray(aggregate(aux.word_maps, *grid, config.mask_normalisation)[0])
        return super().masks(aux)


@pytest.mark.parametrize("guidance", ["paper", "direct"])
def test_maps_and_tokens_equal_python_loop(flat_pipe, flat_denoise, guidance):
    """1e-5 is float32 rounding over four guided steps; no two scores are that close."""
    found = look(flat_pipe, guidance=guidance)
    chosen = flat_pipe.defaults.changed({**OPTIONS, "guidance": guidance})
    made = rc.make_conditioning(flat_pipe, [PROMPT], [SUBJECTS], [""], chosen)
    loop = Recording(flat_pipe, flat_denoise, made, chosen.sampler_config(8, 8), 0)
    _, masks = loop.run(5)
    np.testing.assert_allclose(found.word_maps, np.stack(loop.maps), atol=1e-5)
    np.testing.assert_allclose(found.masks, masks, atol=1e-5)
    np.testing.assert_array_equal(found.kept, np.stack(loop.kept))
    assert found.kept.shape == (4, 2, 16) and (found.kept.sum(-1) == 9).all()
    assert not (found.kept == found.kept[:1, :1]).all(), "steps and subjects keep different tokens"


def test_images_are_those_of_sample_to_the_bit(micro_pipe):
    """With refinement; a later `sample` compiles nothing."""
    options = {**OPTIONS, "mask_refine": "self_attention"}
    found, compiled = look(micro_pipe, mask_refine="self_attention"), []

    def count(event: str, duration: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        plain = rc.sample(micro_pipe, PROMPT, SUBJECTS, 5, progress=False, **options)
        alone = rc.sample(micro_pipe, PROMPT, None, 5, progress=False, **options)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert compiled == []
    np.testing.assert_array_equal(found.customized.images, plain.images)
    np.testing.assert_array_equal(found.masks, plain.masks[0])
    np.testing.assert_array_equal(found.text_only.images, alone.images)
    assert found.customized.png_files() == plain.png_files()
    # Masks are the word maps where these are highest; the second program may round differently.
    inside = found.masks > 0
    np.testing.assert_allclose(found.word_maps[inside], found.masks[inside], atol=1e-4)
    np.testing.assert_array_equal(found.word_maps[2], found.word_maps[1])


@pytest.mark.slow
def test_offloaded_and_divided_pipelines_give_the_same(flat_pipe, tmp_path):
    expected = look(flat_pipe)
    rc.save(flat_pipe, tmp_path)
    two = Mesh(np.asarray(jax.devices()[:2]), ("data",))
    for pipe in (rc.load(tmp_path, offload=True, progress=False), flat_pipe.on_mesh(two)):
        found = look(pipe)
        np.testing.assert_allclose(found.word_maps, expected.word_maps, atol=1e-5)
        np.testing.assert_array_equal(found.kept, expected.kept)


def test_several_photos_share_the_tokens(flat_pipe):
    """One subject has two photos, the other one: its padding never acts."""
    subjects = [rc.Subject(images=[CAT, CAT[:, ::-1]], words="cat"), SUBJECTS[1]]
    found = look(flat_pipe, subjects, steps=1, mask_steps=1)
    assert found.grid.shape == (2, 1, 4, 4) and found.kept.shape == (1, 2, 32)
    assert found.kept[0].sum(-1).tolist() == [19, 9] and not found.kept[0, 1, 16:].any()
    assert [len(photos) for photos in found.references] == [2, 1]
    assert np.asarray(found.draw_tokens(0, 1)).shape == (512, 512, 3)
    with pytest.raises(rc.UserError, match="no photo 1; subject 1 has 1, from 0"):
        found.draw_tokens(0, 1, photo=1)


def test_model_without_scoring_keeps_no_record(flat_pipe):
    options = {"steps": 1, "mask_steps": 1, "scoring": "none"}
    found = rc.inspect(flat_pipe, PROMPT, SUBJECTS, progress=False, **options)
    assert found.kept is None
    view = reference_views(CAT, 16, high_res=False)[0]
    np.testing.assert_array_equal(np.asarray(found.draw_tokens(0))[::32, ::32], view)


def test_pictures_show_maps_masks_and_tokens(flat_pipe):
    """Drawn from values that are set by hand."""
    found = look(flat_pipe, [SUBJECTS[0]], steps=1, mask_steps=1)
    values, kept = np.zeros((1, 1, 8, 8), np.float32), np.zeros((1, 1, 16), bool)
    maps = np.full((1, 1, 8, 8), 0.9, np.float32)
    maps[0, 0, :, :4] = 1.0
    values[0, 0, :, :4], kept[0, 0, 4] = 1.0, True  # the left half; the first patch of the second row
    found = dataclasses.replace(found, word_maps=maps, masks=values, kept=kept)
    image, view = found.customized.images[0], found.references[0][0]
    heat, mask, tokens = (
        np.asarray(picture) for picture in (found.draw_word_map(0), found.draw_mask(-1), found.draw_tokens(0))
    )
    assert heat.shape == mask.shape == tokens.shape == (512, 512, 3)
    assert (heat[:, :200] >= (0.8 * 255, 0.8 * 64, 0)).all() and (heat[:, :200, 2] <= 0.2 * 255).all()
    assert np.ptp(heat[:, 320:], axis=-1).max() == 0
    np.testing.assert_array_equal(mask[::32, :200:32], image[:, :7])
    assert (mask[:, 320:] >= 216).all()
    np.testing.assert_array_equal(tokens[128:256:32, :128:32], view[4:8, :4])
    assert tokens[:, 128:].max() <= 0.2 * 255 + 0.8 * 24 + 1
    for wrong in ({"step": 1}, {"step": 0, "subject": 1}):
        with pytest.raises(rc.UserError, match="there is no"):
            found.draw_mask(**wrong)


@pytest.mark.parametrize(
    ("prompt", "subjects", "seed", "sentence"),
    [
        (PROMPT, [], 1, "inspect needs a subject"),
        ([PROMPT], [SUBJECTS], 1, "one prompt and one seed"),
        (PROMPT, SUBJECTS, [1, 2], "one prompt and one seed"),
        ("a bird", SUBJECTS, 1, "cat"),
    ],
)
def test_wrong_requests_raise(flat_pipe, prompt, subjects, seed, sentence):
    with pytest.raises(rc.UserError, match=sentence):
        rc.inspect(flat_pipe, prompt, subjects, seed)


@pytest.mark.slow
def test_narrowing_after_a_preview_loads_the_unet_again(flat_pipe, tmp_path):
    """A preview frees the UNet of an offloaded pipeline; the maps are those of a run without previews."""
    rc.save(flat_pipe, tmp_path)
    pipe = rc.load(tmp_path, offload=True, progress=False)
    requests = requests_of(PROMPT, SUBJECTS, None, 5)
    seen = {}

    def watch(with_preview):
        def record(pause):
            if pause.done == 1:
                if with_preview:
                    pause.images()
                seen[with_preview] = pause.narrowing().word_maps
            return pause.done + 1

        return record

    for with_preview in (False, True):
        run_requests(pipe, requests, OPTIONS, progress_of(False), lambda _, p=with_preview: watch(p))
    np.testing.assert_array_equal(seen[True], seen[False])
