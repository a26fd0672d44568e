"""The memory of devices, as the metrics show it."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch

from app import device_memory
from app.device_memory import held_bytes, total_bytes


def test_a_process_holds_a_part_of_the_host() -> None:
    assert 2**20 < held_bytes("cpu") < total_bytes("cpu")


def test_a_container_has_what_its_limit_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(device_memory, "LIMIT", limit)
    host = total_bytes("cpu")
    limit.write_text("max\n")
    assert total_bytes("cpu") == host
    limit.write_text("1048576\n")
    assert total_bytes("cpu") == 1048576


def test_nobody_tells_on_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "PROCESS", Path("/none"))
    assert math.isnan(held_bytes("cpu"))


def test_a_cuda_device_tells_what_torch_has_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert math.isnan(total_bytes("cuda:0")), "asking would take memory of a device that nobody uses"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=7))
    assert (held_bytes("cuda:0"), total_bytes("cuda:0")) == (3.0, 7.0)


def test_the_metrics_show_every_device(client: httpx.Client) -> None:
    text = client.get("/metrics").text
    assert 'worldcache_device_memory_bytes{device="cpu"}' in text
    assert 'worldcache_device_memory_total_bytes{device="cpu"}' in text
    assert 'worldcache_model_load_failures_total{model="toy"} 0.0' in text, "so that the first one is seen"
