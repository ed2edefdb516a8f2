"""Sampling phases of `benchmarks/real_size.py` in one process: load, one subject, two subjects, decode."""

import argparse
import contextlib
import resource
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import realcustom_jax as rc
from realcustom_jax.outputs.decode import images_of


def measure(phases: dict[str, dict[str, float]], clock: Any) -> None:
    """Run all phases and add the figures of each to `phases`; `clock` counts compile seconds."""
    args = _parse()

    @contextlib.contextmanager
    def phase(name: str) -> Iterator[None]:
        started, compiled = time.perf_counter(), clock.seconds
        yield
        phases[name] = {
            "seconds": time.perf_counter() - started,
            "compile_seconds": clock.seconds - compiled,
            "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
        print(name, {key: round(value, 1) for key, value in phases[name].items()}, flush=True)

    prefix = "cached_" if args.cached else "adapter_" if args.realcustom else ""
    with phase(f"{prefix}load"):
        pipe = rc.load(args.model, offload=args.offload, realcustom=args.realcustom)
        if not args.offload:
            jax.block_until_ready(pipe.params)
    size = {"height": args.size, "width": args.size, "steps": args.steps}
    one = rc.Subject(image=args.photos[0], words="dog")
    two = [one, rc.Subject(image=args.photos[1], words="cat")]
    requests = {"one": ("a dog on the beach", [one]), "two": ("a dog and a cat on the beach", two)}
    if prefix:
        requests.pop("two")
    for name, (prompt, subjects) in requests.items():
        for call in ("cold",) if prefix else ("cold", "warm"):
            with phase(f"{prefix}{name}" if prefix else f"{name}_{call}"):
                out = rc.sample(pipe, prompt, subjects=subjects, seed=1, **size)
            assert out.images.shape == (1, args.size, args.size, 3)
            assert out.masks.max() > 0 and len(np.unique(out.images)) > 10, "blank image or empty mask"
    if not prefix:
        latents = jnp.zeros((1, args.size // 8, args.size // 8, 4))
        with phase("decode"):
            images_of(pipe, latents)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--realcustom")
    parser.add_argument("--photos", nargs=2, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--offload", action="store_true")
    parser.add_argument("--cached", action="store_true")
    return parser.parse_args()
