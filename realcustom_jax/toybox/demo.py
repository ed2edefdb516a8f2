"""The command `python -m realcustom_jax.toybox.demo`: customize held-out subjects, and show them."""

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
from realcustom_jax.toybox.backgrounds import BACKGROUNDS
from realcustom_jax.toybox.captions import describe, prompt
from realcustom_jax.toybox.demo_sheet import Picture, Row, demo_sheet, enlarge, steps_shown
from realcustom_jax.toybox.palette import WORDS, Identity
from realcustom_jax.toybox.scenes import FIRST_HELD_OUT, render_reference
from realcustom_jax.weights.flags import add_precision_flags

STORY = """\
Shows the effect of customization. Subjects that no training has seen, each given by one reference photo, are
put on new backgrounds: first from the text alone, then with the subject, from the same noise.

Writes into --out: reference_*.png, text_only_*.png, customized_*.png, masks/*.png (the influence scope of
each step) and demo.png, which shows everything on one labelled sheet.

  python -m realcustom_jax.toybox.demo --model toybox --out runs/demo
"""

# A rule, so that nobody chooses what looks best: the first held-out subject of every fourth word.
SUBJECTS = tuple(Identity(word, FIRST_HELD_OUT) for word in WORDS[::4])

# The rows of the sheet: (subjects, backgrounds). The backgrounds follow in their order; the last row has the
# first and the last subject together.
PLAN: tuple[tuple[tuple[Identity, ...], tuple[str, ...]], ...] = (
    *(((identity,), BACKGROUNDS[2 * k : 2 * k + 2]) for k, identity in enumerate(SUBJECTS)),
    ((SUBJECTS[0], SUBJECTS[-1]), BACKGROUNDS[2 * len(SUBJECTS) : 2 * len(SUBJECTS) + 1]),
)
# Index of the row in `PLAN` that is shown with its masks.
MASKS_OF_ROW = 1


def sample_rows(sample: Callable[..., Any], seed: int) -> list[Row]:
    """Sample the images of `PLAN`, in one call without subjects and one call with them.

    Args:
      sample: `realcustom_jax.sample` with its pipeline bound.
      seed: seed of the noise. An image and its text-only counterpart start from the same noise.
    """
    shown = [(identities, place) for identities, places in PLAN for place in places]
    prompts = [prompt([i.word for i in identities], place) for identities, place in shown]
    seeds = [seed + k for k in range(len(shown))]
    subjects = [
        [rc.Subject(image=_reference(i), words=i.word) for i in identities] for identities, _ in shown
    ]
    # Two calls, because a call with subjects compiles another program than one without.
    plain = sample(prompts, seed=seeds)
    custom = sample(prompts, subjects=subjects, seed=seeds)
    pictures = iter(
        Picture(
            name="_".join([*(i.word for i in identities), place]),
            prompt=prompts[k],
            text_only=np.asarray(plain.images[k]),
            customized=np.asarray(custom.images[k]),
            # All requests of a call have the same number of subject slots. One subject uses the first slot.
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
    """Write every image and the sheet; return the path of the sheet."""
    (out / "masks").mkdir(parents=True, exist_ok=True)
    for path, image in _files(rows):
        Image.fromarray(image).save(out / path)
    sheet = out / "demo.png"
    demo_sheet(rows).save(sheet)
    return sheet


def _files(rows: Sequence[Row]) -> Iterator[tuple[str, np.ndarray]]:
    """(path, image) of every file except the sheet."""
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
    """Run the command line: sample and write the sheet."""
    parser = CommandParser("toybox.demo", STORY)
    parser.add_argument(
        "--model",
        required=True,
        metavar="FOLDER",
        help="folder of a toybox model, or toybox for the shipped one",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the images")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the noise (%(default)s)")
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
