"""Gradio components and event helpers that all tabs share."""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from realcustom_jax.common.errors import UserError, one_line
from realcustom_jax.studio.jobs import Report, Stopped, Update
from realcustom_jax.studio.shown import error_line, status_line, update_line
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
    studio: Studio, request: gr.Request | None, work: Callable[[Report], _Result]
) -> Generator[Update | str, None, _Result | None]:
    """Run work for a tab.

    Yields:
      Updates, and at last, if it failed, a line of HTML that says why.

    Returns:
      The result; None if it failed.
    """
    try:
        return (yield from studio.jobs.run(session_of(request), work))
    except Stopped:
        yield status_line("stopped")
    except UserError as error:
        yield error_line(str(error))
    except Exception as error:
        studio.log(error)
        yield error_line(f"unexpected error: {one_line(error)}")
    return None


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
    except UserError as error:
        raise gr.Error(str(error), print_exception=False) from None
    except Exception as error:
        studio.log(error)
        raise gr.Error(f"unexpected error: {one_line(error)}", print_exception=False) from None


def line_of(update: Update | str) -> str:
    """The status of what `watched` yields."""
    return update if isinstance(update, str) else update_line(update)


def paths_of(files: Sequence[Any] | None) -> list[str]:
    """The paths of uploaded files."""
    return [str(file) for file in files or ()]


def existing(path: Any) -> str | None:
    """A path for a download button, or None."""
    return str(path) if path and Path(path).is_file() else None
