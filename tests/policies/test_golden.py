"""``worldcache`` against traces of the published code.

Takes every file of ``tests/golden/policy``; or of ``$WORLDCACHE_GOLDEN/policy``, or of
``$WORLDCACHE_GOLDEN`` itself where that folder does not exist.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from worldcache.policies.replay import Replay, replay

PUBLISHED_NAMES = {
    "percentile_stable": "stable_quantile",
    "percentile_chaotic": "chaotic_quantile",
    "n_max": "max_skip",
    "error_threshold": "drift_threshold",
}


OURS = Path(__file__).parents[1] / "golden"


def golden_folder() -> Path:
    root = Path(os.environ.get("WORLDCACHE_GOLDEN") or OURS)
    return root / "policy" if (root / "policy").is_dir() else root


@dataclass(frozen=True)
class Golden:
    config: dict[str, object]
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> "Golden":
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        assert len(tensors["is_full"]) == int(metadata["num_steps"])
        published = json.loads(metadata["config"])
        return cls({PUBLISHED_NAMES.get(name, name): value for name, value in published.items()}, tensors)

    def replay(self, **changes: object) -> Replay:
        return replay(self.tensors["backbone_output"], "worldcache", **(self.config | changes))


FILES = sorted(golden_folder().glob("*.safetensors"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden.read(request.param)


@pytest.fixture
def voyager() -> Golden:
    return Golden.read(OURS / "policy" / "voyager_default.safetensors")


def test_there_are_golden_files():
    assert FILES, f"no .safetensors in {golden_folder()}"


def test_replay_equals_the_published_code(golden: Golden):
    result, expected = golden.replay(), golden.tensors
    assert torch.equal(result.is_full, expected["is_full"].bool())
    known = expected["token_class"] >= 0
    assert torch.equal(result.token_class[known].int(), expected["token_class"][known].int())
    assert (result.output - expected["output"]).abs().max().item() <= 1e-5
    torch.testing.assert_close(result.drift, expected["accumulated_drift"].double(), rtol=1e-4, atol=1e-6)


def test_classes_are_unknown_where_the_published_code_has_none(golden: Golden):
    unknown = golden.tensors["token_class"] < 0
    assert golden.replay().token_class[unknown].unique().tolist() in ([], [-1])


def test_the_recording_at_cached_steps_is_never_read(golden: Golden):
    cached = ~golden.tensors["is_full"].bool()
    hidden = golden.tensors["backbone_output"].clone()
    hidden[cached] = float("nan")
    result = replay(hidden, "worldcache", **golden.config)
    assert torch.equal(result.output, golden.replay().output)


def test_the_chaotic_mean_scales_the_drift_by_the_chaotic_share(voyager: Golden):
    # Without a threshold both means decide alike, and the classes stand still within a streak.
    over_all = voyager.replay(drift_threshold=1e9)
    over_chaotic = voyager.replay(drift_threshold=1e9, drift_mean="chaotic")
    assert torch.equal(over_all.is_full, over_chaotic.is_full)
    cached = ~over_all.is_full
    share = (over_all.token_class == 2).double().mean(dim=1)[cached]
    torch.testing.assert_close(
        over_chaotic.drift[cached] * share, over_all.drift[cached], rtol=1e-5, atol=1e-9
    )
    assert bool((over_chaotic.drift[cached] > 2 * over_all.drift[cached]).all())


def test_another_quantile_gives_other_classes(voyager: Golden):
    changed = voyager.replay(chaotic_quantile=0.65)
    known = voyager.tensors["token_class"] >= 0
    assert not torch.equal(changed.token_class[known].int(), voyager.tensors["token_class"][known].int())


def test_another_recording_at_the_full_steps_gives_other_outputs(voyager: Golden):
    recorded = voyager.tensors["backbone_output"].clone()
    recorded[:, 0, 0] += torch.linspace(0, 0.1, len(recorded)) ** 2
    changed = replay(recorded, "worldcache", **voyager.config)
    assert (changed.output - voyager.tensors["output"]).abs().max().item() > 1e-4
