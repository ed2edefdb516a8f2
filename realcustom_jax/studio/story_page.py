"""The layout and events of the Story tab: characters, script, images, files."""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import write_bytes
from realcustom_jax.inputs.transforms import png_bytes
from realcustom_jax.studio.cast_page import PRIVATE, CastForm, cast_form, connect_cast
from realcustom_jax.studio.jobs import Report
from realcustom_jax.studio.script import (
    Script,
    export_story,
    generate,
    load_story,
    scene_fields,
    scene_of,
    set_look,
)  # fmt: skip
from realcustom_jax.studio.shown import status_line
from realcustom_jax.studio.studio import Studio
from realcustom_jax.studio.widgets import sentence_of, session_of, watched

# (event, action, inputs, status): the action takes the script and the inputs, and returns what happened.
Change = Callable[[Any, Callable[..., str], list[Any], gr.HTML], None]


def story_tab(studio: Studio) -> None:
    """Lay out the tab and connect its events."""
    script = gr.State(Script())
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            form = cast_form(studio, script)
            with gr.Row():
                save = gr.Button("Save character", variant="primary")
                remove = gr.Button("Remove character")
            with gr.Accordion("Import and export a character", open=False):
                load = gr.File(label="Import a character (zip)", file_types=[".zip"], height=120)
                export = gr.Button("Export character")
                file = gr.File(label="Exported character", file_count="multiple", interactive=False)
        with gr.Column(scale=6, min_width=320):
            scenes = _scene_fields()
            runs = _run_fields()
    view = [form.shelf, scenes["list"], runs["pages"]]
    change = _changer(studio, script, view)
    buttons = {"save": save, "remove": remove, "export": export, "import": load}
    connect_cast(studio, form, script, change, buttons, file)
    _connect_scenes(script, scenes, runs, change)
    _connect_runs(studio, script, scenes, runs, view)
    _connect_files(studio, script, form, scenes, runs, change)


def _scene_fields() -> dict[str, Any]:
    """The script, and the form of one scene."""
    chosen = gr.Radio([], label="Scenes", type="value", info="Choose one to change, move or re-roll it.")
    prompt = gr.Textbox(label="Scene", lines=2, placeholder="Mika and Bolt on the beach")
    with gr.Row():
        buttons = {
            name: gr.Button(text, size="sm", min_width=90)
            for name, text in {
                "add": "Add scene", "change": "Change scene", "remove": "Remove scene", "up": "Move up",
                "down": "Move down",
            }.items()
        }  # fmt: skip
    with gr.Accordion("Details of the scene", open=False):
        with gr.Row():
            seed = gr.Textbox(label="Seed of the scene", max_lines=1, placeholder="from the story")
            negative = gr.Textbox(
                label="Negative prompt of the scene", max_lines=1, placeholder="from the story"
            )
        wishes = gr.Textbox(label="Extra wishes", lines=2, placeholder="Mika: wearing a red scarf")
        strengths = gr.Textbox(label="Strengths", lines=2, placeholder="Mika: face 1, body 0.5")
    return {
        "list": chosen,
        **buttons,
        "prompt": prompt,
        "fields": [prompt, seed, negative, wishes, strengths],
    }


def _run_fields() -> dict[str, Any]:
    """Buttons that make images, the images, and what all scenes share."""
    with gr.Row():
        go = gr.Button("Generate all", variant="primary", min_width=120)
        reroll = gr.Button("Re-roll the scene", min_width=120)
        stop = gr.Button("Stop the story", min_width=120)
    status = gr.HTML(status_line(""), elem_classes="studio-line")
    pages = gr.Gallery(
        label="Story", columns=2, height="auto", object_fit="contain", format="png", interactive=False,
        buttons=["download", "fullscreen"], elem_classes="studio-images",
    )  # fmt: skip
    with gr.Accordion("Look of all scenes", open=False):
        style = gr.Textbox(label="Style", info="Ends every prompt.", max_lines=1, placeholder="watercolour")
        negative = gr.Textbox(label="Negative prompt of the story", max_lines=1)
        with gr.Row():
            seed = gr.Textbox(label="Seed of the story", value="0", max_lines=1)
            same = gr.Checkbox(label="One seed for all new scenes")
        look = gr.Button("Set the look", size="sm")
    with gr.Accordion("Import and export the story", open=False):
        export = gr.Button("Export story")
        files = gr.File(label="Exported story", file_count="multiple", interactive=False)
        load = gr.File(label="Import a story (zip or story.json)", file_types=[".zip", ".json"], height=120)
    reuse = gr.Button("Use the scene as a character", size="sm")
    return {
        "go": go, "reroll": reroll, "stop": stop, "status": status, "pages": pages, "export": export,
        "files": files, "import": load, "reuse": reuse, "look": look, "shared": [style, negative, seed, same],
    }  # fmt: skip


def _shown(studio: Studio, script: Script, chosen: int | None = None) -> list[Any]:
    """The values of shelf, list of scenes, and images."""
    scenes = script.scenes()
    known = chosen if chosen is not None and 0 <= chosen < len(scenes) else None
    return [
        script.shelf(studio.new_folder), gr.Radio(choices=scenes, value=known),
        script.pages(studio.new_folder),
    ]  # fmt: skip


