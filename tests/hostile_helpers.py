"""Invalid values, images to damage, and a check of outcomes; loaded by `runpy`, as tests are no package."""

import io
import signal
import warnings

import numpy as np
from PIL import Image

import realcustom_jax as rc
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


SECONDS = 20  # each takes milliseconds


class Hang(Exception):
    pass


def outcome(action, secret: str = "") -> str:
    """ "sentence", or what is wrong: "silent", "hang" or "traceback …"."""

    def ring(*_):
        raise Hang

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            action()
    except rc.UserError as error:
        text = str(error)
        good = text and "\n" not in text and len(text) < 2000 and not (secret and secret in text)
        return "sentence" if good else f"not a sentence: {text[:300]!r} …"
    except Hang:
        return "hang"
    except BaseException as error:
        return f"traceback {type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "silent"


def check(cases, secret: str = "") -> int:
    """The number of cases; each must end in a one-line error, without the text `secret`."""
    results = [(name, outcome(action, secret)) for name, action in cases]
    wrong = [result for result in results if result[1] != "sentence"]
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong)
    return len(results)
