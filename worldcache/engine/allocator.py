"""How the C library treats the host memory that tensors leave behind."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Parameters of glibc's ``mallopt``."""

MAX_MMAP_THRESHOLD = 32 * 2**20
"""The largest that glibc takes."""


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, and use it again for whichever thread asks next.

    By default glibc gives a thread's freed blocks back to the system and gets them anew, page by page, for
    the next activations: a thousand page faults in each backbone call. To be called before threads start.

    Returns:
        Whether the C library took it; only glibc does.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = {M_ARENA_MAX: 1, M_MMAP_THRESHOLD: MAX_MMAP_THRESHOLD, M_TRIM_THRESHOLD: 2**31 - 1}
    return all(bool(mallopt(parameter, value)) for parameter, value in wanted.items())
