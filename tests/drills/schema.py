"""Generated requests over the whole OpenAPI description, against a server with a toy model.

``python -m tests.drills.schema --requests 20000 --output benchmarks/schema.md``

Half of the requests follow the schema and half break it somewhere. Most are then given names that exist, of
the model, a rollout or a session, so that they get past the first check. Every answer must have a status, a
content type and a shape that the description has for it, and no 5xx but 503 and 504.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis.specs.openapi import checks as openapi_checks

from tests.app.conftest import rollout_body, serving

ACTIONS = ("NOOP", "MOVE_LEFT", 2, 3)
CHECKS = [
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
]
DELIBERATE = (503, 504)
MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
NEEDED = ("model", "observation", "actions", "candidates", "steps", "to_frame", "cache", "snapshot")
ROUND = 6
"""Requests of an operation and kind before the next one has its turn."""

REFRESH_EVERY = 12


@dataclass
class Findings:
    """What came of it.

    Attributes:
        statuses: of the answers to each operation.
        failures: what must not be, with the request.
        unsent: requests that no client can send, such as headers with a line break.
    """

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    unsent: int = 0
    seconds: float = 0.0

    @property
    def requests(self) -> int:
        return sum(sum(counted.values()) for counted in self.statuses.values())


class World:
    """Things that exist on the server, for requests to name."""

    def __init__(self, client: httpx.Client, seed: int) -> None:
        self._client, self._dice = client, random.Random(seed)
        self._ids: dict[str, list[str]] = {"rollout_id": [], "session_id": [], "video": []}
        for _ in range(4):
            self.refresh()

    def refresh(self) -> None:
        """Make some more."""
        rollout = self._client.post("/v1/rollouts", json=rollout_body(output={"format": "webp"}))
        if rollout.is_success:
            name = rollout.json()["id"]
            self._ids["rollout_id"].append(name)
            self._ids["video"].append(name.replace("ro_", "video_", 1))
        body = {"model": "toy", "observation": {"start": "centre"}, "num_inference_steps": 4}
        session = self._client.post("/v1/sessions", json=body)
        if session.is_success:
            self._ids["session_id"].append(session.json()["id"])

    def inhabit(self, case: Any) -> None:
        """Put names that exist into a request, in most cases."""
        dice = self._dice
        for name in list(case.path_parameters or ()):
            known = ["toy"] if name == "model_id" else self._ids.get(name, [])
            if known and dice.random() < 0.75:
                case.path_parameters[name] = dice.choice(known[-8:])
        if isinstance(case.body, dict) and dice.random() < 0.75:
            case.body = self._plausible(case.body)
            if case.path.startswith("/v1/videos") and self._dice.random() < 0.85:
                unsure = ("seconds", "size", "fps", "input_reference", "actions")
                kept = {name: value for name, value in case.body.items() if name not in unsure}
                case.body = {**kept, "model": "toy", "num_frames": 4}

    def _plausible(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body with names that exist, or with most of its fields left out."""
        dice, changed = self._dice, dict(body)
        if dice.random() < 0.5:
            for name in [name for name in body if name not in NEEDED]:
                if dice.random() < 0.75:
                    del changed[name]
        if "model" in body:
            changed["model"] = "toy"
        if "observation" in body:
            changed["observation"] = {"start": "centre"}
        if "actions" in body:
            changed["actions"] = [dice.choice(ACTIONS) for _ in range(dice.choice((1, 4, 6)))]
        if "candidates" in body:
            changed["candidates"] = [[dice.choice(ACTIONS)] * 4 for _ in range(dice.choice((1, 2)))]
        if "steps" in body and self._ids["session_id"]:
            names = [dice.choice(self._ids["session_id"][-8:]) for _ in range(2)]
            changed["steps"] = [{"session_id": name, "actions": ["NOOP"]} for name in names]
        usual = {
            "cache": dice.choice(("fast", "balanced", {"policy": "interval", "interval": 3})),
            "conditioning": {},
            "step_id": None,
            "frames_per_step": 4,
            "output": {"format": dice.choice(("png", "jpeg"))},
        }
        changed |= {name: value for name, value in usual.items() if name in changed and dice.random() < 0.85}
        if "num_inference_steps" in body and dice.random() < 0.8:
            changed["num_inference_steps"] = dice.choice((None, 1, 4, 10))
        return changed


