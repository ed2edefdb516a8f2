"""The layout and events of the characters' part of the Story tab."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import write_bytes
from realcustom_jax.inputs.transforms import png_bytes
from realcustom_jax.outputs.samples import Samples
from realcustom_jax.studio.cast import (
    box_of_clicks,
    cut_out_file,
    export_character,
    face_of,
    face_picture,
    hints_for,
    load_character,
    make_candidates,
    remove_character,
    save_character,
)  # fmt: skip
from realcustom_jax.studio.fields import box_of, text_of_box
from realcustom_jax.studio.jobs import Report
from realcustom_jax.studio.script import Script
from realcustom_jax.studio.shown import error_line, status_line
from realcustom_jax.studio.studio import Studio
from realcustom_jax.studio.widgets import (
    picture,
    sentence_of,
    session_of,
    shown_picture,
    strength_sliders,
    watched,
)  # fmt: skip

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


@dataclasses.dataclass
class CastForm:
    """The components of the characters' part."""

    shelf: gr.Gallery
    name: gr.Textbox
    word: gr.Textbox
    description: gr.Textbox
    photo: gr.Image
    face: gr.Textbox
    strengths: list[gr.Slider]
    status: gr.HTML

    @property
    def fields(self) -> list[Any]:
        """The fields of a character, as `save_character` takes them after the story."""
        return [self.name, self.photo, self.word, self.description, self.face, *self.strengths]


def cast_form(studio: Studio, script: gr.State) -> CastForm:
    """Lay out the characters, and connect the events that concern them alone."""
    shelf = gr.Gallery(
        label="Characters", columns=4, height="auto", object_fit="contain", format="png", allow_preview=False,
        interactive=False, buttons=[], elem_classes="studio-images",
    )  # fmt: skip
    status = gr.HTML(status_line("Choose a character above, or make one below."), elem_classes="studio-line")
    with gr.Row():
        photo = picture("Picture of the character", min_width=160)
        with gr.Column(min_width=200):
            name = gr.Textbox(label="Name", max_lines=1, placeholder="Mika")
            word = gr.Textbox(
                label="Word", max_lines=1, placeholder="bird", info="What it is, in one word or a phrase."
            )
            description = gr.Textbox(
                label="Description", lines=2, placeholder="a red and blue striped bird with a crest"
            )
    form = CastForm(shelf, name, word, description, photo, *_face_fields(studio, photo), status)
    _candidate_fields(studio, form)
    cut = gr.Button("Cut out of its background", size="sm")

    def cut_out(path: str | None) -> tuple[Any, str]:
        made, mistake = sentence_of(lambda: str(cut_out_file(_needed(path), studio.new_folder())))
        return (gr.skip(), mistake) if made is None else (made, status_line("cut out"))

    cut.click(cut_out, photo, [photo, status], **PRIVATE)

    def hint(path: str | None) -> str:
        hints, mistake = sentence_of(lambda: hints_for(path) if path else "")
        return mistake or status_line(hints or "")

    photo.upload(hint, photo, status, queue=False, **PRIVATE)

    def choose(script: Script, event: gr.SelectData) -> list[Any]:
        one = script.story.characters[event.index if isinstance(event.index, int) else 0]
        path = {name: file for file, name in script.shelf(studio.new_folder)}[one.name]
        return [
            one.name, path, one.word, one.description, text_of_box(one.face), one.face_strength,
            one.body_strength, status_line(f"{one.name} is in the form"),
        ]  # fmt: skip

    shelf.select(choose, script, [*form.fields, status], queue=False, **PRIVATE)
    return form


def _needed(path: str | None) -> str:
    if not path:
        raise UserError("there is no picture of the character yet")
    return path


