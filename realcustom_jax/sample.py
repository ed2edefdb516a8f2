"""Generate images: `python -m realcustom_jax.sample --prompt "a dog on the beach" --subject dog=photo.png`.

Each --subject WORDS=IMAGE gives the reference image for words of the prompt. Repeat it for several subjects;
omit it for text only.
  dog=photo.png            one word and one photo
  "dog|puppy=photo.png"    two words of one subject
  dog#2=photo.png          only the second "dog" of the prompt
  dog=front.png,side.png   two photos of one subject
  photo.png                finds the word that the image shows, and writes it into a prompt that lacks it
                           (SD1.5 and SDXL need a CLIP: --matcher)
--mask, --strength, --face, --face-strength and --body-strength name a subject by its number, from 1:
  --subject dog=photo.png --mask 1=mask.png --strength 1=0.5
  --subject man=photo.png --face 1=auto --face-strength 1=1.2 --body-strength 1=0.6
--face takes a box LEFT,TOP,RIGHT,BOTTOM in pixels of the photo, or "auto" to find the face. For several
photos the boxes are separated by |.

Several seeds make several images. They are written to --out as image_SEED.png. --masks also writes the
influence scope of each subject at each step. The files contain all settings and reference images:
  --from samples/image_0.png
reproduces an image, or makes a variation if other flags are given too.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from realcustom_jax.common.cli import CommandParser, run_command
from realcustom_jax.common.errors import UserError, warn
from realcustom_jax.common.files import exists, make_folder
from realcustom_jax.generate import plan, sample
from realcustom_jax.inputs.checks import still_used
from realcustom_jax.inputs.face_detection import find_face
from realcustom_jax.inputs.prompts import text_or_file, texts_of
from realcustom_jax.inputs.requests import SEED, Request
from realcustom_jax.inputs.subjects import AUTO, MASK_MODES, STRENGTH, STRENGTHS, Box, Subject
from realcustom_jax.inputs.target_words import find_phrase, phrases_of
from realcustom_jax.inputs.transforms import load_image
from realcustom_jax.inputs.user_masks import load_mask
from realcustom_jax.options import SamplingOptions, add_option_flags, given_options
from realcustom_jax.outputs.records import Record, read_record
from realcustom_jax.pipeline import load_model, model_settings
from realcustom_jax.weights.flags import add_model_flags, use_recorded_model


def main() -> None:
    args = _parser().parse_args()
    given = given_options(args)
    request = _request(args)
    seeds = _seeds(args.seed or [request.seed])
    # Loading a large model takes minutes, so all checks come before it.
    out = Path(args.out)
    make_folder(out, "--out")
    use_recorded_model(args, request.model)
    models, schedule, defaults = model_settings(args)
    # Flags override the record, which overrides the model's defaults.
    recorded = _changes(request.options, defaults)
    options = {**still_used(recorded, given, defaults), **given}
    requests = [Request(request.prompt, request.subjects, seed) for seed in seeds]
    plan(models, schedule, defaults, options, requests)
    pipe = load_model(args, matcher=args.matcher)
    samples = sample(
        pipe, request.prompt, request.subjects, seeds, negative_prompt=request.negative_prompt, **options
    )
    # Show the choice for "auto", so that the user can correct it.
    for number, (subject, words) in enumerate(zip(request.subjects, samples.words[0], strict=True), 1):
        if subject.words == AUTO:
            print(f"subject {number} is '{', '.join(words)}'")
    if samples.prompts[0] != request.prompt:
        print(f"the prompt is '{samples.prompts[0]}'")
    for path in samples.save(out, args.masks):
        print(path)


def _request(args: argparse.Namespace) -> Record:
    """The request: the record of --from, or an empty one, changed by the flags."""
    if args.again is None:  # --prompt is required only then, which argparse cannot express
        record = Record("", "", 0, (), {})
        if args.prompt is None:
            raise UserError("the following arguments are required: --prompt, see --help")
    else:
        record = read_record(args.again)
    prompt = record.prompt if args.prompt is None else args.prompt
    negative = record.negative_prompt
    if args.negative_prompt is not None:
        negative = text_or_file("--negative-prompt", args.negative_prompt)
    texts_of("--prompt", prompt)
    texts_of("--negative-prompt", negative)
    subjects = _subjects(args, record.subjects)
    # Check that the target words are in the prompt. The tokens are checked later, by `sample`.
    for subject in subjects:
        if subject.words != AUTO:
            for phrase in phrases_of(prompt, subject.words):
                find_phrase(prompt, phrase, subject.plurals, subject.match_case)
    return dataclasses.replace(record, prompt=prompt, negative_prompt=negative, subjects=tuple(subjects))


def _seeds(seeds: list[int]) -> list[int]:
    """The seeds, checked: valid and different."""
    for seed in seeds:
        SEED.check("--seed", seed)
    repeated = [seed for i, seed in enumerate(seeds) if seed in seeds[:i]]
    if repeated:
        raise UserError(f"--seed {repeated[0]} is given twice, but each seed makes one image")
    return seeds


def _changes(options: Mapping[str, Any], defaults: SamplingOptions) -> dict[str, Any]:
    """The options of a record that differ from the model's defaults."""
    # The others are omitted: `check_has_effect` would report them if the flags make them useless.
    if not options:
        return {}
    checked = SamplingOptions(**options)
    return {
        name: getattr(checked, name) for name in options if getattr(checked, name) != getattr(defaults, name)
    }


