"""Which models a server has, as its settings say: where each comes from, where it goes, how it runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath

import torch

from app.settings import Settings
from worldcache.errors import InvalidInput
from worldcache.models.base import WorldModel
from worldcache.models.registry import DTYPES, load_model, model_names, weight_bytes

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
CLASS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
ALL, NONE = "all", "none"


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        load: makes the model on a device; it may take long, and is called on that device's engine thread.
        weight_bytes: what its weights are expected to take; 0 if that is not known.
    """

    load: Callable[[str], WorldModel]
    weight_bytes: int = 0


@dataclass(frozen=True)
class ModelEntry:
    """A model that the server can load.

    Attributes:
        id: the name that it is served under.
        device: where it goes.
        load: makes it, ready to be warmed.
        weight_bytes: what its weights are expected to take; 0 if that is not known.
        preload: whether it is loaded when the server starts.
    """

    id: str
    device: str
    load: Callable[[], WorldModel]
    weight_bytes: int = 0
    preload: bool = True


def read_catalogue(
    settings: Settings, given: Mapping[str, WorldModel | ModelSource] | None = None
) -> tuple[ModelEntry, ...]:
    """The models of the settings, each with its device.

    Args:
        settings: name the models, their devices and their options.
        given: models by name, instead of those that ``settings.models`` names.

    Raises:
        InvalidInput: an entry of a setting cannot be used; the message names the setting.
    """
    for device in settings.devices:
        _check_device(device)
    if given is None:
        sources = _registered(settings)
    else:
        sources = {name: _source(model) for name, model in given.items()}
    for setting, names in (("compile", settings.compile), ("cuda_graphs", settings.cuda_graphs)):
        _check_known(setting, names, sources)
    preloaded = _preloaded(settings, sources)
    devices = _place(settings, sources)
    return tuple(
        ModelEntry(
            id=name,
            device=devices[name],
            load=partial(
                _load,
                name,
                partial(source.load, devices[name]),
                compile=name in settings.compile,
                cuda_graphs=name in settings.cuda_graphs,
                max_batch=settings.max_batch,
            ),
            weight_bytes=source.weight_bytes,
            preload=name in preloaded,
        )
        for name, source in sources.items()
    )


def _load(
    name: str, load: Callable[[], WorldModel], *, compile: bool, cuda_graphs: bool, max_batch: int
) -> WorldModel:
    """The model, run as the settings say and known by the name that it is served under."""
    model = load()
    model.info = replace(model.info, id=name)
    if compile or cuda_graphs:
        model.optimise(compile=compile, cuda_graphs=cuda_graphs, max_batch=max_batch)
    return model


def _source(given: WorldModel | ModelSource) -> ModelSource:
    if isinstance(given, ModelSource):
        return given
    return ModelSource(lambda device: given, given.memory_bytes)


def _registered(settings: Settings) -> dict[str, ModelSource]:
    """The sources that ``settings.models`` names, in its order."""
    families: dict[str, tuple[str, str | None]] = {}
    for entry in settings.models:
        name, family, weights = _parse_model(entry)
        if name in families:
            raise _refusal("models", f"{name!r} is named twice; give one of them another name")
        families[name] = (family, weights)
    _check_known("offload", settings.offload, families)
    dtypes = _assignments("dtypes", settings.dtypes, families)
    for name, dtype in dtypes.items():
        if dtype not in DTYPES:
            raise _refusal("dtypes", f"{dtype!r} of {name!r} is none of: {', '.join(DTYPES)}")
    sources: dict[str, ModelSource] = {}
    for name, (family, weights) in families.items():
        dtype, offload = dtypes.get(name, settings.dtype), name in settings.offload
        sources[name] = ModelSource(
            partial(_load_registered, family, weights, dtype, offload),
            weight_bytes(family, path=weights, dtype=dtype),
        )
    return sources


def _load_registered(family: str, weights: str | None, dtype: str, offload: bool, device: str) -> WorldModel:
    return load_model(family, path=weights, device=device, dtype=dtype, offload=offload)


