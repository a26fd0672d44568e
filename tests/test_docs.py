"""The documentation names everything that exists, with its default."""

from __future__ import annotations

import argparse
import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from app.cli import make_parser
from app.main import create_app
from app.metrics import Metrics
from app.schemas import ListQuery, OutputBody
from app.settings import Settings
from app.store import RolloutRecord
from app.views import stats_json
from worldcache.policies.registry import describe_policies

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_is_documented(name: str) -> None:
    field = Settings.model_fields[name]
    assert field.description
    default = field.default if not isinstance(field.default, tuple) else ",".join(field.default)
    shown = f"`{default}`" if default != "" else "none"
    row = f"| `WORLDCACHE_{name.upper()}` | {shown} | {field.description} |"
    assert row in (DOCS / "settings.md").read_text()


def test_every_metric_is_documented_with_its_labels() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    text = (DOCS / "metrics.md").read_text()
    for collector in registry._names_to_collectors.values():
        name = collector._name + ("_total" if collector._type == "counter" else "")  # type: ignore[attr-defined]
        labels = ", ".join(f"`{label}`" for label in collector._labelnames)  # type: ignore[attr-defined]
        assert f"| `{name}` | {collector._type} | {labels} |" in text  # type: ignore[attr-defined]


@pytest.mark.parametrize("policy", describe_policies(), ids=lambda policy: policy["name"])
def test_every_policy_is_documented_with_its_defaults(policy: dict) -> None:
    text = (DOCS / "policies.md").read_text()
    section = text.partition(f"\n## `{policy['name']}`\n")[2].partition("\n## ")[0]
    assert section, "the policy has no section"
    for name, schema in policy["parameters"].get("properties", {}).items():
        row = re.search(rf"^\| `{name}` \| `?\"?([^|`\"]+)\"?`? \|", section, re.MULTILINE)
        assert row, name
        shown = row.group(1).strip()
        assert shown == str(schema["default"]) or float(shown) == float(schema["default"]), name


def test_links_in_the_readme_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target


def test_every_field_of_a_rollout_and_of_its_request_is_documented() -> None:
    text = (DOCS / "requests.md").read_text()
    schemas = create_app(Settings(), models_by_name={}).openapi()["components"]["schemas"]
    record = RolloutRecord("ro_1", "anyone", "doom", "none", 0, 1, OutputBody.model_validate({}), {})
    names = {*stats_json(record), *ListQuery.model_fields}
    for schema in ("RolloutAnswer", "RolloutBody", "RolloutList"):
        names |= set(fields_below(schema, schemas))
    assert names >= {"skip_ratio", "drift", "fallbacks", "tokens", "depth_scale", "trajectory", "has_more"}
    assert {name for name in names if f"`{name}`" not in text} == set()


def fields_below(name: str, schemas: Mapping[str, Any]) -> Iterator[str]:
    """The fields of a schema and of all that it leads to."""
    yield from schemas[name].get("properties", {})
    for other in re.findall(r"'#/components/schemas/(\w+)'", str(schemas[name])):
        yield from fields_below(other, schemas)


