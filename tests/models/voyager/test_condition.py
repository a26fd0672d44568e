"""Pictures, masks and latents of the condition against the published tool and the published VAE."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.models.voyager.golden import folder as golden_folder
from tests.models.voyager.golden import read
from tests.models.voyager.tiny import CHECKPOINT, write_folder
from worldcache.cameras import trajectory
from worldcache.models.voyager.codec import Codec, split_pixels, stack_pixels
from worldcache.models.voyager.condition import draw_half, join_channels, mask_latent, view_along
from worldcache.models.voyager.networks import load_codec
from worldcache.models.voyager.scene import (
    Drawing,
    Scene,
    back_project,
    depth_from_relative,
    draw,
    enlarge,
    inverse_range,
    relative_inverse,
)

PATHS = ("forward", "backward", "left", "right", "turn_left", "turn_right")
Golden = dict[str, Any]


@pytest.fixture(scope="module")
def golden() -> Golden:
    return read("voyager_condition", "np")[0]


@pytest.fixture(scope="module")
def scene(golden: Golden) -> Scene:
    return Scene(golden["image"], golden["depth"])


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    folder = write_folder(tmp_path_factory.mktemp("vae"), golden=golden_folder())
    (folder / CHECKPOINT).unlink()
    return load_codec(folder, device=torch.device("cpu"), dtype=torch.float32)


def focal_of(golden: Golden) -> float:
    """Of the full picture: the drawings are half as large."""
    return 2.0 * float(golden["forward.K"][0, 0, 0])


def test_the_camera_is_a_third_of_the_width(golden: Golden) -> None:
    assert focal_of(golden) == golden["image"].shape[1] / 3


def test_points(golden: Golden) -> None:
    np.testing.assert_array_equal(back_project(golden["depth"], focal_of(golden)), golden["points"])


@pytest.mark.parametrize("name", PATHS)
def test_drawings_are_as_published(golden: Golden, scene: Scene, name: str) -> None:
    poses = trajectory(name, len(golden[f"{name}.w2c"]) - 1)
    drawings = draw_half(scene, poses, focal_of(golden))
    np.testing.assert_array_equal([d.image for d in drawings], golden[f"{name}.render"])
    np.testing.assert_array_equal([d.mask for d in drawings], golden[f"{name}.mask"] > 0)
    np.testing.assert_allclose([d.depth for d in drawings], golden[f"{name}.depth"], rtol=1e-6)


def test_the_view_along_a_path_is_as_published(golden: Golden, scene: Scene) -> None:
    view = view_along(scene, trajectory("forward", len(golden["render_png"]) - 1), focal_of(golden))
    np.testing.assert_array_equal(view.rgb, golden["render_png"])
    np.testing.assert_array_equal(view.mask, golden["mask_png"] > 0)
    np.testing.assert_allclose(view.depth, golden["depth_exr"], rtol=0, atol=1e-6)


def test_pixels_and_mask_are_as_published(golden: Golden) -> None:
    tensors = {name: torch.from_numpy(value) for name, value in golden.items()}
    pixels = stack_pixels(tensors["render_png"], tensors["depth_exr"])
    assert torch.equal(pixels, tensors["cond_pixels"])
    reference = stack_pixels(tensors["image"][None], tensors["depth_exr"][:1])
    assert torch.equal(reference, tensors["ref_pixels"])
    assert torch.equal(mask_latent(tensors["mask_png"] > 0)[None], tensors["partial_mask"])


def test_channels_fit_the_published_latents(golden: Golden) -> None:
    reference, drawn, mask = (
        torch.from_numpy(golden[name])[0] for name in ("ref_latents", "partial_cond", "partial_mask")
    )
    channels = join_channels(reference, drawn, mask)
    assert channels.shape == (2 * len(drawn) + 2, *drawn.shape[1:])
    count = len(drawn)
    assert torch.equal(channels[:count, :1], reference) and not channels[:count, 1:].any()
    assert channels[count, 0].eq(1).all() and not channels[count, 1:].any()
    assert torch.equal(channels[count + 1 : -1], drawn) and torch.equal(channels[-1:], mask)


def test_the_vae_is_as_published(codec: Codec) -> None:
    tensors, _ = read("voyager_vae")
    with torch.inference_mode():
        found = codec.vae.encode(tensors["x"].float()).latent_dist
        decoded = codec.decode(tensors["z"][0] * codec.vae.config.scaling_factor)
    assert (found.mean - tensors["moments_mean"]).abs().max() <= 1e-4
    assert (found.logvar - tensors["moments_logvar"]).abs().max() <= 1e-4
    assert (decoded[None, :, ::4] - tensors["decoded_every4"]).abs().max() <= 1e-4


def test_latents_are_drawn_on_the_cpu_and_scaled(codec: Codec) -> None:
    tensors, _ = read("voyager_vae")
    with torch.inference_mode():
        latent = codec.encode(tensors["x"].float(), torch.Generator().manual_seed(3))
    mean, logvar = tensors["moments_mean"][0], tensors["moments_logvar"][0]
    noise = torch.randn(1, *mean.shape, generator=torch.Generator().manual_seed(3))[0]
    expected = (mean + (0.5 * logvar).exp() * noise) * codec.vae.config.scaling_factor
    torch.testing.assert_close(latent, expected, rtol=0, atol=1e-4)


def test_pixels_come_back() -> None:
    rng = np.random.default_rng(0)
    rgb = torch.from_numpy(rng.integers(0, 256, (5, 32, 48, 3), dtype=np.uint8))
    depth = torch.from_numpy(rng.random((5, 32, 48), dtype=np.float32))
    pixels = stack_pixels(rgb, depth)
    assert pixels.shape == (1, 3, 5, 80, 48) and (pixels[:, :, :, 32:48] == 1).all()
    colours, distances = split_pixels(pixels[0])
    torch.testing.assert_close(colours * 255, rgb.float(), rtol=0, atol=1e-4)
    torch.testing.assert_close(distances, depth, rtol=0, atol=1e-6)


def drawing(depth: list[list[float]]) -> Drawing:
    values = np.array(depth)
    return Drawing(np.zeros((*values.shape, 3), np.uint8), values)


def test_the_nearest_point_is_shown_and_the_farthest_one_measured() -> None:
    # Both points are seen in the middle; the image is that of the one at 2, the depth that of the one at 4.
    points = np.array([[0.0, 0.0, 4.0], [0.0, 0.0, 2.0], [0.0, 0.0, -1.0], [0.0, 0.0, 1e5]])
    colours = np.array([[9, 9, 9], [5, 5, 5], [1, 1, 1], [2, 2, 2]], np.uint8)
    seen = draw(points, colours, np.eye(4), 8.0, (4, 4))
    assert seen.image[2, 2].tolist() == [5, 5, 5] and seen.depth[2, 2] == 4.0
    assert seen.mask.sum() == 1


def test_a_frame_that_shows_nothing_or_one_depth_is_0() -> None:
    assert not relative_inverse(drawing([[np.inf, np.inf]])).any()
    assert inverse_range(drawing([[np.inf, np.inf]])) == (0.0, 0.0)
    assert not relative_inverse(drawing([[2.0, 2.0], [np.inf, 2.0]])).any()


def test_depth_comes_back_from_the_relative_one() -> None:
    # Between the percentiles, which all 50 pixels but the outermost lie between.
    depth = np.linspace(1, 5, 50)[None]
    seen = drawing(depth.tolist())
    relative = relative_inverse(seen)
    inner = (relative >= 0) & (relative <= 1)
    assert inner.sum() >= 46
    back = depth_from_relative(relative, *inverse_range(seen))
    np.testing.assert_allclose(back[inner], depth[inner], rtol=1e-5)


def test_enlarging_interpolates_between_centres() -> None:
    # 0 and 4 become 0, 0.25 * 4, 0.75 * 4, 4 along each axis.
    np.testing.assert_allclose(enlarge(np.array([[0.0, 4.0]])), [[0, 1, 3, 4], [0, 1, 3, 4]])
    np.testing.assert_array_equal(enlarge(np.array([[0], [4]], np.uint8)), [[0, 0], [1, 1], [3, 3], [4, 4]])


def test_a_cell_is_known_if_all_its_pixels_are() -> None:
    mask = torch.ones(5, 32, 48, dtype=torch.bool)
    mask[0, 0, 0] = mask[4, 31, 47] = False
    latent = mask_latent(mask)
    assert latent.shape == (1, 2, 10, 6)
    unknown = [place.tolist() for place in (latent[0] < 0).nonzero()]
    # rows 0 to 3 are RGB, 4 and 5 between, 6 to 9 depth
    assert unknown == [[0, 0, 0], [0, 6, 0], [1, 3, 5], [1, 9, 5]]