def _parse_model(entry: str) -> tuple[str, str, str | None]:
    """Name, family and weights of ``NAME``, ``NAME=FAMILY[:WEIGHTS]`` or ``FAMILY:WEIGHTS``."""
    name, equals, rest = (part.strip() for part in entry.partition("="))
    if not equals and ":" in name:
        rest, name = name, ""
    family, colon, weights = (part.strip() for part in rest.partition(":"))
    if colon and weights and not name and not equals:
        name = PurePath(weights).name
    if not NAME.fullmatch(name) or (equals and not family) or (colon and not weights):
        raise _refusal(
            "models",
            f"{entry!r} is none of NAME, NAME=FAMILY, NAME=FAMILY:WEIGHTS and FAMILY:WEIGHTS, with a name of "
            "at most 64 letters, digits, dots, dashes and underscores",
        )
    if name in (ALL, NONE):
        raise _refusal("models", f"no model can be called {name!r}; choose another name")
    family = family or name
    if family not in model_names() and not CLASS.fullmatch(family):
        hint = "" if equals else f", or say whose layout its weights have: {name}=FAMILY:WEIGHTS"
        message = f"there is no model {family!r}; use one of: {', '.join(model_names())}{hint}"
        raise _refusal("models", message)
    if weights and not HUB_ID.fullmatch(weights) and not Path(weights).is_dir():
        raise _refusal("models", f"the folder {weights} of {name!r} does not exist")
    return name, family, weights or None


def _preloaded(settings: Settings, sources: Mapping[str, ModelSource]) -> set[str]:
    """The models that are loaded at the start."""
    chosen = settings.preload
    if not chosen:
        raise _refusal("preload", f"it is empty; use {ALL}, {NONE}, or names of models")
    if chosen == (ALL,):
        return set(sources)
    if chosen == (NONE,):
        return set()
    for word in {ALL, NONE} & {*chosen}:
        raise _refusal("preload", f"{word!r} stands alone; leave out the rest, or name every model")
    _check_known("preload", chosen, sources)
    return set(chosen)


def _place(settings: Settings, sources: Mapping[str, ModelSource]) -> dict[str, str]:
    """A device for every model: the one it was given, or the one with the fewest bytes of weights so far.

    Of devices that hold as many bytes, the one with fewer models is taken, then the one named first.
    """
    placed = _assignments("placement", settings.placement, sources)
    for name, device in placed.items():
        if device not in settings.devices:
            choices = ", ".join(settings.devices)
            raise _refusal("placement", f"{device!r} of {name!r} is none of the devices: {choices}")
    load = {device: [0, 0] for device in settings.devices}

    def put(name: str, device: str) -> None:
        placed[name] = device
        load[device][0] += sources[name].weight_bytes
        load[device][1] += 1

    for name, device in list(placed.items()):
        put(name, device)
    for name in sources:
        graphs = name in settings.cuda_graphs
        if name not in placed:
            suitable = [device for device in load if _is_cuda(device) or not graphs]
            if suitable:
                put(name, min(suitable, key=load.__getitem__))
        if graphs and not _is_cuda(placed.get(name, "")):
            raise _refusal("cuda_graphs", f"{name!r} needs a CUDA device; put it on one or leave it out")
    return placed


def _check_device(device: str) -> None:
    try:
        torch.device(device)
    except RuntimeError:
        raise _refusal("devices", f"{device!r} is not a torch device; use cpu or, say, cuda:0") from None


def _is_cuda(device: str) -> bool:
    return device.partition(":")[0] == "cuda"


def _assignments(setting: str, entries: Sequence[str], known: Mapping[str, object]) -> dict[str, str]:
    """Entries ``NAME=VALUE`` as a mapping."""
    values: dict[str, str] = {}
    for entry in entries:
        name, _, value = (part.strip() for part in entry.partition("="))
        if not name or not value:
            raise _refusal(setting, f"{entry!r} is not NAME=VALUE")
        if name in values:
            raise _refusal(setting, f"{name!r} is named twice; leave one of them out")
        values[name] = value
    _check_known(setting, list(values), known)
    return values


def _check_known(setting: str, names: Sequence[str], known: Mapping[str, object]) -> None:
    for name in names:
        if name not in known:
            raise _refusal(setting, f"there is no model {name!r}; use one of: {', '.join(known)}")


def _refusal(setting: str, message: str) -> InvalidInput:
    return InvalidInput(f"setting {setting}: {message}", param=setting)
