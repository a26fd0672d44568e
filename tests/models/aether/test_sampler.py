"""The sampler takes the steps of diffusers' scheduler, and its draws."""

from __future__ import annotations

import pytest
import torch
from diffusers import CogVideoXDPMScheduler

from tests.models.aether.tiny import CONFIGS
from worldcache.sampler import CogVideoXDPMSampler


def make(**changes: object) -> CogVideoXDPMScheduler:
    return CogVideoXDPMScheduler(**{**CONFIGS["scheduler"], **changes})


@pytest.mark.parametrize("steps", [1, 2, 4, 24, 50])
@pytest.mark.parametrize("changes", [{}, {"set_alpha_to_one": False}, {"rescale_betas_zero_snr": False}])
def test_it_is_diffusers_scheduler(steps: int, changes: dict[str, object]) -> None:
    scheduler, sampler = make(**changes), CogVideoXDPMSampler(make(**changes), steps)
    scheduler.set_timesteps(steps)
    assert sampler.timesteps == tuple(map(float, scheduler.timesteps.tolist()))
    theirs = ours = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    draws = torch.Generator().manual_seed(2)
    their_draws, our_draws = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    old = None
    for index, timestep in enumerate(scheduler.timesteps):
        output = torch.randn(2, 3, generator=draws)
        back = scheduler.timesteps[index - 1] if index else None
        theirs, old = scheduler.step(
            output, old, timestep, back, theirs, generator=their_draws, return_dict=False
        )
        ours = sampler.step(index, output, ours, our_draws)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert torch.equal(our_draws.get_state(), their_draws.get_state())


def test_levels_are_read_from_the_schedule() -> None:
    scheduler = make()
    sampler = CogVideoXDPMSampler(make(), 10)
    assert sampler.deltas is None
    assert sampler.alphas[0] == 0
    assert sampler.sigmas[0] == 1
    assert list(sampler.sigmas) == sorted(sampler.sigmas, reverse=True)
    for timestep, alpha, sigma in zip(sampler.timesteps, sampler.alphas, sampler.sigmas, strict=True):
        assert alpha**2 == pytest.approx(scheduler.alphas_cumprod[int(timestep)].item())
        assert alpha**2 + sigma**2 == pytest.approx(1)


def test_a_fresh_one_remembers_nothing() -> None:
    first = CogVideoXDPMSampler(make(), 4)
    second = first.fresh()
    latent, output = torch.ones(2), torch.ones(2)
    first.step(0, output, latent, torch.Generator().manual_seed(0))
    assert second._clean is None
    assert second.timesteps == first.timesteps
