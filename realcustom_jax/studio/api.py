"""The functions that clients call over HTTP: /create, /story and /inspect."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import gradio as gr

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import write_bytes
from realcustom_jax.common.rules import is_list, shown
from realcustom_jax.options import SamplingOptions
from realcustom_jax.studio.create import Form, Reference, create
from realcustom_jax.studio.fields import changed_options, text_of_box
from realcustom_jax.studio.inspect_tab import look_inside, numbers_of
from realcustom_jax.studio.jobs import Report
from realcustom_jax.studio.script import generate, load_story
from realcustom_jax.studio.studio import Studio
from realcustom_jax.studio.widgets import answered

_FIELDS = [field.name for field in dataclasses.fields(Reference) if field.name != "photo"]


def add_api(studio: Studio) -> None:
    """Add the endpoints to the page that is being laid out; nothing of them is visible."""
    with gr.Column(visible=False):
        go = [gr.Button(name) for name in ("create", "story", "inspect")]
        _add_create(studio, go[0])
        _add_story(studio, go[1])
        _add_inspect(studio, go[2])


def form_of_request(
    studio: Studio, prompt: Any, pictures: Sequence[Any] | None, words: Any, seed: Any, **rest: Any
) -> Form:
    """The form of a client's request.

    Args:
      studio: the studio.
      prompt, seed: as in `Form`.
      pictures: files of the references.
      words: for each a word, or an object with fields of `Reference`; missing ones are chosen.
      **rest: `count`, `negative_prompt` and `options`, as in `Form`; None for the default.

    Raises:
      UserError: for values of wrong types.
    """
    words = [] if words is None else words
    pictures = list(pictures or ())
    if not is_list(words) or len(words) > len(pictures):
        raise UserError(f"words must be a list with one word for each of {len(pictures)} pictures")
    padded = [*words, *[""] * (len(pictures) - len(words))]
    references = [_reference(str(file), word) for file, word in zip(pictures, padded, strict=True)]
    options = rest.get("options") or {}
    known = SamplingOptions.rules()
    if not isinstance(options, dict) or not set(options) <= set(known):
        raise UserError(f"options must be an object with keys among {', '.join(known)}, not {shown(options)}")
    count: Any = rest.get("count")
    count = 1 if count is None else int(count) if isinstance(count, float) and count.is_integer() else count
    negative = rest.get("negative_prompt") or ""
    return Form(prompt, references, seed, count, negative, changed_options(options, studio.defaults))


def _reference(photo: str, word: Any) -> Reference:
    """A reference from a client's word, or its object of fields."""
    given = {"word": word} if isinstance(word, str) else word
    if not isinstance(given, dict) or not set(given) <= set(_FIELDS):
        raise UserError(f"a word must be a text, or an object with {', '.join(_FIELDS)}, not {shown(word)}")
    values: dict[str, Any] = dict(given)
    if is_list(values.get("face")):
        if len(values["face"]) != 4 or not all(isinstance(side, (int, float)) for side in values["face"]):
            raise UserError(f"a face must be four numbers, not {shown(values['face'])}")
        values["face"] = text_of_box(values["face"])
    for name in ("word", "face"):
        if not isinstance(values.get(name, ""), str):
            raise UserError(f"the {name} of a reference must be a text, not {shown(values[name])}")
    return Reference(photo, **values)


def _request_fields() -> list[Any]:
    """Fields of the request for one image or several."""
    return [
        gr.Textbox(label="prompt"),
        gr.File(label="pictures", file_count="multiple"),
        gr.JSON([], label="words"),
        gr.Textbox("0", label="seed"),
    ]


def _add_create(studio: Studio, button: gr.Button) -> None:
    inputs = [
        *_request_fields(),
        gr.Number(1, label="count"),
        gr.Textbox("", label="negative_prompt"),
        gr.JSON({}, label="options"),
    ]
    outputs = [gr.File(label="images", file_count="multiple"), gr.JSON(label="words")]

    def run(
        request: gr.Request, prompt: str, pictures: list[str] | None = None, words: Any = None,
        seed: str = "0", count: float = 1, negative_prompt: str = "", options: Any = None,
    ) -> tuple[list[str], Any]:  # fmt: skip
        """Make images of the pictures' subjects. Returns the PNG files, and the words of each."""

        def work(report: Report) -> tuple[list[str], Any]:
            form = form_of_request(
                studio, prompt, pictures, words, seed, count=count, negative_prompt=negative_prompt,
                options=options,
            )  # fmt: skip
            samples = create(studio.pipe(report), form, report)
            return [str(path) for path in samples.save(studio.new_folder())], samples.words

        return answered(studio, request, work)

    button.click(run, inputs, outputs, api_name="create")


def _add_story(studio: Studio, button: gr.Button) -> None:
    inputs = [
        gr.File(label="story"), gr.Number(None, label="reroll"), gr.Checkbox(False, label="again")
    ]  # fmt: skip
    output = gr.File(label="story")

    def run(request: gr.Request, story: str | None, reroll: float | None = None, again: bool = False) -> str:
        """Make a story's missing images (zip or story.json), or scene `reroll`, from 1. Returns a zip."""

        def work(report: Report) -> str:
            if not story:
                raise UserError("there is no story: send a zip or a story.json")
            own = load_story(str(story))
            scene = None if reroll is None else int(reroll) - 1
            generate(studio.pipe(report), own, report, scene, bool(again))
            return str(own.save(studio.new_folder() / "story.zip"))

        return answered(studio, request, work)

    button.click(run, inputs, output, api_name="story")


def _add_inspect(studio: Studio, button: gr.Button) -> None:
    inputs = [
        *_request_fields(),
        gr.JSON({}, label="options"),
    ]
    outputs = [gr.File(label="customized"), gr.File(label="text_only"), gr.JSON(label="steps")]

    def run(
        request: gr.Request, prompt: str, pictures: list[str] | None = None, words: Any = None,
        seed: str = "0", options: Any = None,
    ) -> tuple[str, str, Any]:  # fmt: skip
        """Make one image and look inside. Returns it, the text-only image, and the numbers of each step."""

        def work(report: Report) -> tuple[str, str, Any]:
            form = form_of_request(studio, prompt, pictures, words, seed, options=options)
            found = look_inside(studio.pipe(report), form, report)
            folder = studio.new_folder()
            for name in ("customized", "text_only"):
                write_bytes(folder / f"{name}.png", getattr(found, name).png_files()[0])
            return str(folder / "customized.png"), str(folder / "text_only.png"), numbers_of(found)

        return answered(studio, request, work)

    button.click(run, inputs, outputs, api_name="inspect")
