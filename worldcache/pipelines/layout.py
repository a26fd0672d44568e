"""Outputs of any transformer as tokens, and back.

Knows nothing of steps or policies. Axes are letters: B batch, T frames, H and W space, N tokens,
C channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils import _pytree as pytree

from worldcache.errors import InvalidInput
from worldcache.policies import TokenLayout

_AXES: Mapping[int, tuple[str, ...]] = {
    2: ("NC",),
    3: ("BNC", "BCN"),
    4: ("BCHW", "BHWC", "CTHW"),
    5: ("BCTHW", "BTCHW", "BTHWC"),
}
"""Layouts by number of axes, the more usual ones first."""

_FRAMES_FIRST = ("CogVideoX", "ConsisID")
"""Classes that take ``[B, T, C, H, W]``; asked only if T and C are equal."""

Patch = tuple[int, int, int]


@dataclass(frozen=True)
class LayoutRules:
    """What is known of a transformer's tensors before any was seen.

    Attributes:
        axes: the layout that the caller gave; ``None`` to infer it from each tensor's shape.
        patch: frames, rows and columns of one token.
        channels: channels of an output, by the transformer's config.
        frames_first: whether T comes before C where the shape cannot tell.
    """

    axes: str | None
    patch: Patch
    channels: int | None
    frames_first: bool = False

    def axes_of(self, shape: torch.Size) -> str:
        """The layout of a tensor of this shape.

        Raises:
            InvalidInput: there is none; ``param`` is ``layout``.
        """
        if self.axes is not None:
            if len(self.axes) != len(shape):
                raise InvalidInput(f"{self.axes!r} does not fit an output {list(shape)}", param="layout")
            return self.axes
        known = _AXES.get(len(shape))
        if known is None:
            raise InvalidInput(f"cannot tell the layout of {list(shape)}; give it", param="layout")
        fitting = [axes for axes in known if shape[axes.index("C")] == self.channels] or [known[0]]
        return "BTCHW" if self.frames_first and "BTCHW" in fitting else fitting[0]


def layout_rules(
    transformer: torch.nn.Module, axes: str | None, patch_size: int | Sequence[int] | None
) -> LayoutRules:
    """Rules for a transformer, from what the caller gave and from its config.

    Raises:
        InvalidInput: ``param`` is ``layout`` or ``patch_size``.
    """
    if axes is not None and ("C" not in axes or len(set(axes)) < len(axes) or not set(axes) <= set("BTHWNC")):
        raise InvalidInput(f"{axes!r}: a layout is a string such as 'BCTHW' or 'BNC'", param="layout")
    config: Any = getattr(transformer, "config", {})
    if patch_size is None:
        patch = _patch(config.get("patch_size"), config.get("patch_size_t")) or (1, 1, 1)
    else:
        given = _patch(patch_size, None)
        if given is None:
            raise InvalidInput(
                "patch_size is a positive number or (frames, rows, columns)", param="patch_size"
            )
        patch = given
    names = ("out_channels", "out_visual_dim", "in_channels", "in_visual_dim")
    channels = next((config[name] for name in names if config.get(name) is not None), None)
    frames_first = any(base.__name__.startswith(_FRAMES_FIRST) for base in type(transformer).__mro__)
    return LayoutRules(axes, patch, channels, frames_first)


def _patch(size: object, frames: object) -> Patch | None:
    """``patch_size`` and ``patch_size_t`` of a config; ``None`` unless they are positive numbers."""
    sizes = list(size) if isinstance(size, list | tuple) else [size, size]
    if len(sizes) == 2:
        sizes = [1 if frames is None else frames, *sizes]
    numbers = [part for part in sizes if isinstance(part, int) and part > 0]
    if len(sizes) != 3 or len(numbers) != 3:
        return None
    return numbers[0], numbers[1], numbers[2]


@dataclass(frozen=True)
class TensorLayout:
    """How one tensor is split into tokens: a row per batch item and patch, a column per channel and
    place within the patch. A side that is no multiple of the patch has patches of 1.

    Attributes:
        axes: a letter per axis.
        shape, dtype: those of the tensor.
        split: the shape with T, H and W as (patches, patch).
        order: the axes of ``split``, those of rows first.
        rows: number of tokens.
    """

    axes: str
    shape: torch.Size
    dtype: torch.dtype
    split: tuple[int, ...]
    order: tuple[int, ...]
    rows: int

    @classmethod
    def of(cls, value: Tensor, rules: LayoutRules) -> TensorLayout:
        axes = rules.axes_of(value.shape)
        patch = dict(zip("THW", rules.patch, strict=True))
        split: list[int] = []
        rows: list[int] = []
        columns: list[int] = []
        for axis, size in zip(axes, value.shape, strict=True):
            (columns if axis == "C" else rows).append(len(split))
            if axis in patch:
                part = patch[axis] if size % patch[axis] == 0 else 1
                columns.append(len(split) + 1)
                split += [size // part, part]
            else:
                split.append(size)
        count = math.prod(split[axis] for axis in rows)
        return cls(axes, value.shape, value.dtype, tuple(split), (*rows, *columns), count)

    @property
    def width(self) -> int:
        return self.shape.numel() // self.rows

    def to_tokens(self, value: Tensor) -> Tensor:
        """``[rows, width]`` float32; never shares memory with ``value``."""
        tokens = value.reshape(self.split).permute(self.order).reshape(self.rows, -1).float()
        return tokens.clone() if _same_memory(tokens, value) else tokens

    def from_tokens(self, tokens: Tensor) -> Tensor:
        """The tensor again; never shares memory with ``tokens``."""
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        parts = [self.split[axis] for axis in self.order]
        value = tokens.reshape(parts).permute(inverse).reshape(self.shape).to(self.dtype)
        return value.clone() if _same_memory(tokens, value) else value


class OutputLayout:
    """What a transformer returned, apart from the numbers: its type and how its tensors become tokens.

    Every floating point tensor of the output is a modality, the first one ``sample``. Anything else is kept
    as it was.

    Args:
        output: a tensor, a tuple, a list, a diffusers output, or any nesting of them.
        rules: what is known of the transformer's tensors.

    Raises:
        InvalidInput: there is no tensor in it, or one of unknown layout.
    """

    def __init__(self, output: object, rules: LayoutRules) -> None:
        leaves, self._structure = pytree.tree_flatten(output)
        self._rest = [None if _is_sample(leaf) else leaf for leaf in leaves]
        self._places = [place for place, leaf in enumerate(leaves) if _is_sample(leaf)]
        if not self._places:
            raise InvalidInput(
                "the transformer returned no tensor", param="pipe_or_transformer", code="not_supported"
            )
        self.parts = tuple(TensorLayout.of(leaves[place], rules) for place in self._places)
        self._width = max(part.width for part in self.parts)

    @property
    def tokens(self) -> TokenLayout:
        """All batch items are tokens of one branch: a call is decided on as a whole."""
        names = ("sample", *(f"output_{index}" for index in range(1, len(self.parts))))
        return TokenLayout(names, tuple(part.rows for part in self.parts))

    def fits(self, output: object) -> bool:
        """Whether ``output`` has this structure, with tensors of these shapes and types."""
        leaves, structure = pytree.tree_flatten(output)
        if structure != self._structure:
            return False
        places = [place for place, leaf in enumerate(leaves) if _is_sample(leaf)]
        shapes = [(leaves[place].shape, leaves[place].dtype) for place in places]
        return places == self._places and shapes == [(part.shape, part.dtype) for part in self.parts]

    def to_tokens(self, output: object) -> Tensor:
        """``[N, d]`` float32 of an output that fits, modalities one after the other, padded with zeros."""
        leaves = pytree.tree_leaves(output)
        return self._join([leaves[place] for place in self._places])

    def from_tokens(self, tokens: Tensor) -> Any:
        """The output that the transformer would have returned."""
        leaves = list(self._rest)
        split = tokens.split([part.rows for part in self.parts])
        for place, part, rows in zip(self._places, self.parts, split, strict=True):
            leaves[place] = part.from_tokens(rows[:, : part.width])
        return pytree.tree_unflatten(leaves, self._structure)

    def latent_tokens(self, sample: object) -> Tensor | None:
        """The transformer's input as tokens of the same shape, or ``None`` if it has another.

        Where an input has more channels than the output, its first ones are the latent: pipelines add
        conditions behind.
        """
        leaves = [leaf for leaf in pytree.tree_leaves(sample) if _is_sample(leaf)]
        if len(leaves) != len(self.parts):
            return None
        latents = []
        for leaf, part in zip(leaves, self.parts, strict=True):
            if leaf.ndim != len(part.axes):
                return None
            channel = part.axes.index("C")
            latents.append(leaf.narrow(channel, 0, min(part.shape[channel], leaf.shape[channel])))
            if latents[-1].shape != part.shape:
                return None
        return self._join(latents)

    def _join(self, values: Sequence[Tensor]) -> Tensor:
        tokens = [part.to_tokens(value) for part, value in zip(self.parts, values, strict=True)]
        if len(tokens) == 1:
            return tokens[0]
        return torch.cat([pad(rows, (0, self._width - rows.shape[-1])) for rows in tokens])


def _is_sample(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _same_memory(left: Tensor, right: Tensor) -> bool:
    return left.untyped_storage().data_ptr() == right.untyped_storage().data_ptr()
