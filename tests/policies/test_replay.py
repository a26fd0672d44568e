"""What ``replay`` accepts, refuses and returns, whatever the policy."""

import pytest
import torch

from worldcache.errors import InvalidInput, UnknownName
from worldcache.policies.replay import replay

OUTPUTS = torch.arange(12.0).reshape(6, 2, 1)


def test_shapes_dtypes_and_skip_ratio():
    result = replay(OUTPUTS, "interval", interval=3)
    assert result.is_full.tolist() == [True, False, False, True, False, False]
    assert result.skip_ratio == pytest.approx(4 / 6)
    assert (result.is_full.dtype, result.output.dtype) == (torch.bool, torch.float32)
    assert (result.drift.dtype, result.token_class.dtype) == (torch.float64, torch.int8)
    assert (result.output.shape, result.token_class.shape) == ((6, 2, 1), (6, 2))


def test_half_precision_is_replayed_in_float32():
    assert replay(OUTPUTS.bfloat16(), "none").output.dtype == torch.float32


def test_worldcache_is_the_default():
    # Six steps within a warmup of five and the forced last step: nothing to skip, but drift is measured.
    result = replay(OUTPUTS)
    assert bool(result.is_full.all())
    assert result.drift.tolist() == [0.0] * 6


@pytest.mark.parametrize("sigmas", [[1.0] * 6, torch.ones(6), None])
def test_sigmas_in_any_form(sigmas: list[float] | torch.Tensor | None):
    assert replay(OUTPUTS, "none", sigmas=sigmas).skip_ratio == 0.0


@pytest.mark.parametrize(
    ("param", "arguments"),
    [
        ("outputs", {"outputs": OUTPUTS[0]}),
        ("outputs", {"outputs": OUTPUTS[:0]}),
        ("outputs", {"outputs": OUTPUTS.long()}),
        ("outputs", {"outputs": OUTPUTS.tolist()}),
        ("latents", {"outputs": OUTPUTS, "latents": OUTPUTS[1:]}),
        ("latents", {"outputs": OUTPUTS, "latents": OUTPUTS.long()}),
        ("sigmas", {"outputs": OUTPUTS, "sigmas": [1.0, 0.5]}),
        ("sigmas", {"outputs": OUTPUTS, "sigmas": [float("nan")] * 6}),
        ("sigmas", {"outputs": OUTPUTS, "sigmas": ["high"] * 6}),
        ("sigmas", {"outputs": OUTPUTS, "sigmas": 1.0}),
        ("cache.max_skip", {"outputs": OUTPUTS, "max_skip": 0}),
        ("cache.name", {"outputs": OUTPUTS, "name": "taylor"}),
    ],
)
def test_an_argument_that_does_not_fit_is_named(param: str, arguments: dict[str, object]):
    with pytest.raises(InvalidInput) as refused:
        replay(**arguments)
    assert refused.value.param == param


def test_an_unknown_policy_is_refused():
    with pytest.raises(UnknownName):
        replay(OUTPUTS, "fastest")
