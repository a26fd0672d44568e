"""API keys of a file: what each may do, and how they are replaced while the server runs."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from app.auth import presented_key
from app.cli import main
from app.keys import KeyRing, new_key, parse_keys
from app.settings import Settings, check_binding
from tests.app.conftest import rollout_body, serving
from tests.app.sockets import driving
from tests.app.test_session_socket import closing_code
from tests.toy import ToyWorldModel
from worldcache.errors import InvalidInput

ALICE, BOB, ROOT = "wc_alice", "wc_bob", "wc_root"


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def table(name: str, *keys: str, **more: str) -> str:
    """A table of the file; values of further fields are TOML."""
    digests = ", ".join(f'"{sha256(key)}"' for key in keys)
    fields = "".join(f"{field} = {value}\n" for field, value in more.items())
    return f'[[keys]]\nname = "{name}"\nsha256 = [{digests}]\n{fields}\n'


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def error_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


@pytest.fixture
def keys_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of keys that the server looks at all the time."""
    monkeypatch.setattr("app.keys.CHECK_SECONDS", 0.02)
    path = tmp_path / "keys.toml"
    path.write_text(table("alice", ALICE) + table("bob", BOB))
    return path


def until(true: Callable[[], bool]) -> None:
    for _ in range(500):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen")


# The file


def test_a_table_says_what_a_key_may_do() -> None:
    text = table("alice", ALICE, rate="90", concurrency="2", models='["toy"]', operator="true")
    (key,) = parse_keys(text.encode())
    assert (key.name, key.digests) == ("alice", (hashlib.sha256(ALICE.encode()).digest(),))
    assert key.rate is not None and (key.rate.per_minute, key.rate.burst) == (90.0, 90)
    assert (key.concurrency, key.models, key.operator) == (2, frozenset({"toy"}), True)
    (plain,) = parse_keys(f'[[keys]]\nname = "b"\nsha256 = "{sha256(BOB)}"\n'.encode())
    assert (plain.rate, plain.concurrency, plain.models, plain.operator) == (None, None, None, False)
    assert parse_keys(b"") == ()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("secret", "no TOML"),
        ('[[keys]]\nname = "a"\nsha256 = "secret"', "keys.0.sha256"),
        ('[[keys]]\nname = "se cret"\nsha256 = []', "keys.0.name"),
        ('[[keys]]\nname = "a"', "keys.0.sha256"),
        ('[[keys]]\nname = "a"\nsha256 = []', "keys.0.sha256"),
        (table("a", ALICE, secret='"secret"'), "a field that there is not"),
        ('secret = "secret"', "a field that there is not"),
        (table("a", ALICE, rate="0"), "keys.0.rate"),
        (table("a", ALICE, rate="inf"), "keys.0.rate"),
        (table("a", ALICE, concurrency="0"), "keys.0.concurrency"),
        (table("a", ALICE, operator='"secret"'), "keys.0.operator"),
        (table("a", ALICE) + table("a", BOB), "the same name"),
        (table("a", ALICE) + table("b", ALICE), "the same sha256"),
        (table("audit", ALICE), "no key may be called"),
    ],
)
def test_a_broken_file_is_told_without_its_contents(text: str, told: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_keys(text.encode())
    assert told in str(caught.value)
    assert "secret" not in str(caught.value) and sha256(ALICE) not in str(caught.value)


def test_bytes_that_are_no_text_are_a_broken_file() -> None:
    with pytest.raises(InvalidInput, match="no TOML"):
        parse_keys(b"\xff\xfe")


def test_every_key_is_found_by_its_digest_alone(keys_file: Path) -> None:
    ring = KeyRing((SecretStr("plain"),), keys_file)
    for given, name in ((ALICE, "alice"), (BOB, "bob")):
        found = presented_key(f"bearer {given}", ring)
        assert found is not None and found.name == name
    plain = ring.find(b"plain")
    assert plain is not None and plain.name.startswith("key:") and "plain" not in plain.name
    assert not plain.operator, "with a file, its operators are the only ones"
    for wrong in ("", ALICE, f"Basic {ALICE}", f"Bearer {ALICE}x", f"Bearer {sha256(ALICE)}"):
        assert presented_key(wrong, ring) is None


def test_without_a_file_every_key_is_an_operator_and_without_keys_anybody() -> None:
    plain = KeyRing((SecretStr("plain"),)).find(b"plain")
    assert plain is not None and plain.operator
    anybody = presented_key("", KeyRing())
    assert anybody is not None and anybody.operator


def test_an_empty_file_opens_nothing(keys_file: Path) -> None:
    keys_file.write_text("")
    assert presented_key("", KeyRing((), keys_file)) is None


def test_a_broken_or_missing_file_is_refused_at_the_start(keys_file: Path) -> None:
    keys_file.write_text("[[keys]")
    with pytest.raises(InvalidInput, match="no TOML"):
        KeyRing((), keys_file)
    with pytest.raises(InvalidInput, match="No such file"):
        KeyRing((), keys_file.with_name("none.toml"))
    check_binding(Settings(host="0.0.0.0", api_keys_file=str(keys_file)))


def test_a_file_that_breaks_keeps_the_keys(keys_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    ring = KeyRing((), keys_file)
    for broken in (f'key = "{ALICE}', table("alice", ALICE, rate=f'"{ALICE}"')):
        keys_file.write_text(broken)
        ring.refresh()
        assert ring.find(ALICE.encode()) is not None
    keys_file.unlink()
    ring.refresh()
    ring.refresh()
    assert ring.find(ALICE.encode()) is not None
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 3, "each is told once"
    assert ALICE not in caplog.text and sha256(ALICE) not in caplog.text
    keys_file.write_text(table("bob", BOB))
    ring.refresh()
    assert ring.find(ALICE.encode()) is None and ring.find(BOB.encode()) is not None


# The command


def test_the_command_prints_a_key_and_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "alice", "--rate", "30", "--model", "doom", "--operator"]) == 0
    printed = capsys.readouterr().out
    secret = printed.partition(": ")[2].partition("\n")[0]
    (key,) = parse_keys(printed.encode())
    assert key.digests == (hashlib.sha256(secret.encode()).digest(),)
    assert (key.name, key.models, key.operator) == ("alice", frozenset({"doom"}), True)
    assert len({new_key() for _ in range(100)}) == 100


