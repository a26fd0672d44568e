"""What the documentation shows works, and it names every argument."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import httpx
import pytest

from worldcache.client.gym import WorldEnv, WorldFields, WorldVectorEnv

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("path", "count"), [("docs/gymnasium.md", 2), ("README.md", 1)])
def test_the_examples_run(
    path: str, count: int, server: httpx.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)
    blocks = [block for block in blocks if "gymnasium.make" in block]
    assert len(blocks) == count
    for code in blocks:
        here = code.replace("http://127.0.0.1:8000", str(server.base_url))
        exec(here.replace('"WorldCache/doom-v0"', '"WorldCache/World-v0", model="toy"'), {})
    assert capsys.readouterr().out.count("48, 64, 3)") == count


def test_every_argument_is_documented() -> None:
    text = (ROOT / "docs/gymnasium.md").read_text()
    names = {
        name
        for kind in (WorldEnv, WorldVectorEnv)
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    } | set(WorldFields.__annotations__)
    assert {"model", "reward", "autoreset_mode", "num_envs"} < names
    for name in names:
        assert re.search(rf"`{name}`|{name}=", text), name
