"""The built-in backbone: shapes, batches, and how velocity and clean frames relate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from worldcache.models.doom.transformer import ActionTransformer3DModel


@pytest.fixture
def model() -> ActionTransformer3DModel:
    torch.manual_seed(0)
    network = ActionTransformer3DModel(width=32, depth=2, heads=2, head_hidden=8)
    for parameter in network.parameters():  # adaLN-Zero starts as the identity: wake it up
        parameter.data.add_(torch.randn_like(parameter) * 0.02)
    return network.eval()


def inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    shape = (batch, 4, 4, 48, 64)
    timesteps = torch.linspace(1000, 20, batch)
    return torch.randn(shape), timesteps, torch.randn(shape), torch.randint(0, 4, (batch, 8))


def test_patches_come_back(model: ActionTransformer3DModel) -> None:
    frames = torch.randn(2, 3, 4, 48, 64)
    assert torch.equal(model.unpatchify(model.patchify(frames, 2), 2), frames)


def test_a_patch_is_one_place_of_one_time_group(model: ActionTransformer3DModel) -> None:
    frames = torch.zeros(1, 1, 4, 48, 64)
    frames[0, 0, 2:, 8:16, 16:24] = 1.0  # second group, second row, third column
    patches = model.patchify(frames, 2)
    assert patches.shape == (1, 2, 48, 128)
    assert patches.sum(-1).nonzero().tolist() == [[0, 1, 8 + 2]]


@torch.inference_mode()
def test_rows_with_their_own_timesteps_do_not_mix(model: ActionTransformer3DModel) -> None:
    batch = inputs(3)
    together = model(*batch).sample
    for row in range(3):
        alone = model(*(x[row : row + 1] for x in batch)).sample
        assert torch.allclose(together[row], alone[0], atol=1e-6 * float(alone.abs().max()), rtol=1e-4)


@torch.inference_mode()
def test_velocity_leads_to_the_clean_frames(model: ActionTransformer3DModel) -> None:
    noisy, _, context, actions = inputs(2)
    timestep = torch.tensor([500.0, 250.0])
    velocity = model(noisy, timestep, context, actions).sample
    clean = model.predict_clean(noisy, timestep, context, actions)
    sigma = (timestep / 1000).view(-1, 1, 1, 1, 1)
    assert torch.allclose(noisy - sigma * velocity, clean, atol=1e-4)


@torch.inference_mode()
def test_every_input_matters(model: ActionTransformer3DModel) -> None:
    noisy, timestep, context, actions = inputs(1)
    base = model.predict_clean(noisy, timestep, context, actions)
    assert not torch.allclose(base, model.predict_clean(noisy, timestep, context, (actions + 1) % 4))
    assert not torch.allclose(base, model.predict_clean(noisy, timestep, context.flip(2), actions))
    assert not torch.allclose(base, model.predict_clean(noisy, timestep / 2, context, actions))


def test_saved_and_loaded(model: ActionTransformer3DModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = ActionTransformer3DModel.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    with torch.inference_mode():
        assert torch.equal(model(*inputs(1)).sample, again(*inputs(1)).sample)
