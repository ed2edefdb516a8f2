"""The command `python -m realcustom_jax.toybox.demo`: customize held-out subjects and lay the result out."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import realcustom_jax as rc
from realcustom_jax.common.cli import CommandParser, run_command
from realcustom_jax.common.errors import UserError
from realcustom_jax.pipeline import add_precision_flags
from realcustom_jax.toybox.captions import describe, prompt
from realcustom_jax.toybox.demo_sheet import Picture, Row, demo_sheet, enlarge, steps_shown
from realcustom_jax.toybox.palette import Identity
from realcustom_jax.toybox.scenes import example_identity, render_reference

STORY = """\
Shows what customization does. Subjects that no training saw, each known from one reference photo, are put
into new places: first from the text alone, then with the subject, from the same noise.

Writes into --out: reference_*.png, text_only_*.png, customized_*.png, masks/*.png (where the subject may act,
step by step) and demo.png, all of it on one labelled sheet.

  python -m realcustom_jax.toybox.demo --model toybox --out runs/demo
"""

# Some words that the shipped model draws recognisably; not all are yet.
BIRD, BALLOON, CUP, BOAT = map(example_identity, ("bird", "balloon", "cup", "boat"))

# What the sheet shows, row by row: the subjects and the places they are put into.
PLAN: tuple[tuple[tuple[Identity, ...], tuple[str, ...]], ...] = (
    ((BIRD,), ("snow", "beach")),
    ((BALLOON,), ("mountains", "desert")),
    ((CUP,), ("desert", "meadow")),
    ((BOAT,), ("water", "sunset")),
    ((BALLOON, BOAT), ("sunset",)),
)
# The row of `PLAN` whose first image is shown with its masks.
MASKS_OF_ROW = 1


def sample_rows(sample: Callable[..., Any], seed: int) -> list[Row]:
    """Samples `PLAN`, everything without subjects in one call and everything with them in another.

    Args:
      sample: `realcustom_jax.sample` with its pipeline already given.
      seed: of the noise. An image and its text-only counterpart begin with the same noise.
    """
    shown = [(identities, place) for identities, places in PLAN for place in places]
    prompts = [prompt([i.word for i in identities], place) for identities, place in shown]
    seeds = [seed + k for k in range(len(shown))]
    subjects = [
        [rc.Subject(image=_reference(i), words=i.word) for i in identities] for identities, _ in shown
    ]
    plain = sample(prompts, seed=seeds)
    custom = sample(prompts, subjects=subjects, seed=seeds)
    pictures = iter(
        Picture(
            name="_".join([*(i.word for i in identities), place]),
            prompt=prompts[k],
            text_only=np.asarray(plain.images[k]),
            customized=np.asarray(custom.images[k]),
            # The call has room for two subjects in every request; rows with one use the first place.
            masks=np.asarray(custom.masks[k])[:, : len(identities)],
        )
        for k, (identities, place) in enumerate(shown)
    )
    return [
        Row(
            words=tuple(i.word for i in identities),
            references=tuple(np.asarray(_reference(i)) for i in identities),
            descriptions=tuple(describe(i) for i in identities),
            pictures=tuple(next(pictures) for _ in places),
            show_masks=k == MASKS_OF_ROW,
        )
        for k, (identities, places) in enumerate(PLAN)
    ]


def _reference(identity: Identity) -> Image.Image:
    return Image.fromarray(render_reference(identity).image)


def write_images(rows: Sequence[Row], out: Path) -> Path:
    """Writes every image and the sheet; returns the path of the sheet."""
    (out / "masks").mkdir(parents=True, exist_ok=True)
    for path, image in _files(rows):
        Image.fromarray(image).save(out / path)
    sheet = out / "demo.png"
    demo_sheet(rows).save(sheet)
    return sheet


def _files(rows: Sequence[Row]) -> Iterator[tuple[str, np.ndarray]]:
    for row in rows:
        for word, reference in zip(row.words, row.references, strict=True):
            yield f"reference_{word}.png", reference
        for picture in row.pictures:
            yield f"text_only_{picture.name}.png", picture.text_only
            yield f"customized_{picture.name}.png", picture.customized
            side = picture.customized.shape[0]
            for step in steps_shown(len(picture.masks)):
                for word, mask in zip(row.words, picture.masks[step], strict=True):
                    pixels = np.round(np.clip(mask, 0, 1) * 255).astype(np.uint8)
                    grey = np.asarray(enlarge(pixels, side))
                    yield f"masks/{picture.name}_{word}_step_{step + 1:02d}.png", grey


def main() -> None:
    """Parses the command line, samples and writes the sheet."""
    parser = CommandParser("toybox.demo", STORY)
    parser.add_argument(
        "--model",
        required=True,
        metavar="FOLDER",
        help="model folder of a toybox model, or toybox: the shipped one",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the pictures")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (%(default)s)")
    add_precision_flags(parser)
    options = parser.parse_args()
    if options.seed < 0:
        raise UserError(f"--seed must be 0 or more, got {options.seed}")
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {str(options.out)!r} is a file, it must be a folder")

    pipe = rc.load(options.model, options.dtype, vae_dtype=options.vae_dtype)
    count = sum(len(places) for _, places in PLAN)
    print(f"sampling {count} images from text alone and {count} with subjects …", flush=True)
    begin = time.monotonic()
    rows = sample_rows(partial(rc.sample, pipe), options.seed)
    seconds = time.monotonic() - begin
    sheet = write_images(rows, options.out)
    print(f"sampled in {seconds:.0f} s, compilation included\nthe picture is {sheet}", flush=True)


if __name__ == "__main__":
    run_command(main)
