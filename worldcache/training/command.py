"""From nothing to a model that ``load_model`` reads: collect, train, export, evaluate."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch

from worldcache.errors import ModelLoadError, UnknownName
from worldcache.models.doom.transformer import ActionTransformer3DModel
from worldcache.models.doom.world import DoomWorldModel
from worldcache.policies.registry import make_policy
from worldcache.training.collect import SCENARIOS, Episode, Scenario, collect, load_episodes, save_episodes
from worldcache.training.data import WindowDataset, depth_scale
from worldcache.training.evaluate import control_accuracy, draw_samples, first_chunk_report, generate
from worldcache.training.export import choose_starts, export_model, model_card
from worldcache.training.inverse_dynamics import AFTER, train_classifier
from worldcache.training.train import TrainConfig, Trainer

Progress: TypeAlias = Callable[[str, int, int, str], None]
"""Told of a stage's name, its steps done, its steps in all, and a word about it."""

HELDOUT_SEED_OFFSET = 10_000
CLASSIFIER_STEPS = 1200


@dataclass(frozen=True)
class TrainOptions:
    """What to train, and how.

    Attributes:
        scenario: one of ``collect.SCENARIOS``.
        folder: where data, checkpoint, log and the exported ``model/`` go; a run resumes from it.
        model_id: name of the exported model.
        frames, heldout_frames: how much to collect.
        width, depth, heads, head_hidden: size of the transformer.
        initial: folder of an exported model to begin from, instead of random weights of that size.
        compile_model: use ``torch.compile`` while training.
        device: where to train and evaluate.
        notes: what the settings do not tell of how the model was trained, for its card.
        evaluation_chunks, evaluation_rollouts, evaluation_frames: size of the evaluation.
        train: steps, batch size and the rest of the recipe.
    """

    scenario: str = "basic"
    folder: Path = Path("runs/basic")
    model_id: str = "doom"
    frames: int = 60_000
    heldout_frames: int = 6_000
    width: int = 256
    depth: int = 6
    heads: int = 4
    head_hidden: int = 24
    initial: Path | None = None
    compile_model: bool = False
    device: str = "cpu"
    notes: str = ""
    evaluation_chunks: int = 128
    evaluation_rollouts: int = 24
    evaluation_frames: int = 32
    train: TrainConfig = field(default_factory=TrainConfig)


def train(options: TrainOptions, progress: Progress = lambda *_: None) -> Path:
    """Run every stage that is not done yet; returns the folder of the exported model.

    Raises:
        UnknownName: there is no such scenario.
        ModelLoadError: ``options.initial`` holds no model.
    """
    if options.scenario not in SCENARIOS:
        raise UnknownName("scenario", options.scenario, SCENARIOS, param="scenario")
    scenario = SCENARIOS[options.scenario]
    seed = options.train.seed
    episodes = _episodes(options, "train", options.frames, seed + 1, progress)
    heldout = _episodes(options, "heldout", options.heldout_frames, seed + 1 + HELDOUT_SEED_OFFSET, progress)
    depth_max = depth_scale(episodes)
    trainer = _trainer(options, scenario, episodes, depth_max)
    trainer.resume()
    trainer.run(
        compile_model=options.compile_model,
        progress=lambda step, loss: progress("train", step, options.train.steps, f"loss {loss:.4f}"),
    )
    folder = options.folder / "model"
    model = trainer.averaged_model()
    starts = choose_starts(heldout, scenario, model.config.context_frames)
    export_model(folder, model, scenario, starts, model_id=options.model_id, depth_max=depth_max)
    recipe = {
        "frames": sum(len(e.frames) for e in episodes),
        "heldout_frames": sum(len(e.frames) for e in heldout),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": trainer.step,
        "seconds": round(trainer.seconds),
        "device": "two CPU cores" if options.device == "cpu" else torch.cuda.get_device_name(options.device),
        "train": asdict(options.train),
        "notes": options.notes,
    }
    report = evaluate(folder, options, episodes, heldout, progress)
    (folder / "evaluation.json").write_text(json.dumps({"recipe": recipe, **report}, indent=2) + "\n")
    world = json.loads((folder / "world.json").read_text())
    (folder / "README.md").write_text(model_card(world, recipe, report))
    return folder


def evaluate(
    folder: Path,
    options: TrainOptions,
    episodes: list[Episode],
    heldout: list[Episode],
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """First-chunk errors and control accuracy of the exported model, uncached, on held-out play."""
    model = DoomWorldModel.load(folder, device=torch.device(options.device), dtype=torch.float32)
    info, policy = model.info, make_policy("none")

    def run(name: str, count: int, horizon: int) -> tuple[Any, Any]:
        samples = draw_samples(heldout, count, info.context_frames, horizon, seed=options.train.seed)
        done = 0

        def tell(finished: int) -> None:
            nonlocal done
            done += finished
            progress(name, done, count, "")

        results = generate(
            model, samples, policy, num_inference_steps=info.num_inference_steps, progress=tell
        )
        return samples, [frames for frames, _ in results]

    chunk_samples, chunks = run("first chunks", options.evaluation_chunks, info.chunk_frames)
    horizon = options.evaluation_frames + AFTER - 1
    rollout_samples, rollouts = run("rollouts", options.evaluation_rollouts, horizon)
    actions = SCENARIOS[options.scenario].actions
    classifier = train_classifier(
        episodes,
        len(actions),
        steps=CLASSIFIER_STEPS,
        progress=lambda step, loss: progress("inverse dynamics", step, CLASSIFIER_STEPS, f"loss {loss:.3f}"),
    )
    return {
        "steps": info.num_inference_steps,
        "first_chunk": first_chunk_report(chunk_samples, chunks),
        "control": control_accuracy(classifier, rollout_samples, rollouts, actions),
    }


def _episodes(options: TrainOptions, name: str, frames: int, seed: int, progress: Progress) -> list[Episode]:
    """Read the episodes called ``name``, playing them first if that was not done yet."""
    path = options.folder / f"{name}.npz"
    if not path.exists():
        done = 0

        def tell(collected: int) -> None:
            nonlocal done
            done += collected
            progress(f"collect {name}", done, frames, "")

        options.folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part.npz")
        save_episodes(temporary, collect(SCENARIOS[options.scenario], frames, seed, tell))
        temporary.rename(path)
    return load_episodes(path)


def _trainer(options: TrainOptions, scenario: Scenario, episodes: list[Episode], depth_max: float) -> Trainer:
    torch.manual_seed(options.train.seed)
    if options.initial is not None:
        weights = options.initial / "transformer"
        if not weights.is_dir():
            raise ModelLoadError(f"{weights} is missing; give the folder of an exported model")
        model = ActionTransformer3DModel.from_pretrained(weights, low_cpu_mem_usage=False)
    else:
        model = ActionTransformer3DModel(
            num_actions=len(scenario.actions),
            width=options.width,
            depth=options.depth,
            heads=options.heads,
            head_hidden=options.head_hidden,
        )
    data = WindowDataset(episodes, model.config.context_frames, model.config.chunk_frames, depth_max)
    return Trainer(model, data, options.train, options.folder, torch.device(options.device))
