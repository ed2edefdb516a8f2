"""The command `python -m realcustom_jax.toybox`: draw the toybox data set."""

from realcustom_jax.common.errors import exit_on_user_error

STORY = """\
Draws the toybox, a small world of real words (cat, robot, mushroom, …) in which code draws every scene. There
are endlessly many different cats, so "cat" can be narrowed to one of them, and every mask is known exactly.

Writes images with captions as an image_text data set, which the train command reads. The subjects of
the validation split never appear in the training split. The default counts take about a minute on a laptop.

  python -m realcustom_jax.toybox --data-dir data/toybox
"""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: write the data set."""
    # Imported here, because every drawing process imports this file and needs neither JAX nor TFDS.
    from realcustom_jax.common.cli import CommandParser

    with exit_on_user_error():
        parser = CommandParser("toybox", STORY)
        parser.add_argument("--data-dir", required=True, metavar="DIR", help="folder for the data set")
        parser.add_argument(
            "--train", type=int, default=20000, metavar="N", help="training scenes (%(default)s)"
        )
        parser.add_argument(
            "--validation",
            type=int,
            default=500,
            metavar="M",
            help="scenes of held-out subjects (%(default)s)",
        )
        parser.add_argument(
            "--seed", type=int, default=0, metavar="S", help="seed of all scenes (%(default)s)"
        )
        parser.add_argument(
            "--size", type=int, default=64, metavar="PIXELS", help="side of the images (%(default)s)"
        )
        options = parser.parse_args(arguments)
        from realcustom_jax.toybox.dataset import write_dataset  # slow to import, so --help stays fast

        write_dataset(
            options.data_dir,
            train=options.train,
            validation=options.validation,
            seed=options.seed,
            size=options.size,
        )
        print(f"wrote {options.train} + {options.validation} scenes to {options.data_dir}")


if __name__ == "__main__":
    main()
