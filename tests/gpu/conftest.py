"""Everything here needs a CUDA device, and skips where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def cuda() -> Iterator[str]:
    """The name of a CUDA device, on which float32 is float32."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    before = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield "cuda:0"
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
