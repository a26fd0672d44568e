"""Trains the model that ships: flow matching on windows of play, resumable from its checkpoint.

Recipe: x̂0 inside, velocity loss; noise levels logit-normal; Muon for the blocks' matrices and
AdamW for the rest; constant learning rate with a warm-up and a linear decay at the end, so that a
run can be resumed with more steps; exponential moving average of the weights.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from worldcache.models.doom.transformer import NUM_TRAIN_TIMESTEPS, ActionTransformer3DModel
from worldcache.training.data import Batch, WindowDataset
from worldcache.training.muon import Muon

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class TrainConfig:
    """Everything that shapes a run; stored in its checkpoint and in the model card."""

    steps: int = 20_000
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 300
    decay_share: float = 0.35
    final_learning_rate: float = 0.02
    ema_decay: float = 0.999
    context_noise: float = 0.1
    drop_actions: float = 0.1
    still_context: float = 0.05
    drop_depth: float = 0.1
    noise_mean: float = 0.8
    noise_std: float = 1.0
    loss_sigma_min: float = 0.05
    save_every: int = 250
    seed: int = 0


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Factor on the learning rate: linear warm-up, constant, linear decay over the last share."""
    warm = min(1.0, (step + 1) / config.warmup_steps)
    decay_steps = max(1.0, config.decay_share * config.steps)
    left = min(1.0, (config.steps - step) / decay_steps)
    return warm * (config.final_learning_rate + (1 - config.final_learning_rate) * max(0.0, left))


def augment(batch: Batch, config: TrainConfig, no_action: int, generator: torch.Generator) -> Batch:
    """Context noise against drift, and the ways in which a request may leave something out.

    Dropped actions make guidance possible, still contexts stand for a single image, dropped depth
    (0 in every pixel) for pictures without it.
    """
    context, actions = batch.context.clone(), batch.actions.clone()
    size, frames = len(actions), context.shape[2]
    still = torch.rand(size, generator=generator) < config.still_context
    context[still] = context[still][:, :, -1:].expand(-1, -1, frames, -1, -1)
    actions[still, :frames] = 0
    level = torch.rand(size, 1, 1, 1, 1, generator=generator) * config.context_noise
    context = context + level * torch.randn(context.shape, generator=generator)
    context[torch.rand(size, generator=generator) < config.drop_depth, 3:] = 0
    actions[torch.rand(size, generator=generator) < config.drop_actions] = no_action
    return Batch(context, batch.chunk, actions)


def velocity_loss(
    model: Callable[..., Any],
    batch: Batch,
    config: TrainConfig,
    generator: torch.Generator,
    device: torch.device,
) -> Tensor:
    """Mean squared error of the velocity at a random noise level per row.

    Noise levels are logit-normal with most of their weight on noisy chunks: where little of the chunk can
    be seen is where actions decide what it shows.
    """
    normal = torch.randn(len(batch.chunk), generator=generator) * config.noise_std + config.noise_mean
    sigma = torch.sigmoid(normal).clamp(config.loss_sigma_min, 0.999).to(device)
    noise = torch.randn(batch.chunk.shape, generator=generator).to(device)
    context, chunk, actions = (x.to(device) for x in (batch.context, batch.chunk, batch.actions))
    noisy = torch.lerp(chunk, noise, sigma.view(-1, 1, 1, 1, 1))
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        velocity = model(noisy, sigma * NUM_TRAIN_TIMESTEPS, context, actions, return_dict=False)[0]
    error: Tensor = velocity.float() - (noise - chunk)
    return error.square().mean()


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the transformer blocks, AdamW for everything else."""
    named = dict(model.named_parameters())
    matrices = [
        p
        for n, p in named.items()
        if n.startswith("transformer_blocks") and p.ndim == 2 and "modulation" not in n
    ]
    chosen = {id(p) for p in matrices}
    rest = [p for p in named.values() if id(p) not in chosen]
    return [
        Muon(matrices, lr=config.learning_rate, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    ]


class Trainer:
    """One training run in a folder: model, its moving average, optimizers, step and generator."""

    def __init__(
        self,
        model: ActionTransformer3DModel,
        data: WindowDataset,
        config: TrainConfig,
        folder: Path,
        device: torch.device,
    ) -> None:
        self.model = model.to(device)
        self.data, self.config, self.folder, self.device = data, config, folder, device
        self.optimizers = make_optimizers(model, config)
        self.ema = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step = 0
        self.seconds = 0.0

    def resume(self) -> bool:
        """Continue from the folder's checkpoint, if there is one."""
        path = self.folder / CHECKPOINT
        if not path.exists():
            return False
        saved = torch.load(path, weights_only=True, map_location=self.device)
        self.model.load_state_dict(saved["model"])
        self.ema = saved["ema"]
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.generator.set_state(saved["generator"].cpu())
        self.step, self.seconds = saved["step"], saved["seconds"]
        return True

    def save(self) -> None:
        """Write the checkpoint, replacing the old one in a single move."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / (CHECKPOINT + ".part")
        torch.save(
            {
                "model": self.model.state_dict(),
                "ema": self.ema,
                "optimizers": [o.state_dict() for o in self.optimizers],
                "generator": self.generator.get_state(),
                "step": self.step,
                "seconds": self.seconds,
            },
            temporary,
        )
        temporary.rename(self.folder / CHECKPOINT)

    def run(
        self,
        *,
        compile_model: bool = False,
        progress: Callable[[int, float], None] | None = None,
    ) -> None:
        """Train up to ``config.steps``; ``progress`` is told the step and a smoothed loss."""
        forward: Callable[..., Any] = torch.compile(self.model) if compile_model else self.model
        smooth, log = None, []
        last = time.monotonic()
        self.model.train()
        while self.step < self.config.steps:
            loss = self.train_step(forward)
            smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
            now = time.monotonic()
            self.seconds, last = self.seconds + now - last, now
            if progress:
                progress(self.step, smooth)
            if self.step % 50 == 0:
                log.append({"step": self.step, "loss": smooth, "seconds": round(self.seconds)})
            if self.step % self.config.save_every == 0 or self.step == self.config.steps:
                self.save()
                with (self.folder / "log.jsonl").open("a") as out:
                    out.writelines(json.dumps(line) + "\n" for line in log)
                log = []

    def train_step(self, forward: Callable[..., Any]) -> float:
        """One optimizer step; returns the loss."""
        factor = learning_rate_at(self.step, self.config)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = factor * self.config.learning_rate
        batch = self.data.sample(self.config.batch_size, self.generator)
        batch = augment(batch, self.config, self.model.config.num_actions, self.generator)
        loss = velocity_loss(forward, batch, self.config, self.generator, self.device)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(self.config.ema_decay, self.step / (self.step + 10))
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                self.ema[name].lerp_(parameter, 1 - decay)
        return float(loss.detach())

    def averaged_model(self) -> ActionTransformer3DModel:
        """A copy of the model with the averaged weights."""
        model = ActionTransformer3DModel.from_config(self.model.config)
        model.load_state_dict(self.ema)
        return cast(ActionTransformer3DModel, model.eval())