def subcommands() -> dict[str, argparse.ArgumentParser]:
    """The parsers of the command line's subcommands."""
    (actions,) = (a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(actions.choices)


def test_every_subcommand_is_documented_and_no_other_one() -> None:
    sections = re.findall(r"^## ([a-z]+)$", (DOCS / "cli.md").read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(subcommands())
    assert len(sections) > 10


@pytest.mark.parametrize("name", subcommands())
def test_every_option_of_a_subcommand_is_documented_and_no_other_one(name: str) -> None:
    section = (DOCS / "cli.md").read_text().partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert f"worldcache {name}" in section, "there is no example"
    rows = re.findall(r"^\| (.+?) \|", section, re.MULTILINE)
    documented = {option for row in rows for option in re.findall(r"`(--[a-z-]+|[A-Z]+)`", row)}
    actions = [a for a in subcommands()[name]._actions if not isinstance(a, argparse._HelpAction)]
    options = {option for a in actions for option in a.option_strings or [str(a.metavar or a.dest).upper()]}
    assert documented == options


SOURCES = ("app", "worldcache", "deploy")
NO_SOURCES = ("worldcache/client",)
"""What repeats the codes that a server said."""

CONDITIONING = {"task", "prompt", "negative_prompt", "fps", "fov"}
"""Fields for which a model may list values: `app/conditioning.py` makes codes of their names."""


@cache
def source_trees() -> Mapping[Path, ast.Module]:
    """The source, parsed."""
    return {
        path: ast.parse(path.read_text())
        for part in SOURCES
        for path in sorted((ROOT / part).rglob("*.py"))
        if not path.relative_to(ROOT).as_posix().startswith(NO_SOURCES)
    }


def errors_of_the_source(more: str = "") -> dict[str, set[str]]:
    """Every error code that stands anywhere in the source, with the HTTP statuses that stand beside it.

    A code is what is given for a parameter called ``code``, by whatever function or exception has one; an
    attribute or a variable of this name; the value of ``"code"`` in a dictionary; or ``unknown_`` and the
    first argument of ``UnknownName``. What is given and is neither text nor handed on fails the test.

    Args:
        more: another file of the source.
    """
    trees = {**source_trees(), Path("more.py"): ast.parse(more)}
    takers: dict[tuple[Path | None, str], list[str]] = {}
    bases: dict[str, str] = {}
    found: dict[str, set[str]] = defaultdict(set)
    for path, tree in trees.items():
        for scope in ast.walk(tree):
            if isinstance(scope, ast.ClassDef):
                bases[scope.name] = getattr(scope.bases[0], "id", "") if scope.bases else ""
            for node in ast.iter_child_nodes(scope):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    names = [
                        arg.arg for arg in (*node.args.posonlyargs, *node.args.args) if arg.arg != "self"
                    ]
                    if not any(_is_code(arg) for arg in (*node.args.args, *node.args.kwonlyargs)):
                        continue
                    name = scope.name if node.name == "__init__" else node.name  # type: ignore[attr-defined]
                    takers[path if name.startswith("_") else None, name] = names
                    for arg, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
                        if _is_code(arg) and default is not None:
                            found[ast.literal_eval(default)] |= STATUSES[name]
    for path, tree in trees.items():
        for scope in ast.walk(tree):
            for node in ast.walk(scope) if isinstance(scope, ast.ClassDef) else ():
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__":
                    node.func = ast.Name(bases[scope.name])
        for node in ast.walk(tree):
            for code, statuses in _codes_at(node, path, takers):
                found[code] |= statuses
    return found


STATUSES: Mapping[str, set[str]] = defaultdict(
    set, {"InvalidInput": {"422"}, "NotFound": {"404"}, "Unavailable": {"503"}}
)
"""Of exceptions that imply one."""


def _is_code(arg: ast.arg) -> bool:
    return arg.arg == "code" and arg.annotation is not None and ast.unparse(arg.annotation) == "str"


def _codes_at(
    node: ast.AST, path: Path, takers: Mapping[tuple[Path | None, str], list[str]]
) -> Iterator[tuple[str, set[str]]]:
    """The codes that one node of the tree names, each with the statuses that it gives."""
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func).rpartition(".")[2]
        if name == "UnknownName":
            kind = node.args[0]
            if isinstance(kind, ast.Constant):
                yield f"unknown_{kind.value}", {"422"}
            else:
                assert path == ROOT / "app" / "conditioning.py", f"{path}:{node.lineno}"
                yield from ((f"unknown_{field}", {"422"}) for field in CONDITIONING)
        names = takers.get((None, name)) or takers.get((path, name))
        if names is not None:
            given = dict(zip(names, node.args, strict=False)) | {
                k.arg: k.value for k in node.keywords if k.arg
            }
            status = given.get("status")
            statuses = {str(status.value)} if isinstance(status, ast.Constant) else STATUSES[name]
            if "code" in given:
                yield from ((code, statuses) for code in _texts(given["code"], f"{path}:{node.lineno}"))
            elif name == "InvalidInput":
                yield "invalid_value", {"422"}
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        if node.targets[0].id == "code":
            yield from ((code, set()) for code in _texts(node.value))
        elif node.targets[0].id == "_CODES":
            codes = ast.literal_eval(node.value.args[0])  # type: ignore[attr-defined]
            yield from ((code, {str(status)}) for status, code in codes.items())
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "code":
                yield from ((code, set()) for code in _texts(value))


def _texts(node: ast.expr, place: str | None = None) -> list[str]:
    """The texts that an expression may be. With ``place``, it must be one, or a code that is handed on."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.IfExp):
        return _texts(node.body, place) + _texts(node.orelse, place)
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".get") and len(node.args) == 2:
        return _texts(node.args[1], place)
    handed_on = ast.unparse(node) in ("code", "error['code']", "f'unknown_{kind}'") or (
        isinstance(node, ast.Attribute) and node.attr == "code"
    )
    assert place is None or handed_on, f"{place}: which codes can this be?"
    return []


ERROR_ROW = re.compile(r"^\| `([a-z_]+)` \| ([0-9, a-z]+) \| .+ \| .+ \| ([^|]+) \|$", re.MULTILINE)

A_FEW_ERRORS = {
    "bad_request", "http_error", "idempotency_key_reused", "internal_error", "invalid_value", "missing_field",
    "out_of_memory", "policy_not_calibrated", "queue_full", "replica_lost", "request_timeout",
    "storage_failed", "store_unavailable", "too_many_connections", "unknown_action", "unknown_rollout",
    "unknown_task", "worker_lost",
}  # fmt: skip
"""One for each way in which the source names a code."""


def test_every_error_code_is_documented_and_no_other_one() -> None:
    found = errors_of_the_source()
    assert len(found) > 80 and found.keys() >= A_FEW_ERRORS, "the search finds too little"
    rows = ERROR_ROW.findall((DOCS / "errors.md").read_text())
    assert sorted(name for name, _, _ in rows) == sorted(found)
    for name, status, retry_after in rows:
        statuses = set(status.split(", "))
        if statuses.isdisjoint(("none", "any")) and found[name]:
            assert statuses == found[name], name
        if "503" in statuses:
            assert retry_after != "no", name


@pytest.mark.parametrize(
    "source",
    [
        "raise ApiError(409, 'new_code', 'no')",
        "raise ApiError(409, code='new_code', message='no')",
        "raise InvalidInput('no', code='new_code')",
        "raise Unavailable('new_code', 'no', retry_after=1)",
        "raise UnknownName('thing', name, known)",
        "record.error = {'code': 'new_code', 'message': 'no'}",
        "class Broken(WorldCacheError):\n    code = 'new_code'",
        "class Away(Unavailable):\n    def __init__(self):\n        super().__init__('new_code', 'no')",
        "code = 'new_code' if late else 'invalid_value'",
    ],
)
def test_a_new_error_code_is_found(source: str) -> None:
    assert len(errors_of_the_source(source)) == len(errors_of_the_source()) + 1


def test_a_code_that_cannot_be_told_is_not_overlooked() -> None:
    with pytest.raises(AssertionError, match="which codes"):
        errors_of_the_source("raise ApiError(409, choose(), 'no')")
