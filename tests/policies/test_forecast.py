"""``forecast`` on worlds whose data prediction is known at every noise level."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from worldcache.errors import InvalidInput
from worldcache.policies import Schedule, StepInput, TokenLayout, make_policy
from worldcache.policies.path import log_snr
from worldcache.policies.replay import replay

STEPS = 20
SIGMAS = tuple(1 - step / STEPS for step in range(STEPS))
SNR = log_snr(SIGMAS, tuple(1 - sigma for sigma in SIGMAS))
LAYOUT = TokenLayout(("rgb", "depth"), (3, 2))

Data = Callable[[int, Tensor], Tensor]
"""The data prediction at a step, given the latent there."""


def denoise(data: Data, noise: Tensor, sigmas: tuple[float, ...] = SIGMAS, **parameters: object):
    """Euler with ``forecast``; the final latent, the decisions, and the state at the end."""
    policy = make_policy("forecast", **parameters)
    state = policy.reset(Schedule(sigmas, tuple(1 - s for s in sigmas), LAYOUT))
    latent, decisions = noise, ""
    for step, (sigma, after) in enumerate(zip(sigmas, (*sigmas[1:], 0.0), strict=True)):
        inputs = StepInput()  # there is no latent to look at
        if policy.should_compute(state, step, inputs):
            output = (latent - data(step, latent)) / sigma
            policy.plan(state, policy.learn(state, step, output, inputs).tolist())
            decisions += "F"
        else:
            output = policy.predict(state, step, inputs)
            decisions += "."
        latent = latent + (after - sigma) * output
    return latent, decisions, state


def uncached(data: Data, noise: Tensor) -> Tensor:
    return denoise(data, noise, full_steps=STEPS)[0]


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def test_data_linear_in_log_snr_needs_two_full_steps_before_the_first_prediction(noise: Tensor):
    # FULL at 0, then a streak that can only repeat D0. From the second on the extrapolation is exact.
    slope = torch.linspace(-1, 1, 20).view(5, 4)

    def data(step: int, latent: Tensor) -> Tensor:
        return slope * SNR[step]

    policy = make_policy("forecast", full_steps=3)
    state = policy.reset(Schedule(SIGMAS, tuple(1 - s for s in SIGMAS), LAYOUT))
    latent = noise
    for step in range(state.budget[2]):
        output = (latent - data(step, latent)) / SIGMAS[step]
        if policy.should_compute(state, step, StepInput()):
            policy.plan(state, policy.learn(state, step, output, StepInput()).tolist())
        elif step > state.budget[1] + 1:
            torch.testing.assert_close(policy.predict(state, step, StepInput()), output)
        # The first step after a streak also takes its error back, so it is no plain extrapolation.
        used = output if step in state.budget else policy.predict(state, step, StepInput())
        latent = latent + (SIGMAS[step + 1] - SIGMAS[step]) * used


def test_a_constant_data_prediction_is_a_straight_walk(noise: Tensor):
    result, decisions, _ = denoise(lambda step, latent: torch.ones(5, 4), noise, full_steps=2)
    assert decisions == "F" + "." * 18 + "F"
    torch.testing.assert_close(result, torch.ones(5, 4))


def test_a_streak_without_a_slope_repeats_the_output():
    outputs = torch.arange(6.0).reshape(6, 1, 1)
    result = replay(outputs, "forecast", full_steps=2)
    assert result.output.flatten().tolist() == [0, 0, 0, 0, 0, 5]


def test_the_error_of_a_streak_is_taken_back_in_the_next(noise: Tensor):
    # D is linear in log-SNR: the first streak repeats D0 and is wrong, interpolation is right. So right
    # after the next prediction the latent is where the uncached run has it.
    def data(step: int, latent: Tensor) -> Tensor:
        return torch.full((5, 4), SNR[step])

    policy = make_policy("forecast", full_steps=4)
    state = policy.reset(Schedule(SIGMAS, tuple(1 - s for s in SIGMAS), LAYOUT))
    exact = cached = noise
    for step in range(state.budget[1] + 2):
        sigma, after = SIGMAS[step], SIGMAS[step + 1]
        exact = exact + (after - sigma) * (exact - data(step, exact)) / sigma
        output = (cached - data(step, cached)) / sigma
        if policy.should_compute(state, step, StepInput()):
            policy.plan(state, policy.learn(state, step, output, StepInput()).tolist())
            if step == state.budget[1]:
                assert (cached - exact * sigma / after).abs().max() > 0.01
        else:
            output = policy.predict(state, step, StepInput())
        cached = cached + (after - sigma) * output
    torch.testing.assert_close(cached, exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize("budget", [5, 7, 12])
def test_correcting_brings_the_result_nearer_to_the_uncached_run(noise: Tensor, budget: int):
    # The best data prediction for normally distributed data: x (1 - sigma) / ((1 - sigma)^2 + sigma^2).
    def data(step: int, latent: Tensor) -> Tensor:
        signal = 1 - SIGMAS[step]
        return latent * signal / (signal**2 + SIGMAS[step] ** 2)

    truth = uncached(data, noise)
    errors = [
        (denoise(data, noise, full_steps=budget, correct=correct)[0] - truth).square().mean()
        for correct in (True, False)
    ]
    assert errors[0] < 0.25 * errors[1]


@pytest.mark.parametrize("budget", [1, 2, 3, 7, 12, 19, 20, 50])
def test_a_budget_is_spent_exactly(noise: Tensor, budget: int):
    _, decisions, state = denoise(lambda step, latent: latent.tanh(), noise, full_steps=budget)
    assert decisions.count("F") == min(budget, STEPS)
    assert state.fallbacks == 0


def test_a_tighter_tolerance_computes_more_and_errs_less(noise: Tensor):
    def data(step: int, latent: Tensor) -> Tensor:
        return torch.tanh(latent * 0.3 + 2 * SIGMAS[step])

    truth = uncached(data, noise)
    runs = [denoise(data, noise, tolerance=tolerance) for tolerance in (1e-2, 1e-3, 1e-4)]
    counts = [decisions.count("F") for _, decisions, _ in runs]
    errors = [(latent - truth).square().mean().item() for latent, _, _ in runs]
    assert counts == sorted(set(counts))
    assert errors == sorted(errors, reverse=True)
    for _, decisions, _ in runs:
        assert decisions.startswith("F..F..F") and decisions.endswith("F")


def test_the_expected_error_is_the_remainder_of_linear_extrapolation():
    # D = u^2 in one token: at u0 the extrapolation from u1 and u2 misses by (u0 - u1)(u0 - u2), and at u it
    # will miss by (u - u0)(u - u1). The first is what the evidence says, relative to the output's size.
    levels = tuple(1 / (1 + math.exp(u)) for u in (0.0, 1.0, 3.0, 4.0, 5.0))
    layout = TokenLayout(("rgb",), (1,))
    policy = make_policy("forecast", tolerance=1e9)
    state = policy.reset(Schedule(levels, tuple(1 - s for s in levels), layout))
    state.coordinate = (0.0, 1.0, 3.0, 4.0, 5.0)
    latent = torch.zeros(1, 1)
    for step in range(3):
        output = (latent - state.coordinate[step] ** 2) / levels[step]
        evidence = policy.learn(state, step, output, StepInput()).tolist()
        policy.plan(state, evidence)
        state.next_full = 0
        latent = latent + (levels[step + 1] - levels[step]) * output
    assert evidence[1] == pytest.approx((3 - 1) * (3 - 0) / abs(output.item()), rel=1e-4)
    seen = evidence[1] / (2 * 3)
    expected = (levels[3] - levels[4]) * seen * (4 - 3) * (4 - 1)
    assert state.planned_drift[0] == pytest.approx(expected, rel=1e-4)


def test_the_worst_modality_decides(noise: Tensor):
    calm = torch.tensor([[1.0]] * 3 + [[0.0]] * 2)

    def wild_depth(step: int, latent: Tensor) -> Tensor:
        return torch.sin(9 * SIGMAS[step] * (1 - calm)) + calm

    def wild_everywhere(step: int, latent: Tensor) -> Tensor:
        return torch.sin(9 * SIGMAS[step] * torch.ones(5, 4))

    few = denoise(lambda step, latent: calm.expand(5, 4), noise, tolerance=1e-4)[1].count("F")
    half = denoise(wild_depth, noise, tolerance=1e-4)[1].count("F")
    all_of_it = denoise(wild_everywhere, noise, tolerance=1e-4)[1].count("F")
    assert few < half
    assert abs(half - all_of_it) <= 2


def test_nothing_of_an_output_that_is_not_finite_stays(noise: Tensor):
    spoilt = 9

    def data(step: int, latent: Tensor) -> Tensor:
        return torch.full((5, 4), math.nan if step == spoilt else SNR[step])

    policy = make_policy("forecast", full_steps=6)
    state = policy.reset(Schedule(SIGMAS, tuple(1 - s for s in SIGMAS), LAYOUT))
    state.budget = (0, 4, spoilt, 14, 17, 19)
    latent = noise
    for step in range(STEPS - 1):
        output = (latent - data(step, latent)) / SIGMAS[step]
        if policy.should_compute(state, step, StepInput()):
            policy.plan(state, policy.learn(state, step, output, StepInput()).tolist())
            used = output.nan_to_num()
        else:
            used = policy.predict(state, step, StepInput())
        assert bool(used.isfinite().all()), step
        latent = latent + (SIGMAS[step + 1] - SIGMAS[step]) * used
    assert state.fallbacks == 3


def test_noise_levels_that_do_not_fall_are_refused():
    with pytest.raises(InvalidInput) as refused:
        replay(torch.zeros(3, 1, 1), "forecast", sigmas=[1.0, 0.5, 0.5])
    assert refused.value.param == "sigmas"


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"full_steps": 0}, "cache.full_steps"),
        ({"tolerance": 0}, "cache.tolerance"),
        ({"spacing": 0.5}, "cache.spacing"),
    ],
)
def test_parameters_out_of_bounds_are_refused(parameters: dict[str, float], param: str):
    with pytest.raises(InvalidInput) as refused:
        make_policy("forecast", **parameters)
    assert refused.value.param == param


def test_a_budget_and_a_tolerance_together_are_refused():
    with pytest.raises(InvalidInput, match=r"^policy 'forecast': give .* not both") as refused:
        make_policy("forecast", full_steps=7, tolerance=0.1)
    assert refused.value.param == "cache"


ANGLES = tuple(math.pi / 2 * (1 - step / STEPS) for step in range(STEPS))
V_SCHEDULE = Schedule(
    tuple(math.sin(angle) for angle in ANGLES), tuple(math.cos(angle) for angle in ANGLES), LAYOUT, "v"
)
"""Noise levels that keep the variance, from nothing but noise on."""


def run_v(data: Data, noise: Tensor, **parameters: object) -> tuple[list[Tensor], str, list[Tensor]]:
    """A sampler that adds noise of its own, with v-prediction: outputs, decisions and latents."""
    policy, draws = make_policy("forecast", **parameters), torch.Generator().manual_seed(1)
    state = policy.reset(V_SCHEDULE)
    latent, used, decisions, latents = noise, [], "", []
    for step, (alpha, sigma) in enumerate(zip(V_SCHEDULE.alphas, V_SCHEDULE.sigmas, strict=True)):
        inputs = StepInput(lambda latent=latent: latent)
        full = policy.should_compute(state, step, inputs)
        if full:
            output = (alpha * latent - data(step, latent)) / sigma
            policy.plan(state, policy.learn(state, step, output, inputs).tolist())
        else:
            output = policy.predict(state, step, inputs)
        used.append(output)
        latents.append(latent)
        decisions += "F" if full else "."
        if step < STEPS - 1:  # an ancestral step: whatever D is at the next level, with fresh noise
            clean = alpha * latent - sigma * output
            fresh = torch.randn(noise.shape, generator=draws)
            latent = V_SCHEDULE.alphas[step + 1] * clean + V_SCHEDULE.sigmas[step + 1] * fresh
    return used, decisions, latents


def test_noise_prediction_is_exact_where_the_data_is_linear_in_log_snr(noise: Tensor):
    angles = tuple(math.pi / 2 * (0.95 - 0.9 * step / STEPS) for step in range(STEPS))
    alphas, sigmas = tuple(map(math.cos, angles)), tuple(map(math.sin, angles))
    snr, slope = log_snr(sigmas, alphas), torch.linspace(-1, 1, 20).view(5, 4)
    policy = make_policy("forecast", full_steps=3)
    state = policy.reset(Schedule(sigmas, alphas, LAYOUT, "epsilon"))
    cached = 0
    for step in range(STEPS):
        latent = alphas[step] * slope * snr[step] + sigmas[step] * noise
        inputs = StepInput(lambda latent=latent: latent)
        wanted = (latent - alphas[step] * slope * snr[step]) / sigmas[step]
        if policy.should_compute(state, step, inputs):
            policy.plan(state, policy.learn(state, step, wanted, inputs).tolist())
        elif state.slope is not None:
            torch.testing.assert_close(policy.predict(state, step, inputs), wanted)
            cached += 1
    assert cached


def test_v_prediction_is_exact_where_the_data_is_linear_in_log_snr(noise: Tensor):
    slope, snr = torch.linspace(-1, 1, 20).view(5, 4), log_snr(V_SCHEDULE.sigmas, V_SCHEDULE.alphas)

    def data(step: int, latent: Tensor) -> Tensor:
        return slope * snr[step]

    used, decisions, latents = run_v(data, noise, full_steps=4)
    assert decisions.count("F") == 4 and decisions[0] == decisions[-1] == "F"
    second = decisions.index("F", 1)
    assert "." in decisions[second:]
    for step in range(second, STEPS):
        alpha, sigma, latent = V_SCHEDULE.alphas[step], V_SCHEDULE.sigmas[step], latents[step]
        wanted = (alpha * latent - data(step, latent)) / sigma
        torch.testing.assert_close(used[step], wanted)


def test_v_prediction_needs_levels_that_keep_the_variance():
    flow = Schedule(SIGMAS, tuple(1 - sigma for sigma in SIGMAS), LAYOUT, "v")
    with pytest.raises(InvalidInput, match="keeps the variance"):
        make_policy("forecast").reset(flow)
