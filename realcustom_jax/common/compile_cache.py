"""The cache folder, and the cache of compiled programs in it."""

import os
from pathlib import Path
from typing import Any

import jax


def cache_dir() -> Path:
    """The folder for files that can be regenerated: compiled programs, the images of the toybox.

    It is `$REALCUSTOM_JAX_CACHE`, or `~/.cache/realcustom_jax` if that is not set.
    """
    return Path(os.environ.get("REALCUSTOM_JAX_CACHE") or Path.home() / ".cache" / "realcustom_jax")


def use_compilation_cache() -> None:
    """Cache compiled programs on disk, unless the user configured a cache (JAX_COMPILATION_CACHE_DIR)."""
    # An SDXL sampler compiles for minutes, and each start of a command would compile it again.
    config: Any = jax.config  # its types do not know its options
    if config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
        # The default, one second, leaves out dozens of small programs, which take seconds together.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
