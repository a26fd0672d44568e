"""Tokens by hand."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from tests.pipelines.by_hand import to_tokens
from worldcache.errors import InvalidInput
from worldcache.pipelines.layout import LayoutRules, OutputLayout, layout_rules

ONE = (1, 1, 1)


def numbered(*shape: int) -> Tensor:
    count = torch.Size(shape).numel()
    return torch.arange(count, dtype=torch.float32).reshape(shape)


def rules(axes: str | None = None, patch: tuple[int, int, int] = ONE, channels: int = 4) -> LayoutRules:
    return LayoutRules(axes, patch, channels)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((2, 4, 3, 6, 8), "BCTHW"),
        ((2, 3, 4, 6, 8), "BTCHW"),
        ((2, 3, 6, 8, 4), "BTHWC"),
        ((2, 4, 4, 6, 8), "BCTHW"),
        ((2, 5, 3, 6, 8), "BCTHW"),
        ((2, 4, 6, 8), "BCHW"),
        ((2, 6, 8, 4), "BHWC"),
        ((4, 1, 6, 8), "CTHW"),
        ((2, 5, 4), "BNC"),
        ((2, 4, 5), "BCN"),
        ((4, 4), "NC"),
    ],
)
def test_the_channels_tell_the_layout(shape: tuple[int, ...], axes: str) -> None:
    assert rules().axes_of(torch.Size(shape)) == axes


def test_frames_before_channels_where_the_shape_cannot_tell() -> None:
    assert LayoutRules(None, ONE, 4, frames_first=True).axes_of(torch.Size((2, 4, 4, 6, 8))) == "BTCHW"
    assert LayoutRules(None, ONE, 4, frames_first=True).axes_of(torch.Size((2, 4, 3, 6, 8))) == "BCTHW"


@pytest.mark.parametrize("given", [None, "BNC"])
def test_a_shape_without_a_layout_is_named(given: str | None) -> None:
    with pytest.raises(InvalidInput) as caught:
        rules(given).axes_of(torch.Size((1, 2, 3, 4, 5, 6)))
    assert caught.value.param == "layout"


def test_a_patch_is_a_token() -> None:
    video = numbered(1, 2, 1, 2, 4)  # two channels, two patches of 2 x 2
    layout = OutputLayout(video, rules("BCTHW", (1, 2, 2)))
    assert layout.to_tokens(video).tolist() == [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]
    assert torch.equal(layout.from_tokens(layout.to_tokens(video)), video)


@pytest.mark.parametrize("axes", ["BCTHW", "BTCHW", "BTHWC", "BCHW", "BHWC", "CTHW", "BNC"])
@pytest.mark.parametrize("patch", [ONE, (1, 2, 2), (2, 3, 2)])
def test_any_layout_there_and_back(axes: str, patch: tuple[int, int, int]) -> None:
    sizes = {"B": 2, "C": 3, "T": 4, "H": 6, "W": 8, "N": 5}
    value = numbered(*(sizes[axis] for axis in axes))
    layout = OutputLayout((value,), rules(axes, patch))
    tokens = layout.to_tokens((value,))
    by_hand = to_tokens(value, axes, patch)
    assert torch.equal(tokens.sort(dim=1).values, by_hand.sort(dim=1).values)
    assert layout.tokens.counts == (len(by_hand),)
    assert torch.equal(layout.from_tokens(tokens)[0], value)


def test_tokens_share_no_memory_with_outputs() -> None:
    value = numbered(1, 5, 4)
    layout = OutputLayout(value, rules())
    tokens = layout.to_tokens(value)
    back = layout.from_tokens(tokens)
    value.zero_()
    assert tokens.sum() == back.sum() == 190
    back.zero_()
    assert tokens.sum() == 190


def test_a_side_that_is_no_multiple_has_patches_of_one() -> None:
    layout = OutputLayout(numbered(1, 4, 3, 6, 5), rules("BCTHW", (2, 2, 2)))
    assert layout.tokens.counts == (3 * 3 * 5,)


def test_several_tensors_are_modalities_of_one_width() -> None:
    video, sound = numbered(1, 4, 1, 2, 2), numbered(1, 3, 6)
    layout = OutputLayout((video, None, sound), rules())
    assert layout.tokens.names == ("sample", "output_1")
    assert layout.tokens.counts == (4, 3)
    tokens = layout.to_tokens((video, None, sound))
    assert tokens.shape == (7, 6)
    assert torch.equal(tokens[:4, 4:], torch.zeros(4, 2))
    back = layout.from_tokens(tokens)
    assert torch.equal(back[0], video) and back[1] is None and torch.equal(back[2], sound)


@pytest.mark.parametrize(
    "output",
    [
        numbered(1, 5, 4),
        (numbered(1, 5, 4),),
        [numbered(1, 5, 4).bfloat16()],
        Transformer2DModelOutput(sample=numbered(1, 5, 4)),
        Transformer2DModelOutput(sample=[numbered(4, 1, 2, 2), numbered(4, 1, 4, 2)]),
    ],
    ids=["tensor", "tuple", "list", "output", "list in output"],
)
def test_the_type_comes_back(output: object) -> None:
    layout = OutputLayout(output, rules())
    back = layout.from_tokens(layout.to_tokens(output))
    assert type(back) is type(output)
    assert layout.fits(back)
    assert torch.equal(layout.to_tokens(back), layout.to_tokens(output))


def test_what_does_not_fit() -> None:
    layout = OutputLayout((numbered(1, 5, 4),), rules())
    for other in (numbered(1, 5, 4), (numbered(1, 6, 4),), (numbered(1, 5, 4).bfloat16(),)):
        assert not layout.fits(other)


def test_an_output_without_a_tensor_is_refused() -> None:
    with pytest.raises(InvalidInput) as caught:
        OutputLayout((3, None), rules())
    assert caught.value.code == "not_supported"


def test_the_latent_is_the_first_channels_of_the_input() -> None:
    output, extended = numbered(1, 4, 1, 2, 2), numbered(1, 6, 1, 2, 2)
    layout = OutputLayout((output,), rules())
    latent = layout.latent_tokens(extended)
    assert latent is not None
    assert torch.equal(latent, layout.to_tokens((extended[:, :4],)))
    assert layout.latent_tokens(numbered(1, 3, 1, 2, 2)) is None
    assert layout.latent_tokens(numbered(1, 4, 2, 2, 2)) is None
    assert layout.latent_tokens(numbered(1, 4, 4)) is None
    assert layout.latent_tokens(None) is None


class Configured(nn.Module):
    def __init__(self, **config: object) -> None:
        super().__init__()
        self.config = config


class CogVideoXLike(Configured):
    """Not one by name."""


@pytest.mark.parametrize(
    ("config", "patch", "channels"),
    [
        ({"patch_size": 2, "out_channels": 8, "in_channels": 4}, (1, 2, 2), 8),
        ({"patch_size": 2, "patch_size_t": None, "out_channels": None, "in_channels": 4}, (1, 2, 2), 4),
        ({"patch_size": 2, "patch_size_t": 2}, (2, 2, 2), None),
        ({"patch_size": [1, 2, 3]}, (1, 2, 3), None),
        ({"patch_size": (2, 3)}, (1, 2, 3), None),
        ({}, (1, 1, 1), None),
    ],
)
def test_the_config_tells_patches_and_channels(config: dict, patch: tuple, channels: int | None) -> None:
    found = layout_rules(Configured(**config), None, None)
    assert (found.patch, found.channels) == (patch, channels)


def test_a_given_patch_goes_first() -> None:
    assert layout_rules(Configured(patch_size=2), None, 4).patch == (1, 4, 4)
    assert layout_rules(Configured(patch_size=2), None, (2, 4, 4)).patch == (2, 4, 4)