def test_the_command_refuses_names_that_the_file_would(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", 'a"b']) == 2
    assert "must be letters" in capsys.readouterr().err


# The server


def test_a_key_is_replaced_without_a_restart_and_keeps_its_rollouts(keys_file: Path) -> None:
    with serving(api_keys_file=str(keys_file)) as client:
        path = (
            "/v1/rollouts/"
            + client.post("/v1/rollouts", json=rollout_body(), headers=bearer(ALICE)).json()["id"]
        )
        keys_file.write_text(table("alice", ALICE, "wc_new") + table("bob", BOB))
        until(lambda: client.get(path, headers=bearer("wc_new")).status_code == 200)
        assert client.get(path, headers=bearer(ALICE)).status_code == 200, "both work while it is replaced"
        keys_file.write_text(table("alice", "wc_new") + table("bob", BOB))
        until(lambda: client.get(path, headers=bearer(ALICE)).status_code == 401)
        assert client.get(path, headers=bearer("wc_new")).status_code == 200
        assert error_of(client.get(path, headers=bearer(BOB))) == (404, "unknown_rollout")
        keys_file.write_text("")
        until(lambda: client.get("/v1/models", headers=bearer("wc_new")).status_code == 401)
        assert client.get("/v1/models").status_code == 401


def test_who_has_no_key_any_more_is_disconnected(keys_file: Path) -> None:
    with serving(api_keys_file=str(keys_file)) as client, ExitStack() as stack:
        drivers = []
        for key in (ALICE, BOB):
            body = {"model": "toy", "observation": {"start": "centre"}}
            session = client.post("/v1/sessions", json=body, headers=bearer(key)).json()
            driving_one = driving(client, f"/v1/sessions/{session['id']}", headers=bearer(key))
            drivers.append(stack.enter_context(driving_one))
        keys_file.write_text(table("alice", "wc_new"))
        assert closing_code(drivers[1]) == 1008
        drivers[0].act(0)
        assert drivers[0].frames(1), "another key of the same name is no reason to end"


@pytest.fixture
def limited(keys_file: Path) -> Iterator[httpx.Client]:
    keys_file.write_text(
        table("alice", ALICE, models='["toy"]', concurrency="2")
        + table("bob", BOB, rate="6", burst="2")
        + table("root", ROOT, operator="true")
    )
    worlds: dict[str, Any] = {"toy": ToyWorldModel(delay=0.02), "other": ToyWorldModel()}
    with serving(models_by_name=worlds, api_keys_file=str(keys_file)) as client:
        yield client


def test_models_that_a_key_may_not_use_do_not_exist_for_it(limited: httpx.Client) -> None:
    ids = [model["id"] for model in limited.get("/v1/models", headers=bearer(ALICE)).json()["data"]]
    assert ids == ["toy"]
    response = limited.get("/v1/models/other", headers=bearer(ALICE))
    assert error_of(response) == (404, "unknown_model")
    assert "other" not in response.json()["error"]["message"].partition(";")[2]
    for path, body in (
        ("/v1/rollouts", rollout_body(model="other")),
        ("/v1/sessions", {"model": "other", "observation": {"start": "centre"}}),
        ("/v1/videos", {"model": "other", "num_frames": 4}),
    ):
        response = limited.post(path, json=body, headers=bearer(ALICE))
        assert error_of(response) == (422, "unknown_model"), path
        assert limited.post(path, json=body, headers=bearer(ROOT)).is_success, path
    only = limited.post("/v1/videos", json={"num_frames": 4}, headers=bearer(ALICE))
    assert only.json()["model"] == "toy", "the only one that it has"


def test_only_operators_load_and_unload(limited: httpx.Client) -> None:
    for action in ("load", "unload"):
        response = limited.post(f"/v1/models/toy/{action}", headers=bearer(ALICE))
        assert error_of(response) == (403, "not_an_operator")
        assert limited.post(f"/v1/models/toy/{action}", headers=bearer(ROOT)).is_success


def test_a_rate_is_kept(limited: httpx.Client) -> None:
    responses = [limited.get("/v1/models", headers=bearer(BOB)) for _ in range(3)]
    assert [response.status_code for response in responses] == [200, 200, 429]
    assert error_of(responses[-1]) == (429, "rate_limited")
    assert 1 <= int(responses[-1].headers["retry-after"]) <= 10
    assert limited.get("/v1/models", headers=bearer(ALICE)).status_code == 200
    assert 'worldcache_rejected_total{reason="rate_limited"} 1.0' in limited.get("/metrics").text


def test_a_number_of_rollouts_at_once_is_kept(limited: httpx.Client) -> None:
    body = rollout_body(cache="none", actions=["NOOP"] * 8)

    def post(key: str) -> httpx.Response:
        headers = {**bearer(key), "Prefer": "respond-async"}
        return limited.post("/v1/rollouts", json=body, headers=headers)

    with ThreadPoolExecutor(4) as pool:
        alices = [pool.submit(post, ALICE) for _ in range(3)]
        roots = [pool.submit(post, ROOT) for _ in range(3)]
    assert sorted(task.result().status_code for task in alices) == [202, 202, 429]
    refused = next(task.result() for task in alices if task.result().status_code == 429)
    assert error_of(refused) == (429, "too_many_rollouts") and "Retry-After" in refused.headers
    assert "at most 2" in refused.json()["error"]["message"]
    assert [task.result().status_code for task in roots] == [202, 202, 202]
