"""Policies by name: what is registered, how a mistake is told, what is imported."""

import json
import subprocess
import sys

import pytest

from tests.policies.contract import PARAMETERS
from worldcache.errors import InvalidInput, UnknownName
from worldcache.policies import describe_policies, get_policy_class, make_policy, policy_names
from worldcache.policies.registry import parameters_of


@pytest.mark.parametrize("name", policy_names())
def test_a_class_is_registered_under_its_own_name(name: str):
    policy_class = get_policy_class(name)
    assert policy_class.name == name
    assert type(make_policy(name)) is policy_class


def test_an_unknown_policy_lists_the_known_ones():
    with pytest.raises(UnknownName, match=r"hicache, interval, .*taylor, teacache, worldcache") as unknown:
        make_policy("wordlcache")
    assert (unknown.value.param, unknown.value.code) == ("cache.policy", "unknown_policy")


def test_an_unknown_parameter_lists_the_allowed_ones():
    with pytest.raises(
        InvalidInput, match=r"no parameter 'n_max'; its parameters are: .*max_skip"
    ) as unknown:
        make_policy("worldcache", n_max=3)
    assert (unknown.value.param, unknown.value.code) == ("cache.n_max", "unknown_parameter")


def test_a_policy_without_parameters_says_so():
    with pytest.raises(InvalidInput, match="its parameters are: none"):
        make_policy("none", name="x")


def test_a_value_of_the_wrong_type_names_its_field():
    with pytest.raises(InvalidInput, match="'max_skip'") as wrong:
        make_policy("worldcache", max_skip="many")
    assert (wrong.value.param, wrong.value.code) == ("cache.max_skip", "invalid_value")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        *((name, PARAMETERS.get(name, {})) for name in policy_names()),
        ("forecast", {"full_steps": 4}),
        ("forecast", {"tolerance": 0.01, "correct": False}),
    ],
)
def test_a_policy_is_made_again_of_its_parameters(name: str, parameters: dict[str, object]):
    policy = make_policy(name, **parameters)
    written = json.loads(json.dumps(parameters_of(policy)))
    assert make_policy(name, **written).config == policy.config


def test_descriptions_hold_every_default_and_say_what_it_means():
    described = {entry["name"]: entry for entry in describe_policies()}
    assert tuple(described) == policy_names()
    for entry in described.values():
        assert set(entry) == {"name", "description", "source", "parameters", "plans_ahead"}
        for schema in entry["parameters"]["properties"].values():
            assert {"default", "description"} <= set(schema)
    assert described["worldcache"]["parameters"]["properties"]["max_skip"]["default"] == 6


def test_a_policy_is_imported_when_it_is_asked_for():
    script = (
        "import sys\n"
        "from worldcache.policies import get_policy_class\n"
        "assert 'worldcache.policies.taylor' not in sys.modules\n"
        "get_policy_class('taylor')\n"
        "assert 'worldcache.policies.taylor' in sys.modules\n"
        "assert 'worldcache.policies.worldcache' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
