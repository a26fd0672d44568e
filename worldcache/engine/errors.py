"""What an exception out of a model means for a rollout."""

from __future__ import annotations

import torch

from worldcache.errors import OutOfMemory

_CPU_MESSAGES = ("can't allocate memory", "not enough memory")
"""How torch's CPU allocator words what is a plain ``RuntimeError``."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was missing, on the device or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError, OutOfMemory)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _CPU_MESSAGES)


def as_rollout_error(error: Exception) -> Exception:
    """The error that a rollout ends with: missing memory has a name, anything else stays what it is.

    It holds none of the memory that was in use where it was raised; log it before.
    """
    if is_out_of_memory(error) and not isinstance(error, OutOfMemory):
        named = OutOfMemory("there is not enough memory for this rollout; make it smaller")
        named.__cause__ = error
        return _without_frames(named)
    return _without_frames(error)


def _without_frames(error: Exception) -> Exception:
    """The error without the calls that it came through: they would keep their tensors as long as it lives."""
    chain: list[BaseException | None] = [error]
    seen: set[BaseException] = set()
    while chain:
        link = chain.pop()
        if link is not None and link not in seen:
            seen.add(link)
            link.__traceback__ = None
            chain += [link.__cause__, link.__context__]
    return error
