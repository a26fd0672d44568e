"""What the documentation shows works, and the package stays light."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from worldcache import client
from worldcache.client import errors

ROOT = Path(__file__).parents[2]


def examples(path: str, word: str) -> list[str]:
    """The Python blocks of a document that use the client."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)
    return [block for block in blocks if word in block]


@pytest.mark.parametrize("path", ["docs/client.md", "README.md"])
def test_the_examples_run(
    path: str,
    server: httpx.Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    found = examples(path, "worldcache.client import")
    assert found
    for code in found:
        here = code.replace('"doom"', '"toy"').replace('"http://127.0.0.1:8000"', "")
        exec(here.replace("Client()", f'Client("{server.base_url}")'), {})
    assert capsys.readouterr().out
    assert (tmp_path / "dream.mp4").exists()


def test_every_error_is_exported_and_in_the_tree() -> None:
    names = [
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.ClientError)
    ]
    assert len(names) > 15
    for name in names:
        assert getattr(client, name) is getattr(errors, name)
        assert name in client.__all__
        assert re.search(rf"\b{name}\b", errors.__doc__ or ""), name


@pytest.mark.parametrize("extra", ["PIL", "websockets"])
def test_extras_are_not_imported_before_they_are_needed(extra: str) -> None:
    code = f"import sys, worldcache.client; sys.exit({extra!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
