"""The layout and events of the Create tab."""

import dataclasses
import random
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from realcustom_jax.common.files import write_bytes
from realcustom_jax.common.rules import Rule
from realcustom_jax.inputs.transforms import png_bytes
from realcustom_jax.options import SamplingOptions, describe
from realcustom_jax.studio.create import (
    MOST_IMAGES,
    MOST_REFERENCES,
    Form,
    Reference,
    caption,
    create,
    propose_words,
)  # fmt: skip
from realcustom_jax.studio.fields import changed_options, field_of, text_of_box
from realcustom_jax.studio.jobs import Report
from realcustom_jax.studio.shown import Result, status_line
from realcustom_jax.studio.studio import Studio
from realcustom_jax.studio.widgets import picture, sentence_of, session_of, strength_sliders, watched
from realcustom_jax.toybox import WORDS, example, example_face

# Fields of one reference, in order: those of `Reference`.
_PER_REFERENCE = len(dataclasses.fields(Reference))


@dataclasses.dataclass
class CreateTab:
    """The components of the tab that events use."""

    prompt: gr.Textbox
    seed: gr.Textbox
    count: gr.Slider
    negative: gr.Textbox
    references: list[list[Any]]
    propose: gr.Button
    dice: gr.Button
    options: dict[str, Any]
    status: gr.HTML
    gallery: gr.Gallery
    details: gr.Markdown
    with_masks: gr.Checkbox
    download: gr.DownloadButton
    reuse: gr.Button
    result: gr.State
    chosen: gr.State

    @property
    def inputs(self) -> list[Any]:
        """All fields, in the order that `form_of` takes."""
        own = [self.prompt, self.seed, self.count, self.negative]
        return [*own, *(field for fields in self.references for field in fields), *self.options.values()]


def form_of(studio: Studio, values: Sequence[Any]) -> Form:
    """The form of the values of `CreateTab.inputs`."""
    prompt, seed, count, negative, *rest = values
    cut = MOST_REFERENCES * _PER_REFERENCE
    groups = [rest[k : k + _PER_REFERENCE] for k in range(0, cut, _PER_REFERENCE)]
    options = dict(zip(SamplingOptions.rules(), rest[cut:], strict=True))
    references = [Reference(*group) for group in groups if group[0]]
    return Form(
        prompt, references, seed, int(count or 1), negative or "", changed_options(options, studio.defaults)
    )


