"""CogVideoX's VAE as Aether uses it: between pixels and scaled latents, at home on the device or the host."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from worldcache.models.transfer import to_device


class PictureVAE:
    """Encodes and decodes one video at a time.

    Args:
        vae: an ``AutoencoderKLCogVideoX``.
        device: where it works.
        offload: keep it on the host, and bring it to ``device`` only while it works. The engine and the
            thread that decodes then wait for each other.
        tiled: work on overlapping tiles, each half as high and wide as the configured frame; takes much
            less memory, and differs a little from working on the whole.
    """

    def __init__(self, vae: Any, *, device: torch.device, offload: bool, tiled: bool) -> None:
        self._device, self._offload = device, offload
        self._vae = vae.to("cpu" if offload else device).eval().requires_grad_(False)
        self._lock = threading.Lock()
        if tiled:
            self._vae.enable_tiling()
        scale = float(vae.config.scaling_factor)
        self._shrink = 1 / scale
        self._encoded_scale = self._shrink if vae.config.invert_scale_latents else scale

    def encode(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """A sample of the latents of a video.

        Args:
            pixels: ``[F, 3, H, W]``, -1 to 1, on the host; F is 1 or 8k + 1.
            generator: draws the sample, on the CPU.

        Returns:
            ``[T, 16, h, w]``, float32 on the device.
        """
        with self._at_work() as vae:
            video = to_device(pixels, self._device).to(vae.dtype)
            spread = vae.encode(video.transpose(0, 1)[None]).latent_dist
        noise = to_device(torch.randn(spread.mean.shape, generator=generator), self._device)
        sample: Tensor = spread.mean.float() + spread.std.float() * noise
        return sample[0].transpose(0, 1) * self._encoded_scale

    def decode(self, latents: Tensor) -> Tensor:
        """``[T, 16, h, w]`` as ``[F, 3, H, W]``, about -1 to 1, float32 on the device."""
        with self._at_work() as vae:
            latents = (latents * self._shrink).to(vae.dtype)
            video: Tensor = vae.decode(latents.transpose(0, 1)[None]).sample
        return video[0].transpose(0, 1).float()

    @property
    def device_bytes(self) -> int:
        """Bytes of weights that stay on the device."""
        if self._offload:
            return 0
        return sum(p.numel() * p.element_size() for p in self._vae.parameters())

    @contextmanager
    def _at_work(self) -> Iterator[Any]:
        if not self._offload:
            yield self._vae
            return
        with self._lock:
            self._move(self._device)
            try:
                yield self._vae
            finally:
                self._move(torch.device("cpu"))

    def _move(self, device: torch.device) -> None:
        with torch.inference_mode(False):  # weights stay tensors of the ordinary kind
            self._vae.to(device)
