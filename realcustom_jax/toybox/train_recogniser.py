"""The command `python -m realcustom_jax.toybox.train_recogniser`, which trained the toybox's recogniser."""

import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from realcustom_jax.common.cli import CommandParser, run_command
from realcustom_jax.common.errors import UserError
from realcustom_jax.common.pixels import to_signed
from realcustom_jax.inputs.recogniser import WordRecogniser, recogniser_shapes
from realcustom_jax.models.init import init_params
from realcustom_jax.models.recogniser import Recogniser, RecogniserConfig
from realcustom_jax.toybox.augment import soften
from realcustom_jax.toybox.palette import WORDS
from realcustom_jax.toybox.recogniser_data import SIZE, load_or_draw

STORY = """\
Trains the small network that names what a reference shows, for subjects with the words "auto". It learns the
toybox's words from drawn images, and "none of them" from backgrounds, shapes, letters, noise and mixed-up
subjects. It never sees a held-out identity. Images are blurred and disturbed, so that it also reads generated
ones.

--out gets the drawn images and the model: config.json and model.safetensors, which go into a model's folder
as matcher/.

  python -m realcustom_jax.toybox.train_recogniser --out runs/recogniser
"""

REPORT_EVERY = 50


def main() -> None:
    """Run the command line."""
    parser = CommandParser("toybox.train_recogniser", STORY)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument("--steps", type=int, default=1500, metavar="N", help="training steps (%(default)s)")
    parser.add_argument("--images", type=int, default=48000, metavar="N", help="drawn images (%(default)s)")
    parser.add_argument("--batch", type=int, default=96, metavar="N", help="images per step (%(default)s)")
    parser.add_argument(
        "--learning-rate", type=float, default=3e-3, metavar="NUMBER", help="peak learning rate (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (%(default)s)")
    args = parser.parse_args()
    if min(args.steps, args.batch) < 1 or args.images < args.batch or args.seed < 0:
        raise UserError("--steps and --batch must be 1 or more, --images --batch or more, --seed 0 or more")
    path = args.out / f"images_{args.images}_{args.seed}.npz"
    images, labels = load_or_draw(path, args.images, args.seed)
    train(images, labels, args.steps, args.batch, args.learning_rate, args.seed).save(args.out)


def train(
    images: np.ndarray, labels: np.ndarray, steps: int, batch: int, learning_rate: float, seed: int
) -> WordRecogniser:
    """Train on images uint8 (N, 64, 64, 3) and labels (N,); see `recogniser_data.load_or_draw`."""
    config = RecogniserConfig(WORDS, SIZE)
    warmup = min(100, steps // 2)
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=2e-2))
    params = jax.tree.map(jnp.asarray, init_params(recogniser_shapes(config), seed))
    state = optimizer.init(params)
    begin = time.monotonic()
    for step in range(1, steps + 1):
        rows = np.random.default_rng([seed, step]).integers(len(images), size=batch)
        key = jax.random.key(seed * 1_000_003 + step)
        params, state, metrics = _step(config, optimizer, params, state, images[rows], labels[rows], key)
        if step % REPORT_EVERY == 0 or step == steps:
            values = {name: round(float(value), 4) for name, value in metrics.items()}
            print(
                json.dumps({"step": step, "seconds": round(time.monotonic() - begin), **values}), flush=True
            )
    return WordRecogniser(config, params)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def _step(
    config: RecogniserConfig,
    optimizer: Any,
    params: Any,
    state: Any,
    images: Array,
    labels: Array,
    key: Array,
) -> tuple[Any, Any, dict[str, Array]]:
    def loss(params: Any) -> tuple[Array, Array]:
        logits: Any = Recogniser(config).apply({"params": params}, soften(to_signed(images), key))
        # Smoothed labels keep the probabilities calibrated.
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), 0.02)
        return optax.softmax_cross_entropy(logits, targets).mean(), (logits.argmax(-1) == labels).mean()

    (value, right), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    with jax.numpy_dtype_promotion("standard"):  # optax computes floats from integer counts
        updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, {"loss": value, "right": right}


if __name__ == "__main__":
    run_command(main)