def _subjects(args: argparse.Namespace, recorded: Sequence[Subject]) -> list[Subject]:
    """The subjects of --subject, or of --from, with masks and strengths. All files are read."""
    subjects = [
        Subject(images=photos, words=words) for photos, words in map(_photos_and_words, args.subject)
    ] or list(recorded)
    switches = {name: True for name in ("plurals", "match_case") if getattr(args, name)}
    if switches and not subjects:
        raise UserError(
            f"--{next(iter(switches)).replace('_', '-')} needs a --subject: it is about its words"
        )
    subjects = [dataclasses.replace(subject, **switches) for subject in subjects]
    if args.mask_mode and not args.mask:
        raise UserError("--mask-mode needs a --mask")
    for n, path in _by_number("--mask", args.mask, len(subjects)).items():
        subjects[n - 1] = dataclasses.replace(
            subjects[n - 1], mask=load_mask(path), mask_mode=args.mask_mode or MASK_MODES[0]
        )
    for n, text in _by_number("--face", args.face, len(subjects)).items():
        subjects[n - 1] = dataclasses.replace(subjects[n - 1], face=_face(n, text, subjects[n - 1]))
    for name in STRENGTHS:
        flag = f"--{name.replace('_', '-')}"
        for n, text in _by_number(flag, getattr(args, name), len(subjects)).items():
            strength = _number(f"{flag} {n}", text)
            if name == "face_strength" and not any(subjects[n - 1].faces):
                raise UserError(f"{flag} {n} needs the face of subject {n}: --face {n}=auto or a box")
            subjects[n - 1] = dataclasses.replace(subjects[n - 1], **{name: strength})
    return subjects


def _face(number: int, text: str, subject: Subject) -> list[Box | None]:
    """The value of --face: a box, "auto" or "none" for each photo, separated by |; one "auto" is for all."""
    texts = text.split("|")
    texts = texts * len(subject.photos) if texts == [AUTO] else texts
    if len(texts) != len(subject.photos):
        raise UserError(f"--face {number}={text} has {len(texts)} boxes for {len(subject.photos)} photos")
    boxes = []
    for one, photo in zip(texts, subject.photos, strict=True):
        if one == AUTO:
            boxes.append(find_face(photo))
            if boxes[-1] is None:
                warn(f"no face is found on a photo of subject {number}: --body-strength is for all of it")
        elif one == "none":
            boxes.append(None)
        else:
            boxes.append([_number(f"--face {number}", side) for side in one.split(",")])
    return boxes


