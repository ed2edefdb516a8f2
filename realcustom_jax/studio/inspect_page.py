"""The layout and events of the Inspect tab."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from realcustom_jax.inspection.inspection import Inspection
from realcustom_jax.studio.cast_page import PRIVATE
from realcustom_jax.studio.create import Form, Reference
from realcustom_jax.studio.create_page import CreateTab
from realcustom_jax.studio.inspect_tab import (
    drawings,
    explained,
    form_of_image,
    look_inside,
    subjects_of,
)  # fmt: skip
from realcustom_jax.studio.jobs import Report
from realcustom_jax.studio.shown import enlarged, status_line
from realcustom_jax.studio.studio import Studio
from realcustom_jax.studio.widgets import picture, sentence_of, session_of, shown_picture, watched


@dataclasses.dataclass
class InspectView:
    """What the tab shows of an inspection, in the order of the values that events return."""

    customized: gr.Image
    text_only: gr.Image
    step: gr.Slider
    subject: gr.Radio
    text: gr.HTML
    word_map: gr.Image
    mask: gr.Image
    tokens: gr.Image
    found: gr.State

    @property
    def all(self) -> list[Any]:
        """All components."""
        return [getattr(self, field.name) for field in dataclasses.fields(self)]


def inspect_tab(studio: Studio, create: CreateTab) -> None:
    """Lay out the tab and connect its events."""
    gr.Markdown(
        "Where the image attends to the word, where the subject may therefore act, and which parts of the "
        "reference it takes."
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=300):
            prompt = gr.Textbox(
                label="Prompt to inspect", lines=2, value="a bird on the beach" if studio.toy else ""
            )
            photo = picture("Picture to inspect")
            word = gr.Textbox(label="Word of the picture", max_lines=1, placeholder="auto")
            seed = gr.Textbox(label="Seed to inspect", value="0", max_lines=1)
            with gr.Row():
                go = gr.Button("Inspect", variant="primary", min_width=100)
                stop = gr.Button("Stop inspecting", min_width=100)
            take = gr.Button("Inspect the image of the Create tab", size="sm")
            status = gr.HTML(status_line(""), elem_classes="studio-line")
        with gr.Column(scale=8, min_width=320):
            view = _view_fields()
    outputs = [*view.all, status]

    def own(request: gr.Request, prompt: str, photo: str | None, word: str, seed: str) -> Iterator[Any]:
        references = [Reference(photo, word)] if photo else []
        yield from _run(studio, request, lambda: Form(prompt, references, seed))

    def of_create(request: gr.Request, result: Any, index: int) -> Iterator[Any]:
        yield from _run(studio, request, lambda: form_of_image(result, index))

    def end(request: gr.Request) -> str:
        return status_line("stopping …" if studio.jobs.stop(session_of(request)) else "nothing runs")

    def draw(found: Inspection | None, step: float, subject: int | None) -> list[Any]:
        return [gr.skip()] * 4 if found is None else _drawn(found, int(step), subject or 0)

    go.click(own, [prompt, photo, word, seed], outputs, **PRIVATE)
    take.click(of_create, [create.result, create.chosen], outputs, **PRIVATE)
    stop.click(end, None, status, queue=False, **PRIVATE)
    gr.on(
        [view.step.input, view.subject.input], draw, [view.found, view.step, view.subject],
        [view.text, view.word_map, view.mask, view.tokens], trigger_mode="always_last", **PRIVATE,
    )  # fmt: skip


def _view_fields() -> InspectView:
    """The components of an inspection."""
    small = {"height": 240, "elem_classes": "studio-picture", "min_width": 150}
    with gr.Row():
        customized = shown_picture("Customized", **small)
        text_only = shown_picture("Text only", **small)
    with gr.Row():
        step = gr.Slider(1, 2, 1, step=1, label="Step", min_width=200)
        subject = gr.Radio([], label="Subject", min_width=120)
    text = gr.HTML(status_line(""), elem_classes="studio-line")
    with gr.Row():
        word_map = shown_picture("Word map", **small)
        mask = shown_picture("Mask", **small)
        tokens = shown_picture("Visual tokens that act", **small)
    return InspectView(customized, text_only, step, subject, text, word_map, mask, tokens, gr.State(None))


def _run(studio: Studio, request: gr.Request, form_of: Callable[[], Form]) -> Iterator[Any]:
    """Inspect the image of a form; shows the last step at first."""
    count = len(dataclasses.fields(InspectView))
    form, mistake = sentence_of(form_of)
    if form is None:
        yield *[gr.skip()] * count, mistake
        return

    def work(report: Report) -> Inspection:
        return look_inside(studio.pipe(report), form, report)

    found = yield from watched(studio, request, work, lambda _, line: (*[gr.skip()] * count, line))
    if found is not None:
        last = len(found.masks)
        yield (
            enlarged(found.customized.pil()[0]), enlarged(found.text_only.pil()[0]),
            gr.Slider(maximum=last, value=last), gr.Radio(choices=subjects_of(found), value=0),
            *_drawn(found, last, 0), found, status_line("done: move the slider"),
        )  # fmt: skip


def _drawn(found: Inspection, step: int, subject: int) -> list[Any]:
    """The text and the drawings of a step."""
    step = min(max(step, 1), len(found.masks))
    return [status_line(explained(found, step, subject)), *drawings(found, step, subject)]
