"""Prompts as the backbone reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.pipelines.sana_wm.pipeline_sana_wm import DEFAULT_CHI_PROMPT
from torch import Tensor

from worldcache.errors import InvalidInput
from worldcache.models.sana_wm.residence import Residence

FILE = "text_embeds.safetensors"
"""Embeddings of a folder that has no text encoder; its tensors are the fields of :class:`Text`."""


@dataclass(frozen=True)
class Text:
    """A rollout's prompts, with L tokens each.

    Attributes:
        prompt, negative_prompt: hidden states of the text encoder ``[1, L, d]``.
        mask, negative_mask: 1 where there is a token, else 0, ``[L]``.
    """

    prompt: Tensor
    mask: Tensor
    negative_prompt: Tensor
    negative_mask: Tensor

    def branch(self, unconditional: bool) -> tuple[Tensor, Tensor]:
        """Hidden states and mask of one of guidance's branches."""
        if unconditional:
            return self.negative_prompt, self.negative_mask
        return self.prompt, self.mask


def text_from_tensors(tensors: Mapping[str, Tensor], *, device: torch.device, dtype: torch.dtype) -> Text:
    """What :data:`FILE` holds.

    Raises:
        KeyError: a tensor is missing.
    """
    return Text(
        tensors["prompt"].to(device, dtype),
        tensors["mask"].to(device),
        tensors["negative_prompt"].to(device, dtype),
        tensors["negative_mask"].to(device),
    )


class TextEncoder:
    """The pipeline's own text encoder, or fixed embeddings in its place.

    Args:
        pipe: a ``SanaWMPipeline``; only its text parts are used.
        encoder: its text encoder and where that lies; ``None`` if there is none.
        fixed: embeddings for every prompt if there is no encoder.
        device: where the embeddings go.
    """

    def __init__(
        self, pipe: Any, encoder: Residence | None, fixed: Text | None, device: torch.device
    ) -> None:
        self._pipe, self._encoder, self._fixed, self._device = pipe, encoder, fixed, device

    def __call__(self, prompt: str | None, negative_prompt: str | None) -> Text:
        """Embeddings of two prompts; each is empty if it is ``None``.

        Raises:
            InvalidInput: there is no encoder for the prompt.
        """
        if self._encoder is not None:
            with self._encoder.present(), torch.no_grad():
                return self._encode(prompt or "", negative_prompt or "")
        assert self._fixed is not None
        for name, given in (("prompt", prompt), ("negative_prompt", negative_prompt)):
            if given is not None:
                message = f"this model was loaded without a text encoder; leave {name} out"
                raise InvalidInput(message, param=f"conditioning.{name}", code="not_supported")
        return self._fixed

    def _encode(self, prompt: str, negative_prompt: str) -> Text:
        embeds, mask, negative, negative_mask = self._pipe.encode_prompt(
            prompt, negative_prompt, device=self._device, chi_prompt=DEFAULT_CHI_PROMPT
        )
        return Text(embeds[0], mask[0], negative[0], negative_mask[0])
