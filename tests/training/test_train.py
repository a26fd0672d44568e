"""Training on a few made-up frames: it learns, it resumes to the letter, its schedule is as stated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from worldcache.models.doom.transformer import ActionTransformer3DModel
from worldcache.training.collect import Episode
from worldcache.training.data import Batch, WindowDataset, depth_scale, scale_frames
from worldcache.training.muon import Muon, orthogonalise
from worldcache.training.train import TrainConfig, Trainer, augment, learning_rate_at, velocity_loss

CPU = torch.device("cpu")


def episodes(count: int = 3, frames: int = 20) -> list[Episode]:
    rng = np.random.default_rng(0)
    return [
        Episode(
            rng.integers(0, 63, (frames, 48, 64, 4), dtype=np.uint8),
            rng.integers(0, 4, frames, dtype=np.uint8),
            rng.normal(size=(frames, 2)).astype(np.float32),
        )
        for _ in range(count)
    ]


def small_model() -> ActionTransformer3DModel:
    torch.manual_seed(0)
    return ActionTransformer3DModel(width=32, depth=1, heads=2, head_hidden=8)


def trainer(folder: Path, steps: int) -> Trainer:
    config = TrainConfig(steps=steps, batch_size=2, warmup_steps=2, save_every=4)
    return Trainer(small_model(), WindowDataset(episodes(), 4, 4, 62.0), config, folder, CPU)


def test_windows_never_cross_an_episode() -> None:
    parts = episodes(2, 10)
    data = WindowDataset(parts, 4, 4, 62.0)
    assert len(data) == 2 * 3  # 10 frames hold 3 windows of 8
    batch = data.batch(torch.tensor([3]))
    assert torch.equal(batch.actions[0], torch.from_numpy(parts[1].actions[:8]).long())
    assert batch.context.shape == batch.chunk.shape == (1, 4, 4, 48, 64)


def test_frames_are_scaled_to_minus_one_and_one() -> None:
    frames = torch.tensor([0, 255, 255, 31], dtype=torch.uint8).view(1, 1, 1, 1, 4)
    # 31 of 62 depth steps is the middle
    assert scale_frames(frames, 62.0).flatten().tolist() == [-1.0, 1.0, 1.0, 0.0]


def test_depth_scale_is_a_high_quantile() -> None:
    assert 60 <= depth_scale(episodes()) <= 62


def test_augmentation_leaves_the_target_alone() -> None:
    data = WindowDataset(episodes(), 4, 4, 62.0)
    batch = data.batch(torch.arange(12))
    config = TrainConfig(drop_actions=1.0, still_context=1.0, drop_depth=1.0, context_noise=0.0)
    changed = augment(batch, config, 4, torch.Generator().manual_seed(0))
    assert torch.equal(changed.chunk, batch.chunk)
    assert (changed.actions == 4).all()
    assert torch.equal(changed.context[:, :3, 0], batch.context[:, :3, -1])
    assert (changed.context[:, 3:] == 0).all()
    assert not torch.equal(changed.context, batch.context)
    untouched = augment(
        batch,
        TrainConfig(drop_actions=0, still_context=0, drop_depth=0, context_noise=0),
        4,
        torch.Generator(),
    )
    assert isinstance(untouched, Batch) and torch.equal(untouched.context, batch.context)


def test_learning_rate_warms_up_holds_and_decays() -> None:
    config = TrainConfig(steps=1000, warmup_steps=100, decay_share=0.4, final_learning_rate=0.02)
    assert learning_rate_at(49, config) == pytest.approx(0.5)
    assert learning_rate_at(600, config) == pytest.approx(1.0)
    # half of the last 400 steps: .02 + .98 / 2
    assert learning_rate_at(800, config) == pytest.approx(0.51)
    assert learning_rate_at(1000, config) == pytest.approx(0.02)


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 16, 40), (2, 40, 16)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert values.min() > 0.4 and values.max() < 1.4


def test_muon_moves_against_the_gradient() -> None:
    weight = torch.nn.Parameter(torch.zeros(4, 4))
    optimizer = Muon([weight], lr=0.1)
    weight.grad = torch.eye(4)
    optimizer.step()
    # an orthogonal gradient stays the identity, roughly; scale .2 * sqrt(4) = .4
    assert weight.diagonal().mean().item() == pytest.approx(-0.1 * 0.4, rel=0.35)
    assert (weight - weight.diagonal().diag()).abs().max() < 1e-6


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    run = trainer(tmp_path, 12)

    def fixed_loss() -> float:
        batch = run.data.batch(torch.arange(8))
        with torch.no_grad():
            return velocity_loss(run.model, batch, run.config, torch.Generator().manual_seed(5), CPU).item()

    before = fixed_loss()
    run.run()
    assert fixed_loss() < before
    assert run.step == 12


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", 8)
    whole.run()
    half = trainer(tmp_path / "half", 8)
    half.config = TrainConfig(**{**half.config.__dict__, "save_every": 4})
    while half.step < 4:
        half.train_step(half.model)
    half.save()
    again = trainer(tmp_path / "half", 8)
    assert again.resume()
    assert again.step == 4
    again.run()
    for name, value in whole.ema.items():
        assert torch.allclose(value, again.ema[name], atol=1e-6), name


def test_a_new_folder_has_nothing_to_resume(tmp_path: Path) -> None:
    assert not trainer(tmp_path, 4).resume()
