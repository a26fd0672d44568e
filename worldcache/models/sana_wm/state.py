"""What a rollout is between and within chunks, and its latents as tokens. Plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from worldcache.decoded import Decoded
from worldcache.models.base import TokenView
from worldcache.models.sana_wm.text import Text
from worldcache.policies.base import TokenLayout


@dataclass(frozen=True)
class SanaWMContext:
    """What a chunk goes on from.

    Attributes:
        first: latent ``[C, 1, h, w]`` of the frame that the chunk begins with; ``None`` if that is still to
            be made of ``before``.
        before: the chunk before.
        pose: of that frame, in the coordinates of the observation's camera, ``[4, 4]``.
        intrinsics: ``[fx, fy, cx, cy]`` in pixels.
    """

    first: Tensor | None
    before: Decoded | None
    pose: NDArray[np.float64]
    intrinsics: NDArray[np.float32]
    text: Text


@dataclass(frozen=True)
class SanaWMCondition:
    """What the backbone knows of a chunk of T latent frames.

    Attributes:
        first: latent ``[C, 1, h, w]`` of the first frame.
        cameras: pose and intrinsics of each latent frame ``[T, 20]``.
        rays: Plücker coordinates of the frames within ``[6 * stride, T, h, w]``.
    """

    first: Tensor
    cameras: Tensor
    rays: Tensor
    text: Text


class SanaWMTokens(TokenView):
    """A token is a pixel of the latent, the given first frame's included."""

    def __init__(self, shape: Sequence[int]) -> None:
        channels, frames, height, width = shape
        self._shape = (channels, frames, height, width)
        self.width = channels
        self.layout = TokenLayout(("rgb",), (frames * height * width,))
        self.grids = {"rgb": (frames, height, width)}

    def to_tokens(self, output: Tensor) -> Tensor:
        return output.movedim(1, -1).reshape(-1, self.width)

    def from_tokens(self, tokens: Tensor) -> Tensor:
        _, *grid = self._shape
        return tokens.view(-1, *grid, self.width).movedim(-1, 1).contiguous()
