"""Draws a rollout as the README shows it: colour, depth and token classes, under the actions sent.

``python -m worldcache.bench.picture docs/rollout.png``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import worldcache
from worldcache.api import RolloutResult
from worldcache.models.base import WorldModel

ACTIONS = ("MOVE_LEFT",) * 12 + ("ATTACK",) * 8 + ("MOVE_RIGHT",) * 12
COLOURS = np.array([(46, 160, 67), (227, 168, 28), (218, 54, 51)], np.uint8)
"""Stable, linear, chaotic."""

SCALE = 3
LABEL_HEIGHT = 18


def class_frames(model: WorldModel, result: RolloutResult) -> NDArray[np.uint8]:
    """The class of the token that each RGB pixel belongs to, as colours ``[F, H, W, 3]``."""
    maps = []
    for chunk in result.stats.chunks:
        assert chunk.token_map is not None, "the policy does not classify tokens"
        classes = torch.from_numpy(chunk.token_map).float()
        view = model.tokens(model.latent_shape(model.info.chunk_frames))
        maps.append(view.from_tokens(classes[:, None].expand(-1, view.width))[0, 0].numpy().astype(np.int64))
    return COLOURS[np.concatenate(maps)[: len(result.frames["rgb"])]]


def draw(model: WorldModel, result: RolloutResult, every: int) -> Image.Image:
    """One column for every ``every``-th frame, from the first on."""
    grey = np.clip(result.frames["depth"] / model.info.modality("depth").high * 255, 0, 255).astype(np.uint8)
    rows = (result.frames["rgb"], np.repeat(grey[..., None], 3, -1), class_frames(model, result))
    chosen = range(every - 1, len(ACTIONS), every)
    columns = [np.concatenate([row[i] for row in rows]) for i in chosen]
    grid = np.concatenate(columns, axis=1).repeat(SCALE, 0).repeat(SCALE, 1)
    picture = Image.new("RGB", (grid.shape[1], grid.shape[0] + LABEL_HEIGHT), (24, 24, 27))
    picture.paste(Image.fromarray(grid), (0, LABEL_HEIGHT))
    pen = ImageDraw.Draw(picture)
    for place, index in enumerate(chosen):
        left = place * model.info.resolution[1] * SCALE
        pen.text((left + 6, 3), f"{index + 1}  {ACTIONS[index]}", fill=(235, 235, 235))
    return picture


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description="draw a rollout of doom")
    parser.add_argument("output", type=Path)
    parser.add_argument("--start", default="centre")
    parser.add_argument("--path", type=Path, help="folder of other weights")
    arguments = parser.parse_args()
    model = worldcache.load_model("doom", path=arguments.path)
    result = worldcache.rollout(
        model, actions=ACTIONS, start=arguments.start, policy="worldcache", seed=7, num_inference_steps=50
    )
    draw(model, result, every=4).save(arguments.output)


if __name__ == "__main__":
    main()
