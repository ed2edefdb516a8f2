"""The page: three tabs over one model."""

import time
from collections.abc import Callable, Iterator

import gradio as gr
from starlette.middleware import Middleware

from realcustom_jax.studio.api import add_api
from realcustom_jax.studio.create_page import create_tab
from realcustom_jax.studio.inspect_page import inspect_tab
from realcustom_jax.studio.local_only import LocalOnly
from realcustom_jax.studio.look import CSS, HEAD, theme
from realcustom_jax.studio.shown import error_line, status_line
from realcustom_jax.studio.story_page import story_tab
from realcustom_jax.studio.studio import Studio
from realcustom_jax.studio.widgets import session_of

# Users of one moment whose work Gradio passes on; it puts further ones in its own line.
_AT_ONCE = 64


def build_page(studio: Studio) -> gr.Blocks:
    """Lay out the page."""
    with gr.Blocks(title="realcustom_jax studio", analytics_enabled=False, fill_width=False) as page:
        gr.Markdown("# RealCustom studio\nImages of one given subject, from a text prompt.")
        ready = gr.HTML(status_line(studio.stage), elem_classes="studio-ready")
        with gr.Tabs():
            with gr.Tab("Create"):
                create = create_tab(studio)
            with gr.Tab("Story"):
                story_tab(studio)
            with gr.Tab("Inspect"):
                inspect_tab(studio, create)
        add_api(studio)
        page.load(
            _readiness(studio), None, ready, show_progress="hidden", api_visibility="private",
            concurrency_limit=None,
        )  # fmt: skip
        page.unload(_leave(studio))
    page.queue(default_concurrency_limit=_AT_ONCE)
    return page


def launch(page: gr.Blocks, host: str, port: int, max_megabytes: int) -> None:
    """Serve the page until it is interrupted."""
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        show_error=True,
        max_file_size=f"{max_megabytes}mb",
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        css=CSS,
        head=HEAD,
        theme=theme(),
        app_kwargs={"middleware": [Middleware(LocalOnly)]},
    )


def _readiness(studio: Studio) -> Callable[[], Iterator[str]]:
    """Says what the model does until it is ready."""

    def show() -> Iterator[str]:
        before = ""
        while not studio.ready:
            if studio.stage != before:
                before = studio.stage
                yield status_line(before)
            time.sleep(0.2)
        yield error_line(studio.error) if studio.error else status_line("")

    return show


def _leave(studio: Studio) -> Callable[[gr.Request], None]:
    """A closed tab stops its work."""

    def leave(request: gr.Request) -> None:
        studio.jobs.stop(session_of(request))

    return leave
