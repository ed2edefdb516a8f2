"""The command `python -m realcustom_jax.evaluation.train_judge`, which trained the shipped judge."""

import functools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from realcustom_jax.common.cli import CommandParser, run_command
from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import make_folder, replacing
from realcustom_jax.evaluation.judge import Judge, JudgeNet, judge_shapes
from realcustom_jax.evaluation.judge_data import Pairs, load_or_draw
from realcustom_jax.models.init import init_params
from realcustom_jax.toybox import WORDS
from realcustom_jax.toybox.augment import soften

STORY = """\
Trains the judge of the toybox benchmark on drawn scenes with exact labels. It learns the word, the background
and the region of the subject (cross-entropy), and which of several identities of the word a scene shows
(InfoNCE between reference photos and subjects cut out of scenes). It never sees a held-out identity. Images
are blurred and disturbed, because the images of a VAE look like that.

An interrupted run resumes from its checkpoint when it is started again with the same --workdir. That folder
gets the drawn scenes, checkpoint.msgpack, metrics.jsonl and, at the end, model.safetensors.

  python -m realcustom_jax.evaluation.train_judge --workdir runs/judge
"""

IDENTITIES = 8  # identities of each word in a batch; the benchmark has 20
WORDS_AT_ONCE = 8
TEMPERATURE = 0.07
REPORT_EVERY = 20
SAVE_EVERY = 100

Batch = Mapping[str, np.ndarray]


