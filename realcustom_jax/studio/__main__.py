"""Serve a page that creates images, makes stories and shows how the method works.

  python -m realcustom_jax.studio --model toybox --port 7860

The page answers on this machine alone, unless --host says otherwise. It loads nothing from other hosts.
All files, uploads included, are below --out. The same functions answer over HTTP, see docs/studio.md.
"""

import argparse
import gc
import importlib.util
import os
import tempfile
from pathlib import Path

from realcustom_jax.common.cli import CommandParser, run_command
from realcustom_jax.common.errors import UserError
from realcustom_jax.common.rules import Rule
from realcustom_jax.weights.flags import add_model_flags

_PORT = Rule("", int, 1, 65535)
_UPLOAD = Rule("", int, 1, 4096)


def main() -> None:
    args = _parser().parse_args()
    _PORT.check("--port", args.port)
    _UPLOAD.check("--max-upload", args.max_upload)
    if importlib.util.find_spec("gradio") is None:
        raise UserError('the studio needs Gradio: pip install "realcustom_jax[studio]"')
    args.model = args.model or "toybox"
    if args.share_nothing:
        with tempfile.TemporaryDirectory(prefix="realcustom_studio_") as folder:
            serve(args, Path(folder))
    else:
        serve(args, Path(args.out))


def serve(args: argparse.Namespace, folder: Path) -> None:
    """Load the model in the background, and serve the page."""
    # Imports and tracing make a million objects that stay. Searching them for garbage takes a second of the
    # seven until the page opens.
    gc.disable()
    # Gradio reads these when it is imported.
    os.environ["GRADIO_TEMP_DIR"] = str(folder.resolve())
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # transformers 4 reads this one. Without it, it imports PyTorch, if installed, which takes 1.5 seconds.
    os.environ.setdefault("USE_TORCH", "0")
    from realcustom_jax.pipeline import load_model, model_settings
    from realcustom_jax.studio.studio import Studio

    _, _, defaults = model_settings(args)  # errors come before the page
    studio = Studio(
        lambda: load_model(args, matcher=args.matcher),
        defaults,
        folder.resolve(),
        toy=args.model == "toybox",
    )
    studio.start()
    # Importing Gradio takes seconds, and Python runs one thread at a time, except while XLA compiles. The
    # toybox compiles within seconds; larger models are still loading when the page opens.
    if studio.toy:
        studio.wait_for_compiler()
    from realcustom_jax.studio.page import build_page, launch

    page = build_page(studio)
    gc.freeze()  # later searches skip what exists now
    gc.enable()
    print(f"http://{args.host}:{args.port}", flush=True)
    launch(page, args.host, args.port, args.max_upload)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("studio", __doc__)
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to bind (%(default)s)"
    )
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="port (%(default)s)")
    parser.add_argument(
        "--out", default="runs/studio", metavar="FOLDER", help="folder for all files (%(default)s)"
    )
    parser.add_argument(
        "--share-nothing",
        action="store_true",
        help="keep no files: use a temporary folder instead of --out, which is removed at the end",
    )
    parser.add_argument(
        "--max-upload", type=int, default=20, metavar="MB", help="largest upload in megabytes (%(default)s)"
    )
    parser.add_argument(
        "--matcher", metavar="FOLDER", help="CLIP model that finds the words of pictures, as in sample"
    )
    add_model_flags(parser)
    return parser


if __name__ == "__main__":
    run_command(main)
