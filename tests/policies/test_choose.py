"""From a request to a policy, with what the model's calibration knows."""

from dataclasses import replace

import pytest

from tests.toy import ToyWorldModel
from worldcache.core import ModelInfo, Preset
from worldcache.errors import InvalidInput, PolicyNotCalibrated, UnknownName
from worldcache.policies.choose import choose_policy, is_preset

BARE = ToyWorldModel().info
INFO = replace(
    BARE,
    presets={**BARE.presets, "tuned": Preset("magcache", {"max_skip": 4})},
    calibrations={"magcache": {"ratios": [1.0, 0.5]}},
    auto_preset="tuned",
)


def test_nothing_asked_for_is_the_default_preset():
    assert choose_policy(None, INFO).name == "worldcache"


def test_auto_is_the_calibrated_choice_and_else_the_default():
    assert choose_policy("auto", INFO).name == "magcache"
    assert choose_policy("auto", BARE).name == "worldcache"


@pytest.mark.parametrize("request_", ["tuned", {"policy": "magcache", "max_skip": 4}])
def test_a_calibration_fills_what_is_not_given(request_: object):
    config = choose_policy(request_, INFO).config
    assert (config.ratios, config.max_skip) == ((1.0, 0.5), 4)


def test_a_given_parameter_goes_before_the_calibration():
    assert choose_policy({"policy": "magcache", "ratios": [1, 2]}, INFO).config.ratios == (1.0, 2.0)
    assert choose_policy({"policy": "magcache", "ratios": [1, 2]}, BARE).config.ratios == (1.0, 2.0)
    assert choose_policy({"policy": "magcache", "ratios": None}, INFO).config.ratios == (1.0, 0.5)


@pytest.mark.parametrize(("name", "info"), [("magcache", BARE), ("teacache", BARE), ("teacache", INFO)])
def test_a_policy_without_its_calibration_is_refused(name: str, info: ModelInfo):
    with pytest.raises(PolicyNotCalibrated) as refused:
        choose_policy({"policy": name}, info)
    assert (refused.value.param, refused.value.code) == ("cache.policy", "policy_not_calibrated")


def test_unknown_names():
    with pytest.raises(UnknownName, match="tuned"):
        choose_policy("tunde", INFO)
    with pytest.raises(UnknownName):
        choose_policy({"policy": "magcash"}, INFO)
    with pytest.raises(InvalidInput, match="name of a policy"):
        choose_policy({"max_skip": 4}, INFO)


def test_presets_are_told_from_policies():
    assert [is_preset(name, INFO) for name in ("auto", "tuned", "none", "magcache")] == [True] * 3 + [False]
