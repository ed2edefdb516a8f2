"""The hash of a model's parameters: equal hashes mean equal bits."""

import hashlib
from typing import Any

import numpy as np

from realcustom_jax.weights.keys import flatten


def params_sha256(params: Any) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of all parameters, in the order of their names."""
    digest = hashlib.sha256()
    # One component at a time: an offloaded pipeline reads each one when it is accessed.
    for name in sorted(params, key="{}/".format):
        for path, value in sorted(flatten({name: params[name]}).items()):
            value = np.ascontiguousarray(value)
            digest.update(f"{path} {value.dtype} {value.shape}\n".encode())
            digest.update(value.tobytes())
    return digest.hexdigest()
