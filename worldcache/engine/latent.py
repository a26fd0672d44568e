"""A chunk's latent, as the model denoises it and as policies see it, each made when it is asked for."""

from __future__ import annotations

from torch import Tensor

from worldcache.models.base import TokenView


class Latent:
    """One latent in two layouts.

    A streak of cached steps stays in tokens and goes back to the model's layout once, at its end.

    Args:
        view: knows both layouts.
        value: the latent in the model's layout.
        tokens: the latent as tokens ``[N, d]`` of one branch; one of the two is enough.
    """

    def __init__(self, view: TokenView, value: Tensor | None = None, tokens: Tensor | None = None) -> None:
        assert value is not None or tokens is not None
        self._view, self._value, self._tokens = view, value, tokens

    @property
    def value(self) -> Tensor:
        """The latent in the model's layout, without a batch dimension."""
        if self._value is None:
            assert self._tokens is not None
            self._value = self._view.from_tokens(self._tokens)[0]
        return self._value

    @property
    def tokens(self) -> Tensor:
        """The latent as tokens ``[N, d]``."""
        if self._tokens is None:
            assert self._value is not None
            self._tokens = self._view.to_tokens(self._value[None])
        return self._tokens
