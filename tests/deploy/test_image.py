"""The Dockerfile: its linter, what it keeps out, and its entry point as a confined process."""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from app.settings import Settings
from tests.browser.proxy import free_port
from tests.deploy.image import (
    Image,
    can_confine,
    confined,
    container_command,
    container_environment,
    instructions,
    read_image,
)
from tests.deploy.tools import DOCKER, ROOT, run_tool

DOCKERFILE = ROOT / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
KEY = "wc_neverInTheLog-0123456789"
READY_SECONDS = 120.0


def test_hadolint_has_nothing_to_say() -> None:
    assert run_tool("hadolint", "--failure-threshold", "style", DOCKERFILE) == ""


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_the_image_is_confined(variant: str) -> None:
    image = read_image(DOCKERFILE, VARIANT=variant)
    assert image.user == "10001:10001"
    assert list(image.entrypoint) == ["worldcache", "serve"]
    assert image.env["WORLDCACHE_DEVICES"] == {"cpu": "cpu", "cuda": "cuda:0"}[variant]
    assert image.env["HF_HOME"].startswith("/tmp/") and image.env["XDG_CACHE_HOME"].startswith("/tmp/")
    names = {name.removeprefix("WORLDCACHE_").lower() for name in image.env if name.startswith("WORLDCACHE_")}
    assert names <= set(Settings.model_fields)


def test_no_secret_gets_into_a_layer() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*", "nothing gets in that is not named"
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    sources = {
        source
        for name, rest in instructions(DOCKERFILE)
        if name == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert {re.sub(r"\$\{\w+\}", "*", source) for source in sources} == allowed
    given = " ".join(rest for name, rest in instructions(DOCKERFILE) if name in ("ARG", "ENV", "LABEL"))
    assert not re.search(r"(?i)key|token|secret|password", given)


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_the_lock_holds_what_the_service_needs(variant: str) -> None:
    text = (DOCKER / f"requirements-{variant}.lock").read_text()
    locked = dict(re.findall(r"^([\w.-]+)==([\w.+]+)", text, re.MULTILINE))
    assert text.count("--hash=sha256:") >= len(locked) > 30
    asked = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["server"]]
    for requirement in asked:
        assert re.match(r"[\w-]+", requirement)[0].lower() in locked, requirement  # type: ignore[index]
    constraints = dict(
        re.findall(r"^([\w.-]+)==([\w.+]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    )
    pinned = {name.lower().replace("_", "-"): version for name, version in constraints.items()}
    for name, version in locked.items():
        if name in pinned:
            assert version.partition("+")[0] == pinned[name], name
    assert locked["torch"].endswith("+cpu") == (variant == "cpu")


@dataclass
class Container:
    """A process as the image would start it."""

    image: Image
    port: int
    environment: dict[str, str]
    process: subprocess.Popen[bytes] = field(init=False)

    def healthy(self) -> bool:
        """What the image's health check says."""
        command = list(self.image.healthcheck)
        done = subprocess.run(command, env=self.environment, capture_output=True, timeout=30)
        return done.returncode == 0

    def wait_until_ready(self, http: httpx.Client) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, "the server ended"
            try:
                if http.get("/readyz").is_success:
                    return
            except httpx.TransportError:
                pass  # it does not listen yet
            time.sleep(0.1)
        raise TimeoutError("the server is not ready")


@contextmanager
def container(log: Path) -> Iterator[Container]:
    """Run the image's entry point as its user, with a root that cannot be written; its log goes to a file."""
    image, port = read_image(DOCKERFILE, VARIANT="cpu"), free_port()
    environment = container_environment(
        image,
        WORLDCACHE_HOST="127.0.0.1",
        WORLDCACHE_PORT=str(port),
        WORLDCACHE_API_KEYS=KEY,
        WORLDCACHE_LOG_LEVEL="debug",
    )
    running = Container(image, port, environment)
    command = container_command(image, PROJECT["scripts"])
    if can_confine():
        command = confined(command, image.user)
    with log.open("wb") as output:
        running.process = subprocess.Popen(command, cwd="/", env=environment, stdout=output, stderr=output)
        try:
            yield running
        finally:
            running.process.kill()
            running.process.wait()


def test_the_process_of_a_container_can_write_to_tmp_only() -> None:
    if not can_confine():
        pytest.skip("this machine does not let us take rights away from a process")
    script = f"id -u; touch /tmp/here && echo tmp; touch /here {ROOT}/here; ls {ROOT}/pyproject.toml"
    done = subprocess.run(confined(["sh", "-c", script], "10001:10001"), capture_output=True, text=True)
    assert done.stdout.splitlines() == ["10001", "tmp", f"{ROOT}/pyproject.toml"], done


@pytest.mark.server
def test_the_entry_point_serves_drains_and_keeps_keys_out_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with container(log) as running:
        auth = {"Authorization": f"Bearer {KEY}", "X-Request-ID": "req-of-the-test"}
        with httpx.Client(base_url=f"http://127.0.0.1:{running.port}", timeout=60) as http:
            running.wait_until_ready(http)
            assert http.get("/livez").is_success
            assert running.healthy()
            body = {
                "model": "doom",
                "observation": {"start": "centre"},
                "actions": [1] * 4,
                "num_inference_steps": 4,
            }
            answer = http.post(f"/v1/rollouts?key={KEY}", json=body, headers=auth)
            assert answer.is_success and answer.json()["frames_done"] == 4, answer.text
        offered = base64.urlsafe_b64encode(KEY.encode()).decode().rstrip("=")
        with pytest.raises(InvalidStatus):
            connect(
                f"ws://127.0.0.1:{running.port}/v1/sessions/none/ws?key={KEY}",
                subprotocols=["worldcache", f"bearer.{offered}"],  # type: ignore[list-item]
            )
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60) == 0
        assert not running.healthy()
    text = log.read_text()
    assert KEY not in text and offered not in text
    entries = [json.loads(line) for line in text.splitlines()]
    (access,) = [entry for entry in entries if entry.get("route") == "/v1/rollouts"]
    assert access["request_id"] == "req-of-the-test" and access["status"] == 200
    assert access["duration_ms"] > 0 and access["level"] == "info" and access["path"] == "/v1/rollouts"
    assert {entry["level"] for entry in entries if entry.get("route") == "/livez"} == {"debug"}
