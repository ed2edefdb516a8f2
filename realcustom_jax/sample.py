"""Generate images: `python -m realcustom_jax.sample --prompt "a dog on the beach" --subject dog=photo.png`.

Each --subject WORDS=IMAGE says which words of the prompt are narrowed to which reference image; give several
for several subjects, none for text alone. "dog|puppy" are two words of one subject, and --subject IMAGE takes
the word that the image shows (SD1.5 and SDXL need a CLIP that tells it: --matcher). --mask and --strength
name a subject by its number, from 1: the first is
  --subject dog=photo.png --mask 1=mask.png --strength 1=0.5
Several seeds make several images. Images go to --out as image_SEED.png, the influence scope of every subject
at every step beside them with --masks.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from realcustom_jax.cli import CommandParser, run_command
from realcustom_jax.data.transforms import load_image
from realcustom_jax.data.user_masks import load_mask
from realcustom_jax.errors import UserError
from realcustom_jax.files import make_folder
from realcustom_jax.option_flags import add_option_flags, given_options
from realcustom_jax.pipeline import load
from realcustom_jax.prompts import text_or_file
from realcustom_jax.sampling import SEED, Samples, sample
from realcustom_jax.subjects import AUTO, MASK_MODES, STRENGTH, Subject


def main() -> None:
    args = _parser().parse_args()
    options = given_options(args)
    subjects = _subjects(args)
    for seed in args.seed:
        SEED.check("--seed", seed)
    repeated = [seed for i, seed in enumerate(args.seed) if seed in args.seed[:i]]
    if repeated:
        raise UserError(f"--seed {repeated[0]} is given twice, but it makes one image")
    # Loading a large model takes minutes, so what can fail before should.
    out = Path(args.out)
    make_folder(out, "--out")
    pipe = load(args.model, matcher=args.matcher, tokenizers=args.tokenizer)
    samples = sample(
        pipe,
        [args.prompt] * len(args.seed),
        subjects=[subjects] * len(args.seed),
        seed=args.seed,
        negative_prompt=text_or_file("--negative-prompt", args.negative_prompt),
        **options,
    )
    for number, (subject, words) in enumerate(zip(subjects, samples.words[0], strict=True), 1):
        if subject.words == AUTO:
            print(f"subject {number} is '{', '.join(words)}'")
    write(samples, args.seed, out, args.masks)


def write(samples: Samples, seeds: list[int], out: Path, masks: bool) -> None:
    """Images as image_SEED.png; masks as image_SEED_mask_SUBJECT.png, the steps from left to right."""
    for i, seed in enumerate(seeds):
        path = out / f"image_{seed}.png"
        _save(samples.images[i], path)
        print(path)
        if masks:
            for r in range(samples.masks.shape[2]):
                strip = np.concatenate(list(samples.masks[i, :, r]), axis=1)
                strip = np.round(np.clip(strip, 0.0, 1.0) * 255.0).astype(np.uint8)
                _save(strip, out / f"image_{seed}_mask_{r}.png")


def _save(image: np.ndarray, path: Path) -> None:
    try:
        Image.fromarray(image).save(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


def _subjects(args: argparse.Namespace) -> list[Subject]:
    """The subjects with their masks and strengths, all files read."""
    count = len(args.subject)
    masks, strengths = _by_number("--mask", args.mask, count), _by_number("--strength", args.strength, count)
    return [
        Subject(
            *_image_and_words(text),
            mask=load_mask(masks[n]) if n in masks else None,
            mask_mode=args.mask_mode if n in masks else MASK_MODES[0],
            strength=_number(f"--strength {n}", strengths.get(n, "1")),
            plurals=args.plurals,
            match_case=args.match_case,
        )
        for n, text in enumerate(args.subject, 1)
    ]


def _image_and_words(text: str) -> tuple[np.ndarray, str | tuple[str, ...]]:
    """WORDS=IMAGE, several phrases separated by |, or IMAGE alone."""
    words, equals, image = text.partition("=")
    if not equals and Path(text).is_file():
        return load_image(text), AUTO
    if not (equals and words and image):
        raise UserError(f"--subject {text!r} must be WORDS=IMAGE, such as dog=photo.png, or an IMAGE")
    return load_image(image), AUTO if words == AUTO else tuple(words.split("|"))


def _by_number(flag: str, texts: list[str], count: int) -> dict[int, str]:
    """{number of the subject: value} of N=VALUE."""
    values = {}
    for text in texts:
        number, _, value = text.partition("=")
        if not (number.isdecimal() and value):
            raise UserError(f"{flag} {text!r} must be N=VALUE, with the number of a subject from 1")
        if not 1 <= int(number) <= count:
            raise UserError(f"{flag} {text!r} is of subject {number}, but there are {count}")
        if int(number) in values:
            raise UserError(f"{flag} is given twice for subject {number}")
        values[int(number)] = value
    return values


def _number(name: str, text: str) -> float:
    try:
        return STRENGTH.check(name, float(text))
    except UserError:
        raise
    except ValueError:
        raise UserError(f"{name} must be a number, not {text!r}") from None


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("sample", __doc__, "%(prog)s --prompt TEXT [--subject WORDS=IMAGE …] [options]")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what the image shows")
    parser.add_argument(
        "--subject", action="append", default=[], metavar="WORDS=IMAGE", help="may be given several times"
    )
    for name, value, text in (
        ("--mask", "IMAGE", "where subject N may act: white"),
        ("--strength", "NUMBER", "how much subject N acts (1)"),
    ):
        parser.add_argument(name, action="append", default=[], metavar=f"N={value}", help=text)
    parser.add_argument(
        "--mask-mode", choices=MASK_MODES, default=MASK_MODES[0],
        help="given masks stand instead of the guided ones, or intersect with them (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--plurals", action="store_true", help="find dog in dogs, and dogs in dog")
    parser.add_argument("--match-case", action="store_true", help="Dog is another word than dog")
    parser.add_argument(
        "--negative-prompt", default="", metavar="TEXT", help="what it should not show, or @FILE"
    )
    parser.add_argument("--seed", type=int, nargs="+", default=[0], metavar="N", help=SEED.help)
    parser.add_argument(
        "--model", default="toybox", metavar="MODEL", help="model folder or file, hub id, or toybox (default)"
    )
    parser.add_argument(
        "--matcher", metavar="FOLDER", help="whole CLIP that finds the word of --subject IMAGE; or hub id"
    )
    parser.add_argument(
        "--tokenizer", action="append", default=[], metavar="FOLDER",
        help="of a one-file checkpoint, for each text encoder; default those on the hub",
    )  # fmt: skip
    parser.add_argument("--out", default="samples", metavar="FOLDER", help="for the images (%(default)s)")
    parser.add_argument("--masks", action="store_true", help="also write the masks")
    add_option_flags(parser)
    return parser


if __name__ == "__main__":
    run_command(main)
