"""Memory that is freed stays with the process; what says that there is none left."""

import ctypes
import errno
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
# What PyTorch, oneDNN and Python say without an error of its own type.
_NONE_LEFT = ("out of memory", "allocate memory", "create a primitive", "start new thread")


def keep_freed_memory() -> None:
    """Let glibc reuse freed memory instead of returning it to the system; elsewhere do nothing.

    Gradients are allocated anew at every step. By default a large tensor's memory goes back when it
    is freed, and the system zeroes it page by page when the next one is made: a fifth of a
    fine-tuning step of VGG19 on a CPU. The process keeps its peak size until it ends.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that there is not enough memory."""
    full = isinstance(error, OSError) and error.errno == errno.ENOMEM
    said = any(words in str(error) for words in _NONE_LEFT)
    return full or said or isinstance(error, MemoryError)
