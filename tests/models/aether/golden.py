"""Recordings of the published pipeline: where they are, and a model with their weights."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from tests.models.aether.tiny import write_folder
from worldcache.models.aether.condition import AetherCondition, AetherInputs, encode_condition
from worldcache.models.aether.world import AetherWorldModel

OURS = Path(__file__).parents[2] / "golden"


def golden_folder() -> Path:
    """``aether`` in ``$WORLDCACHE_GOLDEN``, or else the copy that lies here."""
    given = Path(os.environ.get("WORLDCACHE_GOLDEN") or OURS) / "aether"
    return given if given.is_dir() else OURS / "aether"


def recordings() -> list[str]:
    """Names of the recorded generations, those that have weights."""
    suffix = "_weights"
    return sorted(path.stem.removesuffix(suffix) for path in golden_folder().glob(f"*{suffix}.safetensors"))


def read(name: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file."""
    with safe_open(golden_folder() / f"{name}.safetensors", "pt") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}


@dataclass(frozen=True)
class Recording:
    """One generation of the published pipeline, and a model that should repeat it."""

    model: AetherWorldModel
    metadata: dict[str, str]
    tensors: dict[str, Tensor]

    @classmethod
    def load(cls, name: str, folder: Path) -> Recording:
        metadata, tensors = read(name)
        configs = {part: json.loads(metadata[part]) for part in ("transformer", "vae", "scheduler")}
        _, weights = read(f"{name}_weights")
        write_folder(folder, configs=configs, weights=weights, prompt=tensors["prompt_embeds"])
        model = AetherWorldModel.load(folder, device=torch.device("cpu"), dtype=torch.float32)
        return cls(model, metadata, tensors)

    @property
    def task(self) -> str:
        return self.metadata["task"]

    @property
    def frames(self) -> int:
        return int(self.metadata["num_frames"])

    @property
    def steps(self) -> int:
        return int(self.metadata["steps"])

    @property
    def scale(self) -> float:
        return self.model.info.tasks[self.task].guidance_scale

    def series(self, name: str) -> list[Tensor]:
        """``name.0``, ``name.1``, ..."""
        count = sum(key.startswith(f"{name}.") for key in self.tensors)
        return [self.tensors[f"{name}.{i}"] for i in range(count)]

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(int(self.metadata["seed"]))

    def condition(self, generator: torch.Generator) -> AetherCondition:
        raymap = self.tensors.get("raymap")
        video = self.tensors["video"] if self.task == "reconstruction" else self.tensors["image"]
        inputs = AetherInputs(
            self.task,
            float(self.metadata["fps"]),
            self.frames,
            video,
            self.tensors.get("goal"),
            None if raymap is None else raymap[0],
        )
        return encode_condition(inputs, self.model.vae, generator, torch.float32)


def largest_difference(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return (actual - expected).abs().max().item()


def branches(outputs: Tensor) -> Tensor:
    """Rows as the published code has them (the unguided one first) in our order, and back."""
    return outputs.flip(0)
