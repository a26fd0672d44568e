"""Pixels to latents and back: HunyuanVideo's VAE on RGB stacked above depth."""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo
from torch import Tensor

from worldcache.models.transfer import to_device
from worldcache.models.voyager.tokens import SEPARATOR

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the depth that is read from a decoded picture."""

TILE, TILE_FRAMES = 256, 64
"""Of the published VAE, in pixels and frames. With diffusers' default of 16 frames the results are wrong."""

OVERLAP = 0.25
"""Share of a tile that the next one covers as well."""


def stack_pixels(rgb: Tensor, depth: Tensor) -> Tensor:
    """Frames as the VAE takes them.

    Args:
        rgb: uint8 ``[F, H, W, 3]``.
        depth: float32 ``[F, H, W]``, 0 to 1 as a rule.

    Returns:
        float32 ``[1, 3, F, 2 H + 16, W]``: RGB, rows of ones, depth in each channel; -1 to 1 as a rule.
    """
    above = (rgb.permute(3, 0, 1, 2).float() / 255 - 0.5) / 0.5
    below = ((depth - 0.5) / 0.5).expand(3, -1, -1, -1)
    between = above.new_ones(*above.shape[:2], SEPARATOR, above.shape[3])
    return torch.cat([above, between, below], dim=2)[None]


def split_pixels(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Decoded pixels ``[3, F, 2 H + 16, W]`` as RGB ``[F, H, W, 3]`` and depth ``[F, H, W]``, 0 to 1."""
    height = (pixels.shape[2] - SEPARATOR) // 2
    shown = (pixels / 2 + 0.5).clamp(0, 1)
    red, green, blue = shown[:, :, -height:]
    depth = red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]
    return shown[:, :, :height].permute(1, 2, 3, 0), depth


class Codec:
    """The VAE, with the published tiles.

    Args:
        vae: on its device, with its dtype.
        device: where it is.
        tile, tile_frames: pixels and frames of a tile.
    """

    def __init__(
        self,
        vae: AutoencoderKLHunyuanVideo,
        device: torch.device,
        *,
        tile: int = TILE,
        tile_frames: int = TILE_FRAMES,
    ) -> None:
        self.vae = vae.to(device).eval().requires_grad_(False)
        self.vae.enable_tiling(
            tile_sample_min_height=tile,
            tile_sample_min_width=tile,
            tile_sample_min_num_frames=tile_frames,
            tile_sample_stride_height=int(tile * (1 - OVERLAP)),
            tile_sample_stride_width=int(tile * (1 - OVERLAP)),
            tile_sample_stride_num_frames=int(tile_frames * (1 - OVERLAP)),
        )
        self._device = device

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return int(self.vae.config.latent_channels)

    def encode(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """A sample of the latent of ``[1, 3, F, H, W]``, float32 ``[C, T, h, w]``; drawn on the CPU."""
        found = self.vae.encode(pixels.to(self._device, self.vae.dtype)).latent_dist
        noise = to_device(torch.randn(found.mean.shape, generator=generator), self._device)
        sample: Tensor = found.mean.float() + found.std.float() * noise
        return sample[0] * float(self.vae.config.scaling_factor)

    def decode(self, latent: Tensor) -> Tensor:
        """Pixels ``[3, F, H, W]`` of ``[C, T, h, w]``, float32, -1 to 1 as a rule."""
        scaled = latent[None] / self.vae.config.scaling_factor
        pixels: Tensor = self.vae.decode(scaled.to(self.vae.dtype), return_dict=False)[0]
        return pixels[0].float()
