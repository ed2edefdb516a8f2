"""Gradio components and event helpers that all tabs share."""

import contextlib
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from realcustom_jax.common.errors import UserError, one_line
from realcustom_jax.studio.jobs import Report, Stopped
from realcustom_jax.studio.shown import error_line, status_line
from realcustom_jax.studio.studio import Studio

_Result = TypeVar("_Result")


def picture(label: str, **fields: Any) -> gr.Image:
    """A picture that users upload; events get its path.

    The file reaches the library unchanged, and the library says what is wrong with it.
    """
    fields = {"height": 220, "buttons": [], "sources": ["upload", "clipboard"], **fields}
    component = gr.Image(
        label=label, type="filepath", format="png", image_mode=None, elem_classes="studio-picture", **fields
    )
    # Gradio would open the file first, and its errors name paths of this machine.
    component.preprocess = _path_of
    return component


def _path_of(payload: Any) -> str | None:
    return None if payload is None else payload.path


def shown_picture(label: str, **fields: Any) -> gr.Image:
    """A picture that the page shows."""
    return gr.Image(
        label=label, format="png", interactive=False, **{"buttons": ["download", "fullscreen"], **fields}
    )


def strength_sliders(of: str) -> list[gr.Slider]:
    """Sliders for the strengths of face and body."""
    with gr.Row():
        return [
            gr.Slider(0, 2, 1, step=0.05, label=f"{name} strength {of}", min_width=140)
            for name in ("Face", "Body")
        ]


def session_of(request: gr.Request | None) -> str:
    """The session of a browser's tab, or of a client."""
    return (request and request.session_hash) or ""


def watched(
    studio: Studio,
    request: gr.Request | None,
    work: Callable[[Report], _Result],
    show: Callable[[Any, str], Any],
) -> Generator[Any, None, _Result | None]:
    """Run work for a tab, and show how far it is.

    Args:
      studio: the studio.
      request: of the tab.
      work: the work.
      show: makes the values of the tab's components from the images predicted last, a list, or None if there
        are no new ones, and a status as HTML.

    Yields:
      Results of `show`; at last, if the work failed, one that says why.

    Returns:
      The result of the work; None if it failed.
    """
    # Closed with this generator, which stops the work.
    with contextlib.closing(studio.jobs.run(session_of(request), work)) as updates:
        before = None
        while True:
            try:
                update = next(updates)
            except StopIteration as end:
                return end.value
            except Exception as error:
                yield show(None, _failure(studio, error))
                return None
            new = update.images if update.images is not before else None
            before = update.images
            yield show(None if new is None else list(new), status_line(update.text, update.share))


def _failure(studio: Studio, error: Exception) -> str:
    """A failure of work as HTML."""
    if isinstance(error, Stopped):
        return status_line("stopped")
    return error_line(_sentence(studio, error))


def _sentence(studio: Studio, error: Exception) -> str:
    """An error in one sentence; the traceback of an unexpected one is printed."""
    if isinstance(error, UserError):
        return str(error)
    studio.log(error)
    return f"unexpected error: {one_line(error)}"


def sentence_of(act: Callable[[], _Result]) -> tuple[_Result | None, str]:
    """The result of a short action, and a line of HTML if it failed, "" if not."""
    try:
        return act(), ""
    except UserError as error:
        return None, error_line(str(error))


def answered(studio: Studio, request: gr.Request | None, work: Callable[[Report], _Result]) -> _Result:
    """Run work for a client of the API.

    Raises:
      gr.Error: one sentence, if it failed.
    """
    try:
        return studio.jobs.finish(session_of(request), work)
    except Stopped:
        raise gr.Error("stopped", print_exception=False) from None
    except Exception as error:
        raise gr.Error(_sentence(studio, error), print_exception=False) from None


def paths_of(files: Sequence[Any] | None) -> list[str]:
    """The paths of uploaded files."""
    return [str(file) for file in files or ()]


def existing(path: Any) -> str | None:
    """A path for a download button, or None."""
    return str(path) if path and Path(path).is_file() else None