def _photos_and_words(text: str) -> tuple[tuple[bytes, ...], str | tuple[str, ...]]:
    """Parse the value of --subject: WORDS=IMAGE or IMAGE, with words separated by | and images by commas.

    Returns:
      The content of the image files, and the words.
    """
    words, equals, images = text.partition("=")
    # A file name may contain "=", so the whole text is tried as a file first.
    if not equals and exists(text):
        words, images = AUTO, text
    elif not (equals and words and images):
        raise UserError(f"--subject {text!r} must be WORDS=IMAGE, such as dog=photo.png, or an IMAGE")
    # A file name may also contain a comma.
    paths = [images] if exists(images) else images.split(",")
    # One word stays a text, as in Python, so that the records and thus the files are the same.
    return tuple(map(_file, paths)), tuple(words.split("|")) if "|" in words else words


def _file(path: str) -> bytes:
    """The content of an image file, which the record of the images stores unchanged."""
    load_image(path)  # for its error messages
    return Path(path).read_bytes()


def _by_number(flag: str, texts: list[str], count: int) -> dict[int, str]:
    """Parse N=VALUE texts as {number of the subject: value}; `count` is the number of subjects."""
    values = {}
    for text in texts:
        number, _, value = text.partition("=")
        if not (number.isdecimal() and value):
            raise UserError(f"{flag} {text!r} must be N=VALUE, with the number of a subject from 1")
        if not 1 <= int(number) <= count:
            raise UserError(f"{flag} {text!r} is for subject {number}, but the number of subjects is {count}")
        if int(number) in values:
            raise UserError(f"{flag} is given twice for subject {number}")
        values[int(number)] = value
    return values


def _number(name: str, text: str) -> float:
    """The value of --strength."""
    try:
        return STRENGTH.check(name, float(text))
    except UserError:  # it is a ValueError too
        raise
    except ValueError:
        raise UserError(f"{name} must be a number, not {text!r}") from None


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("sample", __doc__, "%(prog)s --prompt TEXT [--subject WORDS=IMAGE …] [options]")
    # Defaults are None where --from must see which flags were given.
    parser.add_argument("--prompt", metavar="TEXT", help="description of the image")
    parser.add_argument(
        "--from", dest="again", metavar="IMAGE",
        help="reproduce an image of this command or of Samples.save; other flags override its settings",
    )  # fmt: skip
    parser.add_argument(
        "--subject", action="append", default=[], metavar="WORDS=IMAGE", help="repeat it for several subjects"
    )
    for name, value, text in (
        ("--mask", "IMAGE", "where subject N may act (white)"),
        ("--strength", "NUMBER", "strength of subject N (1)"),
        ("--face", "BOX", "the face of subject N: LEFT,TOP,RIGHT,BOTTOM in pixels, or auto"),
        ("--face-strength", "NUMBER", "weight of the face of subject N, its identity (1)"),
        ("--body-strength", "NUMBER", "weight of the rest of subject N (1)"),
    ):
        parser.add_argument(name, action="append", default=[], metavar=f"N={value}", help=text)
    parser.add_argument(
        "--mask-mode", choices=MASK_MODES,
        help=f"given masks replace the guided masks, or intersect with them ({MASK_MODES[0]})",
    )  # fmt: skip
    parser.add_argument("--plurals", action="store_true", help="dog also matches dogs, and dogs matches dog")
    parser.add_argument("--match-case", action="store_true", help="Dog and dog are different words")
    parser.add_argument(
        "--negative-prompt", metavar="TEXT", help="what the image should not show; @FILE reads a file"
    )
    parser.add_argument("--seed", type=int, nargs="+", metavar="N", help=f"{SEED.help} (0)")
    parser.add_argument(
        "--matcher",
        metavar="FOLDER",
        help="folder or hub id of a CLIP model, which finds the word of --subject IMAGE",
    )
    parser.add_argument(
        "--out", default="samples", metavar="FOLDER", help="folder for the images (%(default)s)"
    )
    parser.add_argument("--masks", action="store_true", help="also write each subject's mask as an image")
    add_model_flags(parser)
    add_option_flags(parser)
    return parser


if __name__ == "__main__":
    run_command(main)
