"""How strong should guidance be, in which steps, and where? `python studies/guidance.py
[--requests 104] [--weights 3,6 5,14] [--intervals 0,1 0,0.64] [--scopes image mask] [--held-out]`

Runs the toybox benchmark for each combination of a pair of weights (ω_t for text, ω_i for the image, eq. 13),
an interval of the steps (`guidance_start`, `guidance_stop`; outside it both weights are 1), and a scope of
ω_i (`guidance_scope`: the whole image, or only the mask).

Subjects are not held out, so a choice made here does not bias the results on held-out subjects. Leakage
compares with text-only images of the same guidance. log(1 + rank) uses the rank of the true subject among 20
(0 is best); it separates weights that identity top-1 does not. Brackets hold the bootstrap 95 % interval over
requests.
"""

import argparse
import itertools

import numpy as np
from toybox_flags import flags

import realcustom_jax as rc
from realcustom_jax.common.cli import run_command
from realcustom_jax.diffusion.guidance import SCOPES
from realcustom_jax.evaluation.judge import Judge
from realcustom_jax.evaluation.tables import cell
from realcustom_jax.evaluation.toybox import Benchmark, Setting, make_cases
from realcustom_jax.generate import Generator
from realcustom_jax.inputs.sizes import latent_size

SHOWN = ("identity_top1", "word_top1", "background_top1", "leakage")


def main() -> None:
    args = _parse()
    generator = Generator(rc.load(args.model), args.batch)
    benchmark = Benchmark(make_cases(args.requests, args.held_out), Judge.load(), None)
    defaults = generator.pipe.defaults
    weights = args.weights or [(defaults.text_weight, defaults.image_weight)]
    intervals = args.intervals or [(defaults.guidance_start, defaults.guidance_stop)]
    scopes = args.scopes or [defaults.guidance_scope]
    size = latent_size(generator.pipe.models, None, None)
    combinations = [
        {"text_weight": text, "guidance_start": start, "guidance_stop": stop}
        | {"image_weight": image, "guidance_scope": scope}
        for (text, image), (start, stop), scope in itertools.product(weights, intervals, scopes)
    ]
    for options in combinations:  # reject invalid options before making any image
        defaults.changed(options).sampler_config(*size)
    head = f"{'ω_t  ω_i  steps        scope':32}"
    print(head + "".join(f"{name:>24}" for name in (*SHOWN, "log(1 + rank)")))
    plain = {}  # text-only images; they do not depend on ω_i and its scope
    for options in combinations:
        text, start, stop, image, scope = options.values()
        if (text, start, stop) not in plain:
            plain[text, start, stop], _ = benchmark.make(generator, Setting(options, subject=False))
        images, masks = benchmark.make(generator, Setting(options))
        results = benchmark.measure(images, masks, plain[text, start, stop])
        cells = [*(cell(results[name]) for name in SHOWN), cell(np.log1p(benchmark.ranks(images)))]
        name = f"{text:<5g}{image:<5g}{f'{start:.0%} to {stop:.0%}':13}{scope}"
        print(f"{name:32}" + "".join(f"{shown:>24}" for shown in cells), flush=True)


def _parse() -> argparse.Namespace:
    parser = flags(__doc__, 104, plots=False)
    many = {"type": _pair, "nargs": "+", "metavar": "A,B"}
    parser.add_argument("--weights", help="pairs ω_t,ω_i (default: the model's)", **many)
    parser.add_argument(
        "--intervals", help="pairs start,stop, as shares of the steps (default: the model's)", **many
    )
    parser.add_argument("--scopes", help="scopes of ω_i (default: the model's)", nargs="+", choices=SCOPES)
    parser.add_argument(
        "--held-out", action="store_true", help="use the held-out subjects, as in the published results"
    )
    return parser.parse_args()


def _pair(text: str) -> tuple[float, float]:
    try:
        first, second = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers as in 3,6") from None
    return first, second


if __name__ == "__main__":
    run_command(main)
