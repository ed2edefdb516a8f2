"""Progress functions: their calls, and work that they end."""

import numpy as np
import pytest
from jax import monitoring

import realcustom_jax as rc
from realcustom_jax.toybox import Identity, render_reference

SUBJECT = rc.Subject(render_reference(Identity("cat", 9)).image, "cat")


class Cancelled(Exception):
    pass


class Calls(list):
    """A progress function that keeps its calls, and raises at one of them."""

    def __init__(self, end: tuple | None = None):
        self.end = end

    def __call__(self, *call) -> None:
        self.append(call)
        if call == self.end:
            raise Cancelled


def make(pipe, progress=False, **changes):
    return rc.sample(pipe, "a cat", [SUBJECT], seed=3, steps=8, progress=progress, **changes)


def test_function_sees_stages_and_every_step_and_changes_nothing(flat_pipe):
    """Images and masks stay equal to the bit, and nothing is compiled for it."""
    plain, calls, compiled = make(flat_pipe), Calls(), []

    def count(event: str, duration: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    monitoring.register_event_duration_secs_listener(count)
    try:
        watched = make(flat_pipe, calls)
    finally:
        monitoring.unregister_event_duration_listener(count)
    assert compiled == []
    np.testing.assert_array_equal(watched.images, plain.images)
    np.testing.assert_array_equal(watched.masks, plain.masks)
    stages = ["encoding prompts and reference images", "compiling the sampler", "sampling", "decoding"]
    assert [call for call in calls if call[1] == 0] == [(stage, 0, None) for stage in stages]
    assert [call for call in calls if call[1]] == [("sampling", k, 8) for k in range(1, 9)]
    assert calls.index(("sampling", 8, 8)) == len(calls) - 2


@pytest.mark.parametrize("end", [("sampling", 3, 8), ("compiling the sampler", 0, None)])
def test_exception_ends_sampling_and_the_pipeline_goes_on(flat_pipe, end):
    plain, calls, previews = make(flat_pipe), Calls(end), []
    with pytest.raises(Cancelled):
        make(flat_pipe, calls, preview=lambda step, images: previews.append(step), every=1)
    assert calls[-1] == end and previews == list(range(1, end[1])), "no step is computed after it"
    again = make(flat_pipe)
    np.testing.assert_array_equal(again.images, plain.images)
    np.testing.assert_array_equal(again.masks, plain.masks)


@pytest.mark.slow
def test_function_ends_work_of_offloaded_pipeline(micro_pipe, tmp_path):
    rc.save(micro_pipe, tmp_path)
    pipe = rc.load(tmp_path, offload=True, progress=False)
    plain = make(pipe)
    with pytest.raises(Cancelled):
        make(pipe, Calls(("sampling", 3, 8)))
    np.testing.assert_array_equal(make(pipe).images, plain.images)


def test_story_and_candidates_report_to_a_function(micro_pipe):
    """A cancelled re-roll keeps its image; a cancelled story is made later to the same pixels."""
    mika = rc.Character("Mika", SUBJECT.image, "cat")
    options, scenes = {"steps": 2}, ["Mika on the beach", "the beach"]
    expected = rc.Story([mika], scenes, options=options).generate(micro_pipe, progress=False)
    story, calls = rc.Story([mika], scenes, options=options), Calls()
    with pytest.raises(Cancelled):
        story.generate(micro_pipe, progress=Calls(("sampling", 1, 2)))
    assert not any(map(story.is_made, range(2)))
    made = story.generate(micro_pipe, progress=calls)
    assert ("sampling", 1, 2) in calls and ("sampling", 2, 2) in calls
    with pytest.raises(Cancelled):
        story.reroll(micro_pipe, 0, progress=Calls(("sampling", 1, 2)))
    for own, other, page in zip(made, expected, story.pages, strict=True):
        np.testing.assert_array_equal(own.images, other.images)
        assert page.samples is own
    with pytest.raises(Cancelled):
        rc.candidates(micro_pipe, "cat", seeds=[1], steps=2, progress=Calls(("sampling", 2, 2)))


def test_previews_of_a_story_are_its_scenes_in_order(micro_pipe):
    """Without the fillers of a batch that lost a scene, and also where scenes changed places."""
    mika = rc.Character("Mika", SUBJECT.image, "cat")
    scenes, seen = ["Mika on the beach", "the beach", "Mika in the snow"], []
    story = rc.Story([mika], scenes, options={"steps": 2})
    story.generate(micro_pipe, progress=False)
    story.remove(0)
    story.move(1, 0)
    made = story.generate(micro_pipe, again=True, progress=False, every=2,
                          preview=lambda step, images: seen.append(images))  # fmt: skip
    np.testing.assert_array_equal(seen, [np.concatenate([samples.images for samples in made])])
    with pytest.raises(rc.UserError, match="preview must be a function"):
        story.generate(micro_pipe, again=True, preview=5)


@pytest.mark.parametrize("progress", [1, "yes"])
def test_other_progress_raises(flat_pipe, progress):
    with pytest.raises(rc.UserError, match=r"progress must be True, False, None or a function, not"):
        make(flat_pipe, progress)