def _changer(studio: Studio, script: gr.State, view: list[Any]) -> Change:
    """Connects events to actions on the script; the page then shows the new state."""

    def change(event: Any, act: Callable[..., str], inputs: list[Any], status: gr.HTML) -> None:
        def run(request: gr.Request, script: Script, chosen: int | None, *values: Any) -> list[Any]:
            def checked() -> str:
                # The images that are being made belong to the scenes as they are.
                if studio.jobs.busy(session_of(request)):
                    raise UserError("images are being made: wait, or stop them")
                return act(script, *values)

            done, mistake = sentence_of(checked)
            index = script.chosen if script.chosen is not None else chosen
            script.chosen = None
            return [*_shown(studio, script, index), mistake or status_line(done or "")]

        event(run, [script, view[1], *inputs], [*view, status], **PRIVATE)

    return change


def _connect_scenes(script: gr.State, scenes: dict[str, Any], runs: dict[str, Any], change: Change) -> None:
    """Add, change, remove and move scenes."""
    chosen, fields, status = scenes["list"], scenes["fields"], runs["status"]

    def add(script: Script, *values: str) -> str:
        script.chosen = script.add(scene_of(*values))
        return "the scene is added"

    def edit(script: Script, index: int | None, *values: str) -> str:
        script.story.change(_known(index), **scene_of(*values))
        return "the scene is changed"

    def remove(script: Script, index: int | None) -> str:
        script.story.remove(_known(index))
        return "the scene is removed"

    def mover(by: int) -> Callable[..., str]:
        def move(script: Script, index: int | None) -> str:
            to = min(max(_known(index) + by, 0), len(script.story.pages) - 1)
            script.story.move(_known(index), to)
            script.chosen = to
            return f"it is scene {to + 1} now"

        return move

    change(scenes["add"].click, add, fields, status)
    change(scenes["change"].click, edit, [chosen, *fields], status)
    change(scenes["remove"].click, remove, [chosen], status)
    change(scenes["up"].click, mover(-1), [chosen], status)
    change(scenes["down"].click, mover(1), [chosen], status)

    def look(script: Script, *values: Any) -> str:
        set_look(script.story, *values)
        return "the look is set"

    change(runs["look"].click, look, runs["shared"], status)

    def show(script: Script, index: int | None) -> Any:
        if index is None or not 0 <= index < len(script.story.pages):
            return [gr.skip()] * len(fields)
        return list(scene_fields(script.story.scenes[index]))

    chosen.input(show, [script, chosen], fields, queue=False, **PRIVATE)


def _known(index: int | None) -> int:
    if index is None:
        raise UserError("choose a scene in the list first")
    return index


def _connect_runs(
    studio: Studio, script: gr.State, scenes: dict[str, Any], runs: dict[str, Any], view: list[Any]
) -> None:
    """Make images: all that are missing, or one scene with another seed; stop."""

    def run(request: gr.Request, script: Script, chosen: int | None, reroll: bool) -> Iterator[Any]:
        index, mistake = sentence_of(lambda: _known(chosen) if reroll else None)
        if mistake:
            yield *[gr.skip()] * len(view), mistake
            return

        def work(report: Report) -> bool:
            generate(studio.pipe(report), script.story, report, index)
            return True

        made = script.pages(studio.new_folder)

        def show(images: Any, line: str) -> tuple[Any, ...]:
            now = gr.skip() if images is None else [*made, *((image, "being made") for image in images)]
            return gr.skip(), gr.skip(), now, line

        done = yield from watched(studio, request, work, show)
        yield *_shown(studio, script, chosen), status_line("done") if done else gr.skip()

    outputs = [*view, runs["status"]]

    def make_all(request: gr.Request, script: Script, chosen: int | None) -> Iterator[Any]:
        yield from run(request, script, chosen, reroll=False)

    def make_one(request: gr.Request, script: Script, chosen: int | None) -> Iterator[Any]:
        yield from run(request, script, chosen, reroll=True)

    def end(request: gr.Request) -> str:
        return status_line("stopping …" if studio.jobs.stop(session_of(request)) else "nothing runs")

    runs["go"].click(make_all, [script, scenes["list"]], outputs, **PRIVATE)
    runs["reroll"].click(make_one, [script, scenes["list"]], outputs, **PRIVATE)
    runs["stop"].click(end, None, runs["status"], queue=False, **PRIVATE)


def _connect_files(
    studio: Studio,
    script: gr.State,
    form: CastForm,
    scenes: dict[str, Any],
    runs: dict[str, Any],
    change: Change,
) -> None:
    """Import and export the story; a scene's image as the picture of a new character."""

    def load(script: Script, path: str | None) -> str:
        if not path:
            return ""
        script.story = load_story(str(path))
        return f"{len(script.story.pages)} scenes are imported"

    change(runs["import"].upload, load, [runs["import"]], runs["status"])

    def export(request: gr.Request, script: Script) -> tuple[Any, str]:
        def act() -> list[str]:
            if studio.jobs.busy(session_of(request)):
                raise UserError("images are being made: wait, or stop them")
            return [str(path) for path in export_story(script.story, studio.new_folder())]

        paths, mistake = sentence_of(act)
        return (gr.skip(), mistake) if paths is None else (paths, status_line("the files are below"))

    runs["export"].click(export, script, [runs["files"], runs["status"]], **PRIVATE)

    def reuse(script: Script, index: int | None) -> tuple[Any, str]:
        def act() -> str:
            samples = script.story.pages[_known(index)].samples
            if samples is None:
                raise UserError("the scene has no image yet")
            path = studio.new_folder() / "scene.png"
            write_bytes(path, png_bytes(samples.pil()[0]))
            return str(path)

        path, mistake = sentence_of(act)
        if path is None:
            return gr.skip(), mistake
        return path, status_line("the image is the picture of a new character: name it, and save it")

    runs["reuse"].click(reuse, [script, scenes["list"]], [form.photo, form.status], queue=False, **PRIVATE)
