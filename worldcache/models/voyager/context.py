"""What a chunk is conditioned on: a scene, which may still be hidden in a latent, and the prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldcache.errors import InvalidInput
from worldcache.models.context import ArraySpec, check_arrays
from worldcache.models.transfer import to_device, to_host
from worldcache.models.voyager.scene import Scene
from worldcache.models.voyager.text import TextEmbedding

MOST_DEPTH = float(np.finfo(np.float32).max)
MOST_EMBEDDING = 1e6
"""Largest number of a text embedding that comes back from outside."""


class LazyScene:
    """A scene that is made when it is first asked for, and kept; what it was made from is let go of.

    Making it twice, from two threads at once, does no harm.
    """

    def __init__(self, make: Callable[[], Scene]) -> None:
        self._make: Callable[[], Scene] | None = make
        self._scene: Scene | None = None

    def get(self) -> Scene:
        """The scene."""
        make = self._make
        if make is not None:
            self._scene = make()
            self._make = None
        assert self._scene is not None
        return self._scene


@dataclass(frozen=True)
class VoyagerContext:
    """A scene and both prompts."""

    scene: LazyScene
    prompt: TextEmbedding
    negative: TextEmbedding


@dataclass(frozen=True)
class VoyagerCondition:
    """What the network is told of a chunk.

    Attributes:
        reference: latent of the observed frame, float32 ``[C, 1, h, w]``.
        channels: what is put beside the noisy latent, ``[2 C + 2, T, h, w]``.
        prompt, negative: of the two branches.
    """

    reference: Tensor
    channels: Tensor
    prompt: TextEmbedding
    negative: TextEmbedding


def export(context: VoyagerContext) -> dict[str, NDArray[Any]]:
    """The context as arrays; a scene that is still hidden in a latent is decoded."""
    scene, texts = context.scene.get(), (context.prompt, context.negative)
    stacked = {
        "tokens": torch.stack([text.tokens.float() for text in texts]),
        "pooled": torch.stack([text.pooled.float() for text in texts]),
        "mask": torch.stack([text.mask.to(torch.uint8) for text in texts]),
    }
    return {
        "image": scene.image.copy(),
        "depth": scene.depth.copy(),
        **{name: to_host(value).numpy().copy() for name, value in stacked.items()},
    }


def restore(
    arrays: Mapping[str, NDArray[Any]],
    resolution: tuple[int, int],
    widths: tuple[int, int],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> VoyagerContext:
    """The context that was exported as ``arrays``.

    Args:
        widths: numbers of a text token, and of a pooled embedding.

    Raises:
        InvalidInput: ``param`` names the array at fault.
    """
    tokens = arrays.get("tokens")
    length = tokens.shape[1] if tokens is not None and tokens.ndim == 3 else 1
    float32 = np.dtype(np.float32)
    check_arrays(
        arrays,
        {
            "image": ArraySpec(np.dtype(np.uint8), (*resolution, 3), 0, 255),
            "depth": ArraySpec(float32, resolution, 0, MOST_DEPTH),
            "tokens": ArraySpec(float32, (2, length, widths[0]), -MOST_EMBEDDING, MOST_EMBEDDING),
            "pooled": ArraySpec(float32, (2, widths[1]), -MOST_EMBEDDING, MOST_EMBEDDING),
            "mask": ArraySpec(np.dtype(np.uint8), (2, length), 0, 1),
        },
    )
    if not arrays["mask"].any(axis=1).all():
        raise InvalidInput("'mask' leaves nothing of a prompt", param="mask")
    scene = Scene(arrays["image"].copy(), arrays["depth"].copy())
    prompt, negative = (
        TextEmbedding(
            to_device(torch.from_numpy(arrays["tokens"][i].copy()).to(dtype), device),
            to_device(torch.from_numpy(arrays["mask"][i].copy()).bool(), device),
            to_device(torch.from_numpy(arrays["pooled"][i].copy()).to(dtype), device),
        )
        for i in (0, 1)
    )
    return VoyagerContext(LazyScene(lambda: scene), prompt, negative)
