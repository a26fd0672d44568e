"""Which pipelines can be served, and what they say about themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from app.catalogue import read_catalogue
from app.settings import Settings
from tests.models.pipeline.tiny import FRAMES, SIZE, STEPS, WORLD, wan
from tests.pipelines.cases import cogvideox, flow, sd3
from worldcache.errors import ModelLoadError
from worldcache.models.pipeline.facts import chunk_lengths, read_facts
from worldcache.models.pipeline.world import PipelineWorldModel
from worldcache.models.registry import load_model
from worldcache.policies.choose import choose_policy


def load(folder: Path | str | None) -> PipelineWorldModel:
    return PipelineWorldModel.load(folder, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A folder of its own."""
    return Path(shutil.copytree(folders["cogvideox"], tmp_path / "tiny"))


def write(folder: Path, **world: Any) -> None:
    (folder / "world.json").write_text(json.dumps({**WORLD, **world}))


def test_what_it_says(model: PipelineWorldModel) -> None:
    info = model.info
    assert info.id == "diffusers"
    assert info.action_space.describe() == {"type": "discrete", "names": ["NOOP"]}
    assert [modality.name for modality in info.modalities] == ["rgb"]
    assert info.resolution == (SIZE, SIZE)
    cogvideox = "CogVideoX" in type(model.pipe).__name__  # which decodes latent frames in pairs
    assert info.chunk_lengths == ((9, 17) if cogvideox else (5, 9, 13, 17))
    assert info.chunk_frames == FRAMES
    assert (info.observed_frames, info.context_frames, info.starts) == (0, 1, ())
    assert (info.fps, info.num_inference_steps) == (12, STEPS)
    assert info.conditioning == {"prompt": (), "negative_prompt": ()}
    assert info.guidance_scale == (6.0 if cogvideox else 5.0)
    assert type(model.pipe).__name__ in info.description
    assert model.memory_bytes > 0
    assert all(choose_policy(name, info) for name in (None, "auto", *info.presets))
    assert set(info.presets) == {"none", "quality", "balanced", "fast"}


def test_what_a_pipeline_says_without_a_file_of_ours(copied: Path) -> None:
    (copied / "world.json").unlink()
    info = load(copied).info
    assert info.resolution == (SIZE, SIZE)  # of the transformer: 4 latent rows and columns
    assert (info.chunk_frames, info.chunk_lengths[:2]) == (49, (9, 17))
    assert (info.num_inference_steps, info.guidance_scale, info.fps) == (50, 6.0, 16)


def test_defaults_of_the_call() -> None:
    facts = read_facts(wan(), "tiny", Path("nowhere"))
    assert facts.info.resolution == (480, 832)
    assert facts.info.chunk_frames == 81
    assert facts.latent_shape(81) == (16, 21, 60, 104)


def test_frame_counts() -> None:
    assert chunk_lengths(17, 4) == (5, 9, 13, 17)
    assert chunk_lengths(24, 8) == (9, 17)
    assert chunk_lengths(4, 1) == (2, 3, 4)
    assert chunk_lengths(3, 4) == (3,)


def test_by_the_name_of_the_family(folders: dict[str, Path]) -> None:
    model = load_model("diffusers", path=folders["wan"], offload=True)  # which means nothing on a CPU
    assert isinstance(model, PipelineWorldModel)


def test_by_a_servers_settings(folders: dict[str, Path]) -> None:
    (entry,) = read_catalogue(Settings(models=(f"tiny=diffusers:{folders['cogvideox']}",)))
    assert entry.weight_bytes > 0
    assert entry.load().info.id == "tiny"


def test_measured_presets_and_calibrations(copied: Path) -> None:
    preset = {"policy": "interval", "parameters": {"interval": 2}, "measured": {"speed_up": 1.9}}
    calibration = {
        "presets": {"fast": preset},
        "auto": "fast",
        "policies": {"magcache": {"ratios": [1.0] * STEPS}},
    }
    (copied / "calibration.json").write_text(json.dumps(calibration))
    info = load(copied).info
    assert info.presets["fast"].policy == "interval" and info.auto_preset == "fast"
    assert choose_policy({"policy": "magcache"}, info).name == "magcache"


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\ntags:\n- a\n---\ntext", "mit"),
        ("---\nlicense: other\nlicense_name: tiny-licence\n---\n", "tiny-licence"),
        ("---\nlanguage: en\n---\nlicense: mit\n", "see the model's own licence"),
        ("license: mit\n", "see the model's own licence"),
        (None, "see the model's own licence"),
    ],
)
def test_the_licence_is_the_model_cards(copied: Path, card: str | None, licence: str) -> None:
    (copied / "README.md").unlink(missing_ok=True)
    if card is not None:
        (copied / "README.md").write_text(card)
    assert load(copied).info.licence == licence
    write(copied, licence="ours", notice="read it")
    info = load(copied).info
    assert (info.licence, info.notice) == ("ours", "read it")


@pytest.mark.parametrize(
    ("world", "message"),
    [
        ({"hight": 3}, "hight"),
        ({"num_frames": 0}, "num_frames"),
        ({"presets": {"mine": {"policy": "fastest"}}}, "fastest"),
        ({"default_preset": "mine"}, "default_preset"),
    ],
)
def test_a_file_of_ours_that_is_wrong_is_refused(copied: Path, world: dict[str, Any], message: str) -> None:
    write(copied, **world)
    with pytest.raises(ModelLoadError, match=message):
        load(copied)


@pytest.mark.parametrize("missing", ["model_index.json", "transformer/config.json", "vae/config.json"])
def test_a_folder_that_lacks_something_is_refused(copied: Path, missing: str) -> None:
    (copied / missing).unlink()
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        load(copied)


@pytest.mark.parametrize("path", [None, "/nowhere/at/all", "./nowhere", "one/two/three"])
def test_a_pipeline_that_is_nowhere_is_refused(path: str | None) -> None:
    with pytest.raises(ModelLoadError):
        load(path)


def text_to_video() -> Any:
    return diffusers.CogVideoXPipeline(None, None, None, cogvideox(), diffusers.CogVideoXDDIMScheduler())


def text_to_image() -> Any:
    return diffusers.StableDiffusion3Pipeline(sd3(), flow(), None, *[None] * 6)


class NoTransformer:
    """A pipeline of another make."""

    def __call__(self, image: Any, num_frames: int = 9) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (text_to_video, "takes no image"),
        (text_to_image, "takes no image"),
        (NoTransformer, "has no transformer"),
    ],
)
def test_other_kinds_of_pipelines_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        read_facts(make(), "tiny", Path("nowhere"))


def test_a_pipeline_that_fails_at_once_does_not_get_warm(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(folders["wan"])
    monkeypatch.setattr(model.pipe, "text_encoder", None)
    with pytest.raises(ModelLoadError, match="cannot make a video"):
        model.warm()
