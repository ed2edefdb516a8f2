"""Where things that can be made again are kept, and the cache of compiled programs there."""

import os
from pathlib import Path

import jax


def cache_dir() -> Path:
    """Where things that can be made again are kept: compiled programs, the drawn toybox.

    `$REALCUSTOM_JAX_CACHE`, else `~/.cache/realcustom_jax`.
    """
    return Path(os.environ.get("REALCUSTOM_JAX_CACHE") or Path.home() / ".cache" / "realcustom_jax")


def use_compilation_cache() -> None:
    """Keep compiled programs on disk, unless the user configured a cache (JAX_COMPILATION_CACHE_DIR)."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
