"""What a prompt means to the network: LLaVA's view of prompt and picture, and CLIP's of the prompt.

Embeddings are made once a rollout and travel with it; the encoders remember nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from worldcache.errors import UnknownName
from worldcache.models.transfer import to_device


@dataclass(frozen=True)
class TextEmbedding:
    """One prompt.

    Attributes:
        tokens: ``[L, text_embed_dim]``.
        mask: bool ``[L]``, which of them count.
        pooled: ``[pooled_projection_dim]``.
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor


class TextEncoder(Protocol):
    """Makes embeddings.

    Attributes:
        prompts: all prompts that it knows; empty if it takes any.
        memory_bytes: of what stays on the device.
    """

    @property
    def prompts(self) -> tuple[str, ...]: ...

    @property
    def memory_bytes(self) -> int: ...

    def encode(self, prompts: Mapping[str, str], picture: NDArray[np.uint8]) -> list[TextEmbedding]:
        """The embeddings of prompts about a picture.

        Args:
            prompts: by the field of the conditioning that holds each.
            picture: uint8 ``[H, W, 3]``.

        Raises:
            UnknownName: it does not know a prompt; ``param`` names the field.
        """


@dataclass(frozen=True)
class FixedText:
    """Embeddings that were made beforehand, for a few prompts; the picture does not matter.

    Attributes:
        prompts: the texts.
        tokens: ``[P, L, text_embed_dim]``.
        mask: bool ``[P, L]``.
        pooled: ``[P, pooled_projection_dim]``.
    """

    prompts: tuple[str, ...]
    tokens: Tensor
    mask: Tensor
    pooled: Tensor

    @property
    def memory_bytes(self) -> int:
        return _bytes((self.tokens, self.mask, self.pooled))

    def encode(self, prompts: Mapping[str, str], picture: NDArray[np.uint8]) -> list[TextEmbedding]:
        return [self._find(text.strip(), f"conditioning.{field}") for field, text in prompts.items()]

    def _find(self, prompt: str, param: str) -> TextEmbedding:
        if prompt not in self.prompts:
            raise UnknownName("prompt", prompt, self.prompts, param=param)
        index = self.prompts.index(prompt)
        return TextEmbedding(self.tokens[index], self.mask[index], self.pooled[index])


class LlavaText:
    """The encoders of diffusers' ``HunyuanVideoImageToVideoPipeline``.

    Args:
        encoders: its ``text_encoder``, ``tokenizer``, ``image_processor``, ``text_encoder_2`` and
            ``tokenizer_2``.
        device: where they compute.
        dtype: of the embeddings.
        offload: keep them on the host between prompts.
    """

    prompts: tuple[str, ...] = ()

    def __init__(
        self, encoders: dict[str, Any], *, device: torch.device, dtype: torch.dtype, offload: bool = False
    ) -> None:
        # imported here, as it needs the package transformers
        library: Any = import_module("diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_image2video")
        self._pipeline = library.HunyuanVideoImageToVideoPipeline(
            transformer=None, vae=None, scheduler=None, **encoders
        )
        self._networks = [encoders["text_encoder"], encoders["text_encoder_2"]]
        self._device, self._dtype, self._offload = device, dtype, offload
        for network in self._networks:
            network.to("cpu" if offload else device).eval().requires_grad_(False)

    @property
    def memory_bytes(self) -> int:
        if self._offload:
            return 0
        return sum(_bytes(network.parameters()) for network in self._networks)

    def encode(self, prompts: Mapping[str, str], picture: NDArray[np.uint8]) -> list[TextEmbedding]:
        image = Image.fromarray(picture)
        try:
            for network in self._networks:
                network.to(self._device)
            return [self._embed(text.strip(), image) for text in prompts.values()]
        finally:
            if self._offload:
                for network in self._networks:
                    network.to("cpu")

    def _embed(self, prompt: str, image: Image.Image) -> TextEmbedding:
        tokens, pooled, mask = self._pipeline.encode_prompt(
            image=image, prompt=[prompt], device=self._device, dtype=self._dtype
        )
        return TextEmbedding(tokens[0], mask[0].bool(), pooled[0])


def random_text(
    prompts: Sequence[str],
    length: int,
    widths: tuple[int, int],
    generator: torch.Generator,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> FixedText:
    """Embeddings of the right shape that mean nothing, each with a few places that do not count.

    Args:
        length: places of each.
        widths: numbers of a token, and of the pooled embedding.
    """
    tokens = torch.randn(len(prompts), length, widths[0], generator=generator)
    pooled = torch.randn(len(prompts), widths[1], generator=generator)
    known = torch.tensor([max(1, length - 1 - index) for index in range(len(prompts))])
    mask = torch.arange(length) < known[:, None]
    return FixedText(
        tuple(prompts),
        to_device(tokens.to(dtype), device),
        to_device(mask, device),
        to_device(pooled.to(dtype), device),
    )


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
