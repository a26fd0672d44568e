"""Depth of observations that come without: an estimator of the user's choice, if the folder has one."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn.functional import interpolate

from worldcache.errors import ModelLoadError
from worldcache.models.transfer import to_host

FOLDER = "depth_estimator"


class DepthEstimator:
    """A network of transformers' that predicts distances.

    Args:
        network: what ``AutoModelForDepthEstimation`` loads.
        processor: prepares images for it.
        device: where it computes.
        offload: keep it on the host between images.
    """

    def __init__(
        self, network: nn.Module, processor: Any, *, device: torch.device, offload: bool = False
    ) -> None:
        self._network: Any = network.to("cpu" if offload else device).eval().requires_grad_(False)
        self._processor, self._device, self._offload = processor, device, offload

    @property
    def memory_bytes(self) -> int:
        """Bytes of what stays on the device."""
        if self._offload:
            return 0
        return sum(p.numel() * p.element_size() for p in self._network.parameters())

    def estimate(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Distances ``[H, W]`` in an image ``[H, W, 3]``, 0 where it found none."""
        inputs = self._processor(images=Image.fromarray(image), return_tensors="pt")
        pixels = inputs["pixel_values"].to(self._device, self._network.dtype)
        self._network.to(self._device)
        try:
            found = self._network(pixel_values=pixels).predicted_depth
        finally:
            if self._offload:
                self._network.to("cpu")
        depth = found.float().reshape(1, 1, *found.shape[-2:])
        depth = interpolate(depth, size=image.shape[:2], mode="bilinear")[0, 0]
        array: NDArray[np.float32] = to_host(depth.nan_to_num(0, 0, 0).clamp(min=0)).numpy().copy()
        return array


def load_estimator(
    folder: Path, *, device: torch.device, dtype: torch.dtype, offload: bool = False
) -> DepthEstimator | None:
    """The estimator in the folder's ``depth_estimator/``; ``None`` if there is none.

    Raises:
        ModelLoadError: it cannot be loaded, or predicts no distances.
    """
    path = folder / FOLDER
    if not path.exists():
        return None
    try:
        library: Any = import_module("transformers")
        network = library.AutoModelForDepthEstimation.from_pretrained(path, dtype=dtype)
        processor = library.AutoImageProcessor.from_pretrained(path)
    except ImportError as error:
        raise ModelLoadError(f"{path} needs the package transformers: {error}") from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelLoadError(f"{path} cannot be loaded: {error}") from error
    if getattr(network.config, "depth_estimation_type", "metric") != "metric":
        raise ModelLoadError(f"{path} predicts relative depth; use a model that predicts distances")
    return DepthEstimator(network, processor, device=device, offload=offload)
