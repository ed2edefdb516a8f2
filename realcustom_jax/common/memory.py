"""Memory of the process: what the C library keeps of arrays that are gone."""

import ctypes
import ctypes.util
import gc


def return_freed_memory() -> None:
    """Give freed memory back to the operating system, where the C library is glibc.

    It keeps freed blocks of up to 32 MiB for later, and the tensors of a model are many such blocks.
    """
    gc.collect()
    name = ctypes.util.find_library("c")
    trim = getattr(ctypes.CDLL(name), "malloc_trim", None) if name else None
    if trim is not None:
        trim(0)
