"""Imports point one way, and the service's concerns stay out of the library.

Read from the source, so that an import inside a function counts as well.
"""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SERVICE = ("app", "fastapi", "starlette", "uvicorn", "redis", "prometheus_client")

FORBIDDEN = {
    "worldcache": (*SERVICE, "deploy", "ray"),
    "app": ("deploy", "ray"),
    "worldcache/core.py": (
        "torch",
        "diffusers",
        "worldcache.policies",
        "worldcache.engine",
        "worldcache.models",
    ),
    "worldcache/errors.py": ("torch", "worldcache"),
    "worldcache/policies": ("worldcache.engine", "worldcache.models", "worldcache.sampler", "diffusers"),
    "worldcache/sampler.py": ("worldcache.engine", "worldcache.models", "worldcache.policies"),
    "worldcache/models": ("worldcache.engine", "worldcache.api"),
    "worldcache/pipelines": (
        "worldcache.engine",
        "worldcache.models",
        "worldcache.sampler",
        "worldcache.api",
    ),
    "worldcache/engine": ("worldcache.pipelines",),
    "worldcache/engine/denoise.py": ("worldcache.engine.rollout", "worldcache.engine.engine"),
    "worldcache/engine/rollout.py": ("worldcache.engine.engine", "worldcache.engine.thread"),
    "worldcache/engine/engine.py": ("worldcache.engine.thread",),
    "worldcache/client": (
        "torch",
        "diffusers",
        "worldcache.engine",
        "worldcache.models",
        "worldcache.policies",
    ),
}
"""What each part of the tree must not import."""


def sources(part: str) -> list[Path]:
    """The Python files of a file or folder of the tree."""
    path = ROOT / part
    return [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))


def module_name(path: Path) -> str:
    """``worldcache/engine/__init__.py`` as ``worldcache.engine.__init__``."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported(source: str, module: str) -> set[str]:
    """Absolute names of everything that ``source``, the module called ``module``, imports.

    ``from a import b`` counts as both ``a`` and ``a.b``, as ``b`` may be a module.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = module.split(".")[: -node.level]
                base = ".".join([*parent, *([node.module] if node.module else [])])
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def imports_of(path: Path) -> set[str]:
    return imported(path.read_text(), module_name(path))


def environment_reads(source: str) -> Iterator[int]:
    """Lines that name ``os.environ`` or ``os.getenv``, in either way of importing them."""
    readers = ("environ", "environb", "getenv", "getenvb")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in readers:
            yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            if any(alias.name in readers for alias in node.names):
                yield node.lineno


def print_calls(source: str) -> Iterator[int]:
    """Lines that call the built-in ``print``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield node.lineno


def loaded_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after ``statement``."""
    code = f"{statement}; import sys; sys.stdout.write(' '.join(m for m in sys.modules if '.' not in m))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.split())


def test_the_reader_sees_every_form_of_import() -> None:
    source = "import a.b\ndef f():\n    from c import d\n    from . import e\n    from ..g import h\n"
    assert imported(source, "p.q.r") == {"a.b", "c", "c.d", "p.q", "p.q.e", "p.g", "p.g.h"}


def test_the_readers_see_prints_and_the_environment() -> None:
    assert list(print_calls("x.print()\nprint(1)\n")) == [2]
    assert sorted(environment_reads("import os\nos.path\nos.environ['A']\nfrom os import getenv\n")) == [3, 4]


@pytest.mark.parametrize("part", FORBIDDEN)
def test_imports_point_one_way(part: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(part)
        for name in sorted(imports_of(path))
        if any(within(name, package) for package in FORBIDDEN[part])
    ]
    assert not wrong


def test_the_engine_names_no_model() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources("worldcache/engine")
        for name in sorted(imports_of(path))
        if within(name, "worldcache.models")
        and name != "worldcache.models"
        and not within(name, "worldcache.models.base")
    ]
    assert not wrong


def test_only_the_settings_read_the_environment() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in (*sources("worldcache"), *sources("app"))
        if path != ROOT / "app/settings.py"
        for line in environment_reads(path.read_text())
    ]
    assert not wrong


def test_nothing_prints() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in (*sources("worldcache"), *sources("app"))
        for line in print_calls(path.read_text())
    ]
    assert not wrong


@pytest.mark.parametrize(
    "module", ["worldcache", "worldcache.core", "worldcache.errors", "worldcache.client"]
)
def test_light_modules_load_neither_torch_nor_the_service(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} does not exist")
    assert not loaded_after(f"import {module}") & {"torch", "diffusers", *SERVICE}
