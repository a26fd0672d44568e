"""The latents of finished chunks, which nobody keeps once they are decoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from torch import Tensor

from worldcache.core import Frames
from worldcache.models.sana_wm.world import SanaWMWorldModel


@contextmanager
def latents_of(model: SanaWMWorldModel) -> Iterator[list[Tensor]]:
    """Those of the chunks that ``model`` decodes meanwhile, in order."""
    latents: list[Tensor] = []
    decode = model.decode

    def watched(latent: Tensor) -> Frames:
        latents.append(latent)
        return decode(latent)

    with patch.object(model, "decode", watched):
        yield latents
