"""Policies by name. A policy's module is imported when its name is first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any, TypeAlias

from pydantic import ValidationError

from worldcache.errors import InvalidInput, UnknownName
from worldcache.policies.base import Policy

AnyPolicy: TypeAlias = Policy[Any, Any]

_CLASSES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "none": ("worldcache.policies.none", "NonePolicy"),
        "interval": ("worldcache.policies.interval", "IntervalPolicy"),
        "taylor": ("worldcache.policies.taylor", "TaylorPolicy"),
        "hicache": ("worldcache.policies.hicache", "HiCachePolicy"),
        "easycache": ("worldcache.policies.easycache", "EasyCachePolicy"),
        "teacache": ("worldcache.policies.teacache", "TeaCachePolicy"),
        "magcache": ("worldcache.policies.magcache", "MagCachePolicy"),
        "worldcache": ("worldcache.policies.worldcache", "WorldCachePolicy"),
        "forecast": ("worldcache.policies.forecast", "ForecastPolicy"),
    }
)


def policy_names() -> tuple[str, ...]:
    """The registered names, ``none`` first."""
    return tuple(_CLASSES)


def parameters_of(policy: AnyPolicy) -> dict[str, Any]:
    """The parameters that were set, as JSON; :func:`make_policy` makes the same policy of them again.

    Defaults are left out: a parameter may exclude another one, whatever its value.
    """
    given: dict[str, Any] = policy.config.model_dump(mode="json", exclude_unset=True)
    return given


def describe(policy: AnyPolicy) -> str:
    """A policy in words, with the parameters that were set: ``forecast, full_steps 7``."""
    return ", ".join([policy.name, *(f"{name} {value}" for name, value in parameters_of(policy).items())])


def get_policy_class(name: str) -> type[AnyPolicy]:
    """The class registered as ``name``.

    Raises:
        UnknownName: no policy has this name; ``param`` is ``cache.policy``.
    """
    if name not in _CLASSES:
        raise UnknownName("policy", name, policy_names(), param="cache.policy")
    module, attribute = _CLASSES[name]
    policy_class: type[AnyPolicy] = getattr(import_module(module), attribute)
    return policy_class


def make_policy(name: str, /, **parameters: object) -> AnyPolicy:
    """The policy ``name`` with these parameters; those left out keep their defaults.

    Raises:
        UnknownName: no policy has this name.
        InvalidInput: a parameter is unknown or its value cannot be used; ``param`` is
            ``cache.<parameter>``.
    """
    policy_class = get_policy_class(name)
    try:
        config = policy_class.config_type.model_validate(parameters)
    except ValidationError as error:
        raise _as_invalid_input(policy_class, error) from None
    return policy_class(config)


def describe_policies() -> list[dict[str, Any]]:
    """Every policy as plain data: name, description, source, JSON schema of its parameters, plans_ahead."""
    classes = [get_policy_class(name) for name in policy_names()]
    return [
        {
            "name": policy_class.name,
            "description": policy_class.description,
            "source": policy_class.source,
            "parameters": policy_class.config_type.model_json_schema(),
            "plans_ahead": policy_class.plans_ahead,
        }
        for policy_class in classes
    ]


def _as_invalid_input(policy_class: type[AnyPolicy], error: ValidationError) -> InvalidInput:
    """The first problem that pydantic found, in our words."""
    problem = error.errors(include_url=False)[0]
    if not problem["loc"]:
        return InvalidInput(f"policy {policy_class.name!r}: {problem['msg']}", param="cache")
    field = ".".join(str(part) for part in problem["loc"])
    param = f"cache.{field}"
    if problem["type"] == "extra_forbidden":
        allowed = ", ".join(policy_class.config_type.model_fields) or "none"
        message = f"policy {policy_class.name!r} has no parameter {field!r}; its parameters are: {allowed}"
        return InvalidInput(message, param=param, code="unknown_parameter")
    return InvalidInput(f"policy {policy_class.name!r}, parameter {field!r}: {problem['msg']}", param=param)
