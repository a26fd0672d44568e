"""Between pictures and normalised latents, through the pipeline's VAE."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldcache.models.sana_wm.residence import Residence
from worldcache.models.transfer import to_device, to_host


class Pixels:
    """Encodes a first frame and decodes chunks.

    Args:
        vae: an ``AutoencoderKLLTX2Video`` and where it lies.
        processor: the pipeline's ``SanaWMImageProcessor``.
        device: where the latents are.
    """

    def __init__(self, vae: Residence, processor: Any, device: torch.device) -> None:
        self._vae, self._processor, self._device = vae, processor, device

    def encode(self, frame: NDArray[np.uint8]) -> Tensor:
        """A frame ``[H, W, 3]`` as float32 latent ``[C, 1, h, w]``.

        It is the posterior's mode, so that nothing is drawn.
        """
        height, width = frame.shape[:2]
        pixels = self._processor.preprocess(PIL.Image.fromarray(frame), height=height, width=width)
        with self._vae.present() as vae, torch.no_grad():
            video = to_device(pixels.unsqueeze(2), self._device).to(vae.dtype)
            latent = vae.encode(video).latent_dist.mode()
            mean, std = _moments(vae, latent)
            scaled: Tensor = (latent - mean) * vae.config.scaling_factor / std
            return scaled[0].float()

    def decode(self, latent: Tensor) -> Tensor:
        """A latent ``[C, T, h, w]`` as pictures from 0 to 1, float32 ``[F, H, W, 3]`` on the host."""
        with self._vae.present() as vae, torch.no_grad():
            scaled = latent[None].to(vae.dtype)
            mean, std = _moments(vae, scaled)
            video = vae.decode(scaled / vae.config.scaling_factor * std + mean, return_dict=False)[0][0]
            return to_host((video.float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0).contiguous())


def to_frames(pictures: Tensor) -> NDArray[np.uint8]:
    """Pictures from 0 to 1 in 8 bits."""
    frames: NDArray[np.uint8] = (pictures * 255.0).round().to(torch.uint8).numpy()
    return frames


def _moments(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the VAE's latents, as ``[1, C, 1, 1, 1]``."""
    mean, std = (moment.view(1, -1, 1, 1, 1).to(like) for moment in (vae.latents_mean, vae.latents_std))
    return mean, std
