"""Writes a trained model in the layout that ``load_model`` reads, with its model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from worldcache.models.doom.transformer import ActionTransformer3DModel
from worldcache.models.doom.world import Start, save_starts
from worldcache.training.collect import Episode, Scenario

TICS_PER_SECOND = 35
"""Doom's clock."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "none": {"policy": "none"},
    "quality": {"policy": "worldcache", "parameters": {"max_skip": 3, "drift_threshold": 0.5}},
    "balanced": {"policy": "worldcache"},
    "fast": {
        "policy": "worldcache",
        "parameters": {"max_skip": 8, "drift_threshold": 4.0, "warmup_steps": 3},
    },
}


def choose_starts(episodes: Sequence[Episode], scenario: Scenario, context: int) -> dict[str, Start]:
    """The recorded moment that fits each of the scenario's starts best."""
    places = np.concatenate([e.positions[:, 1] for e in episodes])
    low, high = float(places.min()), float(places.max())
    chosen = {}
    for name, (fraction, action) in scenario.starts.items():
        wanted = low + fraction * (high - low)
        best: tuple[float, Start] | None = None
        for episode in episodes:
            held = episode.actions == scenario.actions.index(action)
            for end in range(context, len(episode.frames) + 1):
                if not held[end - context : end].all():
                    continue
                distance = abs(float(episode.positions[end - 1, 1]) - wanted)
                if best is None or distance < best[0]:
                    rows = slice(end - context, end)
                    start = Start(episode.frames[rows], tuple(int(a) for a in episode.actions[rows]))
                    best = (distance, start)
        if best is not None:
            chosen[name] = best[1]
    return chosen


def export_model(
    folder: Path,
    model: ActionTransformer3DModel,
    scenario: Scenario,
    starts: Mapping[str, Start],
    *,
    model_id: str,
    depth_max: float,
) -> None:
    """Write weights in bfloat16, scheduler, ``world.json`` and ``starts.npz``."""
    folder.mkdir(parents=True, exist_ok=True)
    shipped = ActionTransformer3DModel.from_config(model.config)
    shipped.load_state_dict(model.state_dict())
    shipped.bfloat16().save_pretrained(folder / "transformer")
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    world = {
        "id": model_id,
        "description": f"ViZDoom scenario '{scenario.name}' (Freedoom assets), RGB and depth, "
        f"{scenario.tics} game tics a frame",
        "scenario": scenario.name,
        "actions": list(scenario.actions),
        "fps": TICS_PER_SECOND / scenario.tics,
        "depth_max": depth_max,
        "depth_unit": "steps of ViZDoom's 8-bit depth buffer (0 near, larger is farther)",
        "num_inference_steps": 50,
        "presets": PRESETS,
        "default_preset": "balanced",
        "licence": "Apache-2.0 (weights); trained on renderings of Freedoom assets (BSD-3-Clause)",
    }
    (folder / "world.json").write_text(json.dumps(world, indent=2) + "\n")
    save_starts(folder / "starts.npz", starts)


def model_card(world: Mapping[str, Any], recipe: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """The model card as Markdown; every figure is taken from ``recipe`` and ``report``."""
    chunk, control = report["first_chunk"], report["control"]
    rows = [
        f"| {label} | {e['psnr']:.2f} | {e['ssim']:.3f} | {e['depth_error']:.2f} |"
        for label, e in (
            ("model, all chunks", chunk["model"]),
            ("repeating the last frame, all chunks", chunk["repeat_last_frame"]),
            ("model, where the view moves", chunk["model_where_the_view_moves"]),
            ("repeating, where the view moves", chunk["repeat_last_frame_where_the_view_moves"]),
        )
    ]
    real, generated = control["real"], control["generated"]
    control_rows = [
        f"| {name} | {generated['by_action'][name]:.1%} | {real['by_action'][name]:.1%} |"
        for name in generated["by_action"]
    ]
    return "\n".join(
        [
            "---",
            "license: apache-2.0",
            "library_name: diffusers",
            "tags: [world-model, action-conditioned, rgb-d]",
            "---",
            "",
            f"# `{world['id']}`",
            "",
            f"An action-conditioned RGB-D diffusion world model: {world['description']}.",
            "",
            "## Data",
            "",
            f"{recipe['frames']:,} frames of the ViZDoom scenario `{world['scenario']}` for training, "
            f"{recipe['heldout_frames']:,} from other seeds held out. Sticky random actions "
            f"({', '.join(world['actions'])}), weapon on, HUD off, god mode, infinite ammunition; "
            "rendered at 320x240 and averaged down to 64x48.",
            "",
            "## Recipe",
            "",
            f"{recipe['parameters'] / 1e6:.1f} M parameters, {recipe['steps']:,} steps of batch "
            f"{recipe['train']['batch_size']} in {recipe['seconds'] / 60:.0f} minutes on {recipe['device']}. "
            "Flow matching: x̂0 inside, velocity outside and in the loss; Muon and AdamW; chunks of 4 frames "
            f"conditioned on the 4 before and on 8 actions. {recipe['notes']} All settings:",
            "",
            "```json",
            json.dumps(recipe["train"], indent=2),
            "```",
            "",
            "## Figures",
            "",
            f"First chunk, {chunk['samples']} held-out chunks, {report['steps']} steps, uncached "
            f"({chunk['moving_samples']} of them with a view that moves):",
            "",
            "| | PSNR (dB) | SSIM | depth error (depth steps) |",
            "|---|---|---|---|",
            *rows,
            "",
            f"Control accuracy: an inverse-dynamics classifier trained on real frames names the action of "
            f"{control['frames']} frames in each of {control['rollouts']} rollouts.",
            "",
            "| action | generated frames | real frames |",
            "|---|---|---|",
            *control_rows,
            f"| all | {generated['accuracy']:.1%} | {real['accuracy']:.1%} |",
            f"| all, last quarter | {generated['last_quarter']:.1%} | {real['last_quarter']:.1%} |",
            "",
            "## Limits",
            "",
            "One room, one weapon, 64x48 pixels. The model knows nothing outside this scenario, and what "
            "leaves the view is not remembered for longer than four frames.",
            "",
            "## Licences",
            "",
            f"{world['licence']}. ViZDoom is MIT-licensed.",
            "",
        ]
    )
