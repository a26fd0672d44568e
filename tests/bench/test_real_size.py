"""The large models' benchmark, on small ones."""

from __future__ import annotations

import importlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toy import ToyWorldModel
from worldcache.actions import BoxActionSpace, CameraPoseActionSpace
from worldcache.bench.chunk import measure_chunk
from worldcache.bench.real_size import _actions, _request, main, measure, run
from worldcache.bench.real_size_models import SUBJECTS, Pattern, Subject
from worldcache.core import Frames
from worldcache.errors import InvalidInput, UnknownName

CPU = torch.device("cpu")
VOYAGER = {
    "transformer": {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "text_embed_dim": 8,
        "pooled_projection_dim": 6,
        "rope_axes_dim": (4, 6, 6),
    },
    "vae": {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 2},
    "world": {"resolution": (32, 48), "frames": 5},
}
"""Voyager with frames of 32x48 pixels."""

PATTERNS = (Pattern("short", warmup=3, streak=2),)


def toy(device: torch.device, dtype: torch.dtype, seed: int) -> ToyWorldModel:
    return ToyWorldModel()


def too_large(device: torch.device, dtype: torch.dtype, seed: int) -> ToyWorldModel:
    raise torch.OutOfMemoryError("tried to allocate 99.00 GiB\nand a long explanation")


class UndecodableModel(ToyWorldModel):
    """Has no memory left for its decoder."""

    def decode(self, latent: torch.Tensor) -> Frames:
        raise torch.OutOfMemoryError("tried to decode")


@pytest.mark.parametrize(
    ("model", "decisions"),
    [
        ("aether", ["F" * 10 + "..F" * 13 + "F", "F" * 10 + ".F" * 20]),
        ("voyager", ["F" * 5 + "......F" * 6 + "..F", "F" * 5 + "....F" * 9]),
    ],
)
def test_the_published_patterns(model: str, decisions: list[str]) -> None:
    subject = Subject(toy, SUBJECTS[model].patterns)
    report = measure(model, subject, device=CPU, dtype=torch.float32)
    assert [line.decisions for line in report.lines] == ["F" * 50, *decisions]
    assert report.lines[0].speed_up == 1.0 and report.lines[0].share_of_ideal == 1.0


@pytest.mark.parametrize("name", ["aether", "voyager"])
def test_the_models_themselves_at_a_tiny_size(name: str) -> None:
    """What the table of subjects says of each fits it: task, depth, actions, guidance."""
    world = pytest.importorskip(f"worldcache.models.{name}.world", exc_type=ModuleNotFoundError)
    family = getattr(world, f"{name.capitalize()}WorldModel")
    configs = importlib.import_module(f"tests.models.{name}.tiny").CONFIGS if name == "aether" else VOYAGER
    subject = replace(
        SUBJECTS[name],
        make=lambda device, dtype, seed: family.random(
            device=device, dtype=dtype, seed=seed, configs=configs
        ),
    )
    report = measure(name, subject, device=CPU, dtype=torch.float32, num_steps=12)
    full, patterned = report.lines[0].decisions, [line.decisions for line in report.lines[1:]]
    assert full == "F" * 12 and all("." in decisions and len(decisions) == 12 for decisions in patterned)


def test_a_chunk_is_divided_into_its_parts() -> None:
    model = ToyWorldModel(delay=0.01)
    request = _request(model.info, Subject(toy, ()), num_steps=6)
    cost = measure_chunk(model, request)
    assert cost.decisions == "FFFFFF" and len(cost.full_steps) == 6 and model.batches == [1] * 6
    assert min(cost.full_steps) >= 0.01 and cost.denoise >= sum(cost.full_steps)
    assert cost.prepare > 0 and cost.decode > 0 and cost.peak_bytes is None


def test_more_than_a_chunk_is_refused() -> None:
    model = ToyWorldModel()
    request = _request(model.info, Subject(toy, ()), num_steps=2)
    longer = type(request)(**{**vars(request), "actions": (0,) * 5})
    with pytest.raises(ValueError, match="at most 4"):
        measure_chunk(model, longer)


def test_the_report_says_what_was_measured() -> None:
    text = run(
        ["small", "huge"],
        {"small": Subject(toy, PATTERNS), "huge": Subject(too_large, PATTERNS)},
        device="cpu",
        dtype="float32",
        seed=3,
        num_steps=10,
        repeats=2,
    )
    small, _, huge = text.partition("## `huge`")
    assert "frames 4 of 48x64" in small and "latent 4x4x48x64" in small
    assert "tokens 12 rgb + 4 depth, 3072 wide" in small
    assert "10 steps, float32, seed 3, 2 of each in turn." in small
    assert "| uncached | 10 of 10 |" in small and "| 1.00x | 1.000 |" in small
    assert "| short | 6 of 10 |" in small and "`FFF..F..FF`" in small
    assert "It does not fit: tried to allocate 99.00 GiB\n" in huge and "explanation" not in huge
    assert "torch" in small and "diffusers" in small


def test_a_decoder_without_memory_is_told_like_weights_without() -> None:
    subject = Subject(lambda *_: UndecodableModel(), PATTERNS)
    report = measure("toy", subject, device=CPU, dtype=torch.float32, num_steps=4)
    assert report.failure == "It does not fit: tried to decode" and report.lines == ()
    assert report.sizes["weights"] == "0.00 GiB"


def test_other_failures_are_not_hidden() -> None:
    def broken(rows: Any) -> None:
        raise RuntimeError("a bug")

    subject = Subject(lambda *_: ToyWorldModel(before_evaluate=broken), PATTERNS)
    with pytest.raises(RuntimeError, match="a bug"):
        measure("toy", subject, device=CPU, dtype=torch.float32, num_steps=4)


def test_every_kind_of_action_can_be_made() -> None:
    box = BoxActionSpace((-1.0, 0.0), (1.0, 4.0), ("a", "b"))
    assert box.parse(_actions(box, 2)) == ((0.0, 2.0), (0.0, 2.0))
    camera = CameraPoseActionSpace("metres")
    poses = camera.parse(_actions(camera, 3))
    assert [pose[2][3] for pose in poses if pose] == [0.0, 0.01, 0.02]


def test_the_command_writes_a_file(tmp_path: Path) -> None:
    output = tmp_path / "new" / "report.md"
    options = ["--output", str(output), "--device", "cpu", "--dtype", "float32", "--steps", "5"]
    assert main(options, {"small": Subject(toy, PATTERNS)}) == 0
    assert "## `small`" in output.read_text()


@pytest.mark.parametrize(
    ("options", "kind", "param"),
    [
        ({"names": ["moon"]}, UnknownName, "models"),
        ({"dtype": "int4"}, UnknownName, "dtype"),
        ({"device": "cuda"}, InvalidInput, "device"),
    ],
)
def test_what_cannot_be_used_is_named(
    options: dict[str, Any], kind: type[InvalidInput], param: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given = {"names": ["small"], "device": "cpu", "dtype": "float32", **options}
    with pytest.raises(kind) as caught:
        run(given.pop("names"), {"small": Subject(toy, PATTERNS)}, **given)
    assert caught.value.param == param


def test_the_command_says_what_cannot_be_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = ["--output", str(tmp_path / "report.md"), "--models", "moon", "--device", "cpu"]
    with caplog.at_level(logging.ERROR):
        assert main(options, {"small": Subject(toy, PATTERNS)}) == 2
    assert "unknown model 'moon'; use one of: small" in caplog.text
    assert not (tmp_path / "report.md").exists()