def run(url: str, count: int, seed: int) -> Findings:
    """Send so many requests.

    Args:
        url: of a server with the toy model.
        count: of requests, at least.
        seed: the same one makes the same requests, but for the names of what the server made.
    """
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    findings, began = Findings(), time.monotonic()
    with httpx.Client(base_url=url, timeout=60) as client, requests.Session() as session:
        world = World(client, seed)
        for number in range(count):
            for operation in operations:
                if findings.requests >= count:
                    findings.seconds = time.monotonic() - began
                    return findings
                for mode in MODES:
                    _try(operation, mode, hash_of(seed, number), world, session, findings)
    raise AssertionError("no operation can be generated")


def hash_of(seed: int, number: int) -> int:
    """A seed for each round."""
    return seed * 1_000_003 + number


def _try(
    operation: Any, mode: Any, seed: int, world: World, session: requests.Session, findings: Findings
) -> None:
    """Send some requests to an operation; none if it has nothing that could be wrong."""
    counted = findings.statuses.setdefault(operation.label, Counter())

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=ROUND,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        if findings.requests % REFRESH_EVERY == 0:
            world.refresh()
        world.inhabit(case)
        try:
            response = case.call(session=session, timeout=60)
        except (requests.exceptions.InvalidHeader, requests.exceptions.InvalidURL, UnicodeError):
            findings.unsent += 1
            return
        counted[response.status_code] += 1
        problem = _problem(case, response)
        if problem is not None:
            findings.failures.append(f"{operation.label}: {problem}\n  {case.as_curl_command()[:2000]}")

    try:
        send()
    except (hypothesis.errors.Unsatisfiable, hypothesis.errors.InvalidArgument):
        pass  # a request without parameters cannot be made wrong


def _problem(case: Any, response: Any) -> str | None:
    """What is wrong with an answer."""
    if response.status_code >= 500 and response.status_code not in DELIBERATE:
        return f"{response.status_code} {response.content[:500]!r}"
    try:
        case.validate_response(response, checks=CHECKS)
    except (AssertionError, schemathesis.errors.SchemathesisError, BaseExceptionGroup) as error:
        parts = error.exceptions if isinstance(error, BaseExceptionGroup) else (error,)
        told = "; ".join(f"{type(part).__name__}: {part}" for part in parts)
        return f"{response.status_code} {told[:1500]}"
    return None


@contextmanager
def drill_server() -> Iterator[httpx.Client]:
    """A server whose limits are low, so that every request is quick."""
    limits: dict[str, Any] = {
        "max_frames": 16,
        "max_inference_steps": 20,
        "max_sessions": 10_000,
        "max_sessions_per_client": 10_000,
        "session_ttl_seconds": 60,
        "plan_max_candidates": 4,
        "plan_max_frames": 32,
        "model_wait_seconds": 5,
    }
    with serving(**limits) as client:
        yield client


def as_markdown(findings: Findings, seed: int) -> str:
    """The report."""
    total: Counter[int] = sum(findings.statuses.values(), Counter())
    wrong = sum(n for status, n in total.items() if status >= 500 and status not in DELIBERATE)
    lines = [
        "# Generated requests",
        "",
        f"{findings.requests} requests over the {len(findings.statuses)} operations of the OpenAPI "
        f"description, seed {seed}, in {findings.seconds:.0f} s, to a server with a toy model: half by the "
        "schema, half against it somewhere; most name a model, rollout or session that exists.",
        "",
        f"- 5xx other than 503 and 504: **{wrong}**",
        f"- answers whose status, content type, headers or body are not as described: "
        f"**{len(findings.failures) - wrong}**",
        f"- 503 and 504, on purpose: {sum(total[status] for status in DELIBERATE)}",
        "",
        "| operation | requests | answers by status |",
        "|---|---|---|",
    ]
    for label, counted in sorted(findings.statuses.items()):
        by_status = ", ".join(f"{status}: {count}" for status, count in sorted(counted.items()))
        lines.append(f"| `{label}` | {sum(counted.values())} | {by_status} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--output", type=Path, help="the report; nothing is written if left out")
    arguments = parser.parse_args()
    with drill_server() as client:
        findings = run(str(client.base_url).rstrip("/"), arguments.requests, arguments.seed)
    if arguments.output:
        arguments.output.write_text(as_markdown(findings, arguments.seed))
    for failure in findings.failures[:20]:
        sys.stderr.write(f"{failure}\n")
    sys.stdout.write(f"{findings.requests} requests, {len(findings.failures)} failures\n")
    return 1 if findings.failures else 0


if __name__ == "__main__":
    sys.exit(main())