def main() -> None:
    """Run the command line."""
    parser = CommandParser("evaluation.train_judge", STORY)
    parser.add_argument("--workdir", required=True, type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument("--steps", type=int, default=400, metavar="N", help="training steps (%(default)s)")
    parser.add_argument(
        "--identities", type=int, default=480, metavar="N", help="identities of each word (%(default)s)"
    )
    parser.add_argument(
        "--learning-rate", type=float, default=2e-3, metavar="NUMBER", help="peak learning rate (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (%(default)s)")
    args = parser.parse_args()
    if args.steps < 1 or args.identities < IDENTITIES or args.seed < 0:
        raise UserError(
            f"--steps must be 1 or more, --identities {IDENTITIES} or more and --seed 0 or more, not "
            f"{args.steps}, {args.identities} and {args.seed}"
        )
    path = args.workdir / f"scenes_{args.identities}_{args.seed}.npz"
    pairs = load_or_draw(path, args.identities, args.seed)
    train(pairs, args.workdir, args.steps, args.learning_rate, args.seed)


def train(pairs: Pairs, workdir: Path, steps: int, learning_rate: float, seed: int) -> Judge:
    """Train to the last step, from the checkpoint in `workdir` if there is one, and save the judge there."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, 50, max(steps, 51))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-2))
    params = jax.tree.map(jnp.asarray, init_params(judge_shapes(), seed))
    state = {"params": params, "optimizer": optimizer.init(params), "step": 0}
    checkpoint = workdir / "checkpoint.msgpack"
    if checkpoint.is_file():
        state = flax.serialization.from_bytes(state, checkpoint.read_bytes())
        print(f"resuming from step {state['step']} in {checkpoint}", flush=True)
    params, optimizer_state = state["params"], state["optimizer"]
    make_folder(workdir, "--workdir")
    # One readable loop: the judge trains for minutes on one device, so it needs no meshes or profiles.
    begin = time.monotonic()
    for step in range(int(state["step"]) + 1, steps + 1):
        # Batch and noise depend on (seed, step) alone, so a resumed run repeats them.
        batch = draw_batch(pairs, np.random.default_rng([seed, step]))
        key = jax.random.key(seed * 1_000_003 + step)
        params, optimizer_state, metrics = _step(optimizer, params, optimizer_state, batch, key)
        if step % REPORT_EVERY == 0 or step == steps:
            values = {name: round(float(value), 4) for name, value in metrics.items()}
            line = json.dumps({"step": step, "seconds": round(time.monotonic() - begin), **values})
            print(line, flush=True)
            with open(workdir / "metrics.jsonl", "a") as file:
                file.write(line + "\n")
        if step % SAVE_EVERY == 0 or step == steps:
            _write(checkpoint, {"params": params, "optimizer": optimizer_state, "step": step})
    judge = Judge(params)
    judge.save(workdir / "model.safetensors")
    return judge


def draw_batch(pairs: Pairs, rng: np.random.Generator) -> Batch:
    """Draw a batch of P = 64 pairs: 8 identities of each of 8 words. Half of the images are flipped."""
    words = rng.choice(len(WORDS), WORDS_AT_ONCE, replace=False)
    chosen = np.stack([rng.choice(pairs.references.shape[1], IDENTITIES, replace=False) for _ in words])
    at = (np.repeat(words, IDENTITIES), chosen.reshape(-1))
    batch = {"words": at[0].astype(np.int32), "backgrounds": pairs.backgrounds[at].astype(np.int32)}
    for kind in ("reference", "scene"):
        images, masks = getattr(pairs, f"{kind}s")[at], getattr(pairs, f"{kind}_masks")[at]
        # Reference and scene are flipped independently: identities have no left and right.
        flip = rng.random(len(images)) < 0.5
        batch[f"{kind}s"] = np.where(flip[:, None, None, None], images[:, :, ::-1], images)
        batch[f"{kind}_masks"] = np.where(flip[:, None, None], masks[:, :, ::-1], masks)
    return batch


def judge_loss(params: Any, batch: Mapping[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
    """Sum of the losses of the four tasks, and the metrics."""
    k_scene, k_reference, k_mask = jax.random.split(key, 3)
    apply: Any = functools.partial(JudgeNet().apply, {"params": params})
    scenes, references = (batch[name].astype(jnp.float32) / 127.5 - 1.0 for name in ("scenes", "references"))
    scenes, references = soften(scenes, k_scene), soften(references, k_reference, strength=0.3)
    exact = batch["scene_masks"].astype(jnp.float32)
    view = apply(scenes, method="see")
    # The benchmark cuts subjects out by the judge's own regions, so training mostly does too. At the start
    # those are useless, so a share of the batch uses the exact masks.
    own = jax.lax.stop_gradient(jax.nn.sigmoid(view.region))
    use_own = jax.random.bernoulli(k_mask, 0.7, (len(scenes), 1, 1))
    seen = apply(scenes, jnp.where(use_own, own, exact), method="look")
    known = apply(references, batch["reference_masks"].astype(jnp.float32), method="look")

    # (P, C) → (words, identities, C): only identities of the same word are compared.
    by_word = (WORDS_AT_ONCE, IDENTITIES, -1)
    rows = (look.directions.reshape(by_word) for look in (seen, known))
    logits = jnp.einsum("wie,wje->wij", *rows) / TEMPERATURE
    truth = jnp.broadcast_to(jnp.arange(IDENTITIES), logits.shape[:2])
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    # InfoNCE in both directions: from scenes to references, and back.
    both_ways = cross_entropy(logits, truth).mean() + cross_entropy(logits.swapaxes(1, 2), truth).mean()
    losses = {
        "identity": 0.5 * both_ways,
        "words": sum(cross_entropy(look.words, batch["words"]).mean() for look in (seen, known)) / 2,
        "backgrounds": cross_entropy(view.backgrounds, batch["backgrounds"]).mean(),
        "region": optax.sigmoid_binary_cross_entropy(view.region, exact).mean(),
    }
    inside = view.region > 0
    overlap = (inside & (exact > 0)).sum((1, 2)) / jnp.maximum((inside | (exact > 0)).sum((1, 2)), 1)
    hits = {
        "identity_top1": (jnp.argmax(logits, -1) == truth).mean(),
        "word_top1": (jnp.argmax(seen.words, -1) == batch["words"]).mean(),
        "background_top1": (jnp.argmax(view.backgrounds, -1) == batch["backgrounds"]).mean(),
        "iou": overlap.mean(),
    }
    # The region counts twice: the identity is read from what it cuts out.
    return sum(losses.values()) + losses["region"], {**losses, **hits}


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _step(
    optimizer: Any, params: Any, state: Any, batch: Mapping[str, Array], key: Array
) -> tuple[Any, Any, dict]:
    (_, metrics), gradients = jax.value_and_grad(judge_loss, has_aux=True)(params, batch, key)
    with jax.numpy_dtype_promotion("standard"):  # optax computes floats from integer counts
        updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, metrics


def _write(path: Path, state: Any) -> None:
    """Write a checkpoint atomically, so an interrupted run keeps the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(flax.serialization.to_bytes(jax.device_get(state)))


if __name__ == "__main__":
    run_command(main)
