"""Generate images: `python -m realcustom_jax.sample --prompt "a dog on the beach" --subject dog=photo.png`.

Each --subject WORDS=IMAGE says which words of the prompt are narrowed to which reference image; give several
for several subjects, none for text alone. Several seeds make several images. Images go to --out as
image_SEED.png, the influence scope of every subject at every step beside them with --masks.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from realcustom_jax.cli import run_command
from realcustom_jax.errors import UserError
from realcustom_jax.pipeline import load
from realcustom_jax.sampling import Samples, Subject, sample

_NUMBERS = {
    "text_weight": "guidance weight ω_t of the text (ω of direct guidance)",
    "image_weight": "guidance weight ω_i of the subjects, for paper guidance",
    "gamma_scope": "share of the image where a subject may act, 0 to 1",
    "gamma_num": "share of the visual tokens that act, 0 to 1",
}


def main() -> None:
    args = _parser().parse_args()
    subjects = [_subject(text) for text in args.subject]
    names = [*_NUMBERS, "steps", "mask_steps", "solver", "guidance", "height", "width"]
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    pipe = load(args.model)
    samples = sample(
        pipe,
        [args.prompt] * len(args.seed),
        subjects=[subjects] * len(args.seed),
        seed=args.seed,
        negative_prompt=args.negative_prompt,
        **options,
    )
    write(samples, args.seed, Path(args.out), args.masks)


def write(samples: Samples, seeds: list[int], out: Path, masks: bool) -> None:
    """Images as image_SEED.png; masks as image_SEED_mask_SUBJECT.png, the steps from left to right."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made a folder: {error.strerror}") from None
    for i, seed in enumerate(seeds):
        path = out / f"image_{seed}.png"
        Image.fromarray(samples.images[i]).save(path)
        print(path)
        if masks:
            for r in range(samples.masks.shape[2]):
                strip = np.concatenate(list(samples.masks[i, :, r]), axis=1)
                strip = np.round(np.clip(strip, 0.0, 1.0) * 255.0).astype(np.uint8)
                Image.fromarray(strip).save(out / f"image_{seed}_mask_{r}.png")


def _subject(text: str) -> Subject:
    words, equals, image = text.partition("=")
    if not (equals and words and image):
        raise UserError(f"--subject {text!r} must be WORDS=IMAGE, such as dog=photo.png")
    return Subject(image=image, words=words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m realcustom_jax.sample",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="toybox", help="model folder, or 'toybox' (default)")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--negative-prompt", default="")
    parser.add_argument("--subject", action="append", default=[], metavar="WORDS=IMAGE")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--out", default="samples", help="folder for the images")
    parser.add_argument("--masks", action="store_true", help="also write the masks")
    for name, text in _NUMBERS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, help=text)
    parser.add_argument("--steps", type=int)
    parser.add_argument(
        "--mask-steps", type=int, help="steps with the guidance branch; later ones reuse its mask"
    )
    parser.add_argument("--solver", help="ddim, euler, dpmpp_2m or dpmpp_2s")
    parser.add_argument("--guidance", help="paper or direct")
    parser.add_argument("--height", type=int, help="in pixels")
    parser.add_argument("--width", type=int, help="in pixels")
    return parser


if __name__ == "__main__":
    run_command(main)
