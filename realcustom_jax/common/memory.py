"""Returns memory of freed arrays from the C library to the operating system."""

import ctypes
import ctypes.util
import gc


def return_freed_memory() -> None:
    """Return freed memory to the operating system, if the C library is glibc."""
    # glibc keeps freed blocks of up to 32 MiB for reuse, and most tensors of a model are smaller than that.
    gc.collect()
    name = ctypes.util.find_library("c")
    trim = getattr(ctypes.CDLL(name), "malloc_trim", None) if name else None
    if trim is not None:
        trim(0)
