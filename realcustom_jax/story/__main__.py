"""Generate a story: `python -m realcustom_jax.story story.json --out runs/story`.

story.json holds scenes whose prompts name characters:
  {"characters": ["mika", "bolt"], "style": "watercolour", "seed": 7,
   "scenes": ["Mika on the beach", {"prompt": "Mika and Bolt in the snow", "seed": 3}]}
Each character is a folder beside it, with a character.json:
  {"name": "Mika", "word": "cat", "description": "a round orange cat", "images": ["mika.png"],
   "face": [20, 10, 44, 30], "face_strength": 1.0, "body_strength": 0.8}

--out is a folder, or a zip, with the images, a contact sheet, a PDF, and a story.json that gives the same
pixels again. Scenes that have an image keep it; --again makes all of them, --reroll N one with another seed.
"""

import argparse
from pathlib import Path

from realcustom_jax.common.cli import CommandParser, run_command
from realcustom_jax.common.errors import UserError
from realcustom_jax.generate import plan
from realcustom_jax.options import add_option_flags, given_options
from realcustom_jax.pipeline import load_model, model_settings
from realcustom_jax.story.story import Story
from realcustom_jax.weights.flags import add_model_flags, use_recorded_model


def main() -> None:
    args = _parser().parse_args()
    story = Story.load(args.story)
    story.options |= given_options(args)
    use_recorded_model(args, story.model)
    if not story.pages:
        raise UserError(f"{args.story} has no scenes")
    # Loading a large model takes minutes, so all checks come before it.
    models, schedule, defaults = model_settings(args)
    for number in range(len(story.pages)):
        plan(models, schedule, defaults, story.options_of(number), [story.request(number)])
    reroll = [number - 1 for number in args.reroll]
    for number in reroll:
        if not 0 <= number < len(story.pages):
            raise UserError(f"--reroll {number + 1}: the story has scenes 1 to {len(story.pages)}")
    pipe = load_model(args)
    for number in reroll:
        story.reroll(pipe, number)
    story.generate(pipe, again=args.again)
    print(story.save(args.out or Path(args.story).with_suffix("")))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("story", __doc__, "%(prog)s STORY [--out FOLDER] [options]")
    parser.add_argument("story", metavar="STORY", help="story.json, or the folder or zip of a story")
    parser.add_argument(
        "--out", metavar="FOLDER", help="folder or FILE.zip (the name of STORY without .json)"
    )
    parser.add_argument("--again", action="store_true", help="make all images again, to the same pixels")
    parser.add_argument(
        "--reroll",
        type=int,
        nargs="+",
        default=[],
        metavar="N",
        help="scenes, from 1, to make with another seed",
    )
    add_model_flags(parser)
    add_option_flags(parser)
    return parser


if __name__ == "__main__":
    run_command(main)