def _face_fields(studio: Studio, photo: gr.Image) -> tuple[gr.Textbox, list[Any]]:
    """The face box, drawn by two clicks or typed, and the strengths."""
    with gr.Accordion("Face and strength", open=False):
        drawn = shown_picture(
            "Click two opposite corners of the face", height=300, buttons=[], elem_classes="studio-picture"
        )
        face = gr.Textbox(
            label="Face box of the character", max_lines=1, placeholder="left, top, right, bottom",
            info="In pixels; clicks on the picture fill it in.",
        )  # fmt: skip
        find = gr.Button("Find the face", size="sm")
        strengths = strength_sliders("of the character")
        note = gr.HTML(status_line(""), elem_classes="studio-line")
    corner = gr.State(None)

    def draw(path: str | None, text: str) -> tuple[Any, Any]:
        if not path:
            return None, gr.skip()
        try:
            return face_picture(path, box_of(text)), gr.skip()
        except UserError as error:
            return gr.skip(), error_line(str(error))

    def click(path: str | None, first: Any, event: gr.SelectData) -> tuple[Any, Any, str]:
        here = (event.index[0], event.index[1])
        if first is None:
            return here, gr.skip(), status_line("one corner is set: click the opposite one")
        box, mistake = sentence_of(lambda: box_of_clicks(_needed(path), first, here))
        return None, gr.skip() if box is None else text_of_box(box), mistake or status_line("the face is set")

    def search(path: str | None) -> tuple[Any, str]:
        def act() -> str:
            return text_of_box(face_of(_needed(path)))

        text, mistake = sentence_of(act)
        return (gr.skip(), mistake) if text is None else (text, status_line("a face is found"))

    gr.on([photo.change, face.change], draw, [photo, face], [drawn, note], queue=False, **PRIVATE)
    drawn.select(click, [photo, corner], [corner, face, note], queue=False, **PRIVATE)
    find.click(search, photo, [face, note], **PRIVATE)
    return face, strengths


def _candidate_fields(studio: Studio, form: CastForm) -> None:
    """A character from its description alone: candidates, of which one is chosen."""
    with gr.Accordion("No picture? Make candidates from the word and the description", open=False):
        seed = gr.Textbox(label="Seed of the candidates", value="0", max_lines=1)
        make = gr.Button("Make candidates")
        shown = gr.Gallery(
            label="Candidates: choose one", columns=4, height="auto", format="png", allow_preview=False,
            interactive=False, buttons=[], elem_classes="studio-images",
        )  # fmt: skip
    made = gr.State(None)

    def run(request: gr.Request, word: str, description: str, seed: str) -> Iterator[Any]:
        def work(report: Report) -> Samples:
            return make_candidates(studio.pipe(report), word, description, seed, report)

        def show(images: Any, line: str) -> tuple[Any, ...]:
            return gr.skip() if images is None else images, gr.skip(), line

        samples = yield from watched(studio, request, work, show)
        if samples is not None:
            yield samples.pil(), samples, status_line("choose a candidate")

    make.click(run, [form.word, form.description, seed], [shown, made, form.status], **PRIVATE)

    def choose(samples: Samples | None, event: gr.SelectData) -> tuple[Any, str]:
        if samples is None or not isinstance(event.index, int):
            return gr.skip(), status_line("the candidates are not ready")
        path = studio.new_folder() / "candidate.png"
        write_bytes(path, png_bytes(samples.pil()[event.index]))
        return str(path), status_line("the candidate is the picture now: give it a name, and save it")

    shown.select(choose, made, [form.photo, form.status], queue=False, **PRIVATE)


def connect_cast(
    studio: Studio, form: CastForm, script: gr.State, change: Any, buttons: dict[str, Any], file: gr.File
) -> None:
    """Connect the events that change the story.

    Args:
      studio: the studio.
      form: the characters' part.
      script: the state with the user's `Script`.
      change: connects an event to an action on the script; see `story_page`.
      buttons: {"save", "remove", "export": a button, "import": a `gr.File`}.
      file: shows the exported file.
    """

    def save(script: Script, *values: Any) -> str:
        *texts, face_strength, body_strength = values
        one = save_character(script.story, *texts, strengths=(face_strength, body_strength))
        return f"{one.name} is saved"

    def remove(script: Script, name: str) -> str:
        remove_character(script.story, name)
        return f"{name} is removed"

    def load(script: Script, path: str | None) -> str:
        if not path:
            return ""
        one = load_character(str(path))
        script.story.add_character(one)
        return f"{one.name} is imported"

    change(buttons["save"].click, save, form.fields, form.status)
    change(buttons["remove"].click, remove, [form.name], form.status)
    change(buttons["import"].upload, load, [buttons["import"]], form.status)

    def export(request: gr.Request, script: Script, name: str) -> tuple[Any, str]:
        def act() -> Path:
            if studio.jobs.busy(session_of(request)):
                raise UserError("images are being made: wait, or stop them")
            return export_character(script.story, name, studio.new_folder())

        path, mistake = sentence_of(act)
        return ([str(path)], status_line("the file is below")) if path else (gr.skip(), mistake)

    buttons["export"].click(export, [script, form.name], [file, form.status], **PRIVATE)
