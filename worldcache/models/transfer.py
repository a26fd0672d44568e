"""Copies between the host and a model's device that keep neither waiting longer than it must.

What goes to CUDA is copied from page-locked memory, in the order of the calling thread's current stream.
What comes back is complete when the function returns; the stream may hold later work by then.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on ``device``; the host does not wait for a copy to CUDA.

    ``tensor`` may be changed or dropped at once: it is the page-locked copy that the device reads, and
    torch keeps that until it was read.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensor: Tensor) -> Tensor:
    """A tensor of a device on the host, complete.

    The calling thread's current stream must already come after the work that made ``tensor``. From CUDA
    the result lies in page-locked memory: compute with it, but do not keep it.
    """
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event(blocking=True)
    copied.record(torch.cuda.current_stream(tensor.device))
    copied.synchronize()
    return host
