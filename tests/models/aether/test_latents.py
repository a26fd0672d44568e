"""Where frames, pictures and tokens lie in latents."""

from __future__ import annotations

import torch

from worldcache.models.aether.latents import (
    AetherTokens,
    assemble_condition,
    latent_frames,
    pack_raymap,
    unpack_raymap,
)


def test_ray_maps_are_folded_with_the_slow_index_first() -> None:
    frames = torch.arange(17.0).view(17, 1, 1, 1).expand(17, 6, 2, 3)
    packed = pack_raymap(frames)
    assert packed.shape == (5, 24, 2, 3)
    # 20 frames: 0, 1, 2 again, then 0 to 16; latent frame t holds t, t + 5, t + 10 and t + 15 of these
    assert packed[0, ::6, 0, 0].tolist() == [0, 2, 7, 12]
    assert packed[4, ::6, 0, 0].tolist() == [1, 6, 11, 16]
    assert torch.equal(unpack_raymap(packed, 17), frames)


def test_ray_maps_of_whole_groups_are_not_padded() -> None:
    frames = torch.randn(8, 6, 2, 2)
    assert torch.equal(unpack_raymap(pack_raymap(frames), 8), frames)


def test_pictures_have_their_slots() -> None:
    image, goal, rays = (
        torch.ones(1, 16, 2, 2),
        torch.full((1, 16, 2, 2), 2.0),
        torch.full((5, 24, 2, 2), 3.0),
    )
    condition, unguided = assemble_condition(image, goal, rays, length=5, task="planning")
    assert condition[:, 0, 0, 0].tolist() == [1, 0, 0, 0, 2]
    assert (condition[:, 16:] == 3).all()
    assert unguided is not None
    assert (unguided[:, :16] == 0).all()
    assert (unguided[:, 16:] == 3).all()


def test_prediction_forgets_the_image_alone() -> None:
    image = torch.ones(1, 16, 2, 2)
    condition, unguided = assemble_condition(image, None, None, length=5, task="prediction")
    assert unguided is not None
    assert condition.abs().sum() == condition[0, :16].sum() > 0
    assert (unguided == 0).all()


def test_reconstruction_has_no_second_branch() -> None:
    video = torch.randn(5, 16, 2, 2)
    condition, unguided = assemble_condition(video, None, None, length=5, task="reconstruction")
    assert torch.equal(condition[:, :16], video)
    assert unguided is None


def test_tokens_are_latent_pixels_by_modality() -> None:
    view = AetherTokens((3, 56, 2, 4))
    output = torch.randn(2, 3, 56, 2, 4)
    tokens = view.to_tokens(output)
    assert tokens.shape == (2 * 3 * 24, 24)
    assert view.layout.names == ("rgb", "depth", "raymap")
    assert view.layout.counts == (24, 24, 24)
    assert torch.equal(tokens[0, :16], output[0, 0, :16, 0, 0])
    assert (tokens[0, 16:] == 0).all()
    assert torch.equal(tokens[24 + 1, :16], output[0, 0, 16:32, 0, 1])
    assert torch.equal(tokens[-1], output[1, 2, 32:, 1, 3])
    assert torch.equal(view.from_tokens(tokens), output)


def test_latent_frames_hold_four_but_for_the_first() -> None:
    assert [latent_frames(frames) for frames in (1, 17, 25, 33, 41)] == [1, 5, 7, 9, 11]