def create_tab(studio: Studio) -> CreateTab:
    """Lay out the tab and connect its events."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            fields = _request_fields(studio)
            with gr.Row():
                go = gr.Button("Create", variant="primary")
                stop = gr.Button("Stop")
            live = gr.Checkbox(
                label="Live",
                info="Draw again while you type; one image, with the seed above.",
                visible=studio.toy,
            )
        with gr.Column(scale=6, min_width=320):
            shown = _result_fields()
    tab = CreateTab(**fields, **shown)
    _connect(studio, tab, go, stop, live)
    return tab


def _request_fields(studio: Studio) -> dict[str, Any]:
    """The fields of a request, named as in `CreateTab`."""
    prompt = gr.Textbox(
        label="Prompt", lines=2, placeholder="a bird on the beach",
        value="a bird on the beach" if studio.toy else "",
    )  # fmt: skip
    references = [_reference_fields(studio, number) for number in range(1, MOST_REFERENCES + 1)]
    propose = gr.Button("Propose words", size="sm")
    with gr.Row():
        with gr.Column(min_width=140):
            seed = gr.Textbox(label="Seed", value="0", max_lines=1)
            dice = gr.Button("New seed", size="sm")
        count = gr.Slider(1, MOST_IMAGES, 1, step=1, label="Images", min_width=200)
    with gr.Accordion("Advanced", open=False):
        negative = gr.Textbox(
            label="Negative prompt", info="What the image should not show.", value="", lines=1
        )
        options = _option_fields(studio.defaults)
    return {
        "prompt": prompt, "references": references, "propose": propose, "seed": seed, "dice": dice,
        "count": count, "negative": negative, "options": options,
    }  # fmt: skip


def _reference_fields(studio: Studio, number: int) -> list[Any]:
    """The fields of one reference; from the second on they are folded away."""
    name = f"Reference {number}"
    with gr.Accordion(name, open=number == 1):
        with gr.Row():
            photo = picture(f"Picture of {name.lower()}", min_width=160)
            with gr.Column(min_width=160):
                word = gr.Textbox(
                    label=f"Word of {name.lower()}", max_lines=1, placeholder="auto",
                    info="The word of the prompt that it shows. Empty: it is found or added.",
                )  # fmt: skip
                if studio.toy:
                    examples = gr.Dropdown(
                        list(WORDS), value=None, label=f"Example for {name.lower()}", min_width=120
                    )
        with gr.Accordion(f"Face and strength of {name.lower()}", open=False):
            face = gr.Textbox(
                label=f"Face box of {name.lower()}", max_lines=1, placeholder="left, top, right, bottom",
                info="In pixels of the picture. Inside it acts the face strength, outside the body strength.",
            )  # fmt: skip
            strengths = strength_sliders(f"of {name.lower()}")
    # The box belongs to the picture that was there before.
    gr.on([photo.upload, photo.clear], lambda: "", None, face, api_visibility="private", queue=False)
    if studio.toy:

        def take(chosen: str | None) -> tuple[Any, Any, Any]:
            if not chosen:
                return gr.skip(), gr.skip(), gr.skip()
            path = studio.new_folder() / f"{chosen}.png"
            write_bytes(path, png_bytes(example(chosen)))
            return str(path), chosen, text_of_box(example_face(chosen))

        examples.input(take, examples, [photo, word, face], api_visibility="private", queue=False)
    return [photo, word, face, *strengths]


def _option_fields(defaults: SamplingOptions) -> dict[str, Any]:
    """A field for each sampling option."""
    fields = {}
    with gr.Row():
        for name, rule in SamplingOptions.rules().items():
            fields[name] = _option_field(name, rule, field_of(name, defaults))
    return fields


def _option_field(name: str, rule: Rule, value: Any) -> Any:
    label = name.replace("_", " ").capitalize()
    info = describe(name)
    if rule.choices:
        return gr.Dropdown(list(rule.choices), value=value, label=label, info=rule.help, min_width=200)
    if rule.none is not None:
        # Not a number: Gradio makes 0 of an empty one.
        text = "" if value is None else str(value)
        return gr.Textbox(
            value=text, label=label, info=info, max_lines=1, min_width=200, placeholder=rule.none
        )
    precision = 0 if rule.kind is int else None
    return gr.Number(value=value, label=label, info=info, precision=precision, min_width=200)


def _result_fields() -> dict[str, Any]:
    """What shows the result, named as in `CreateTab`."""
    status = gr.HTML(status_line(""), elem_classes="studio-line")
    gallery = gr.Gallery(
        label="Images", columns=2, height="auto", object_fit="contain", format="png", interactive=False,
        buttons=["download", "fullscreen"], elem_classes="studio-images",
    )  # fmt: skip
    with_masks = gr.Checkbox(label="Masks", info="Where each subject may act: one colour for each reference.")
    details = gr.Markdown()
    with gr.Row():
        download = gr.DownloadButton("Download PNG", interactive=False)
        reuse = gr.Button("Use as reference 1")
    return {
        "status": status, "gallery": gallery, "details": details, "with_masks": with_masks,
        "download": download, "reuse": reuse, "result": gr.State(None), "chosen": gr.State(0),
    }  # fmt: skip


def _connect(studio: Studio, tab: CreateTab, go: gr.Button, stop: gr.Button, live: gr.Checkbox) -> None:
    """The events of the tab."""
    outputs = [tab.gallery, tab.status, tab.details, tab.download, tab.result, tab.chosen]
    private: dict[str, Any] = {"api_visibility": "private"}
    run = _runner(studio)
    inputs = [tab.with_masks, *tab.inputs]
    go.click(run, inputs, outputs, show_progress="hidden", **private)
    tab.prompt.submit(run, inputs, outputs, show_progress="hidden", **private)

    def run_live(request: gr.Request, is_live: bool, *values: Any) -> Iterator[Any]:
        if is_live:
            values = (*values[:3], 1, *values[4:])
            yield from run(request, *values)

    words = [fields[1].input for fields in tab.references]
    gr.on(
        [live.input, tab.prompt.input, tab.seed.change, *words], run_live, [live, *inputs], outputs,
        show_progress="hidden", trigger_mode="always_last", **private,
    )  # fmt: skip

    def end(request: gr.Request) -> str:
        return status_line("stopping …" if studio.jobs.stop(session_of(request)) else "nothing runs")

    stop.click(end, None, tab.status, queue=False, show_progress="hidden", **private)

    def choose(result: Result | None, event: gr.SelectData) -> tuple[int, Any, str]:
        index = event.index if isinstance(event.index, int) else 0
        return (index, *_about(result, index))

    tab.gallery.select(choose, tab.result, [tab.chosen, tab.download, tab.details], queue=False, **private)
    tab.with_masks.input(
        lambda result, masks: gr.skip() if result is None else result.gallery(masks),
        [tab.result, tab.with_masks], tab.gallery, show_progress="hidden", **private,
    )  # fmt: skip
    _connect_references(studio, tab)


def _runner(studio: Studio) -> Any:
    """The event that makes images and shows how far they are."""

    def run(request: gr.Request, masks: bool, *values: Any) -> Iterator[Any]:
        form, mistake = sentence_of(lambda: form_of(studio, values))
        if form is None:
            yield gr.skip(), mistake, *[gr.skip()] * 4
            return

        def work(report: Report) -> Result:
            samples = create(studio.pipe(report), form, report)
            return Result.write(samples, studio.new_folder(), form)

        def show(images: Any, line: str) -> tuple[Any, ...]:
            return gr.skip() if images is None else images, line, *[gr.skip()] * 4

        result = yield from watched(studio, request, work, show)
        if result is not None:
            download, details = _about(result, 0)
            yield result.gallery(masks), status_line("done"), details, download, result, 0

    return run


def _about(result: Result | None, index: int) -> tuple[Any, str]:
    """The download button and the text for one image of a result."""
    if result is None or not 0 <= index < len(result.images):
        return gr.DownloadButton(interactive=False), ""
    path, record = result.images[index], result.samples.records[index]
    prompt = record.prompt.replace("`", "'")
    text = (
        f"`{prompt}` · {caption(result.samples, index)}  \n"
        f"The file holds its recipe: `python -m realcustom_jax.sample --from {path.name}`"
    )
    return gr.DownloadButton(f"Download {path.name}", value=str(path), interactive=True), text


def _connect_references(studio: Studio, tab: CreateTab) -> None:
    """Buttons that fill in fields: a seed, proposed words, and a result as the next reference."""
    private: dict[str, Any] = {"api_visibility": "private"}
    tab.dice.click(lambda: str(random.randrange(2**32)), None, tab.seed, queue=False, **private)
    words = [fields[1] for fields in tab.references]

    def proposed(request: gr.Request, *values: Any) -> list[Any]:
        def act() -> tuple[str, list[str]]:
            form = form_of(studio, values)
            return studio.jobs.finish(
                session_of(request),
                lambda report: propose_words(studio.pipe(report), form.prompt, form.references),
            )

        found, mistake = sentence_of(act)
        if found is None:
            return [gr.skip(), *[gr.skip()] * len(words), mistake]
        prompt, given = found[0], iter(found[1])
        photos = [values[4 + k * _PER_REFERENCE] for k in range(MOST_REFERENCES)]
        chosen = [next(given) if photo else gr.skip() for photo in photos]
        return [prompt, *chosen, status_line("words proposed")]

    outputs = [tab.prompt, *words, tab.status]
    tab.propose.click(proposed, tab.inputs, outputs, show_progress="hidden", **private)

    def reused(result: Result | None, index: int) -> tuple[Any, Any, Any, str]:
        if result is None:
            return gr.skip(), gr.skip(), gr.skip(), status_line("there is no image yet")
        path = studio.new_folder() / "reference.png"
        write_bytes(path, png_bytes(result.samples.pil()[index]))
        named = [word for words in result.samples.words[index] for word in words]
        return str(path), (named or [""])[0], "", status_line("the image is reference 1 now")

    photo, word, face, *_ = tab.references[0]
    tab.reuse.click(reused, [tab.result, tab.chosen], [photo, word, face, tab.status], queue=False, **private)
