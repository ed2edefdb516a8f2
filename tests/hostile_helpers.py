"""Values that are invalid everywhere, and images to damage; loaded by `runpy`, as tests are no package."""

import io

import numpy as np
from PIL import Image

from realcustom_jax.toybox import Identity, render_reference

CAT = render_reference(Identity("cat", 9)).image
NAN, INF = float("nan"), float("inf")
# Values that are invalid for every option.
INVALID_VALUES = {
    "nan": NAN, "inf": INF, "-inf": -INF, "1e39": 1e39, "True": True, "bytes": b"5", "a dict": {},
    "a set": {1},
    "an object": object(), "complex": 1j, "empty text": "", "text": "0.5", "lone surrogate": "\ud800",
    "nested": [[1]], "list of None": [None], "array 2-d": np.ones((2, 2)), "function": print, "type": int,
    "array of text": np.asarray(["a"]), "NaT": np.datetime64("NaT"), "huge": 10**400, "-huge": -(10**400),
}  # fmt: skip


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(CAT).save(buffer, kind)
    return buffer.getvalue()
