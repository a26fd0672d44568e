"""``torch.compile`` for backbones whose batches come in every size."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import nn

_OPTIONS = {"isolate_recompiles": True}
"""Several models of one class would otherwise share a limit on how often their code is compiled."""


def compile_network(network: nn.Module) -> nn.Module:
    """The network compiled as a whole, sharing its weights with ``network``.

    One row gets code of its own, larger batches share code that leaves their size open. Each is made at
    the first call that needs it, which takes seconds to minutes: warm every size that will be used.
    """
    known = inspect.signature(torch.compile).parameters
    options: dict[str, Any] = {name: value for name, value in _OPTIONS.items() if name in known}
    return cast(nn.Module, torch.compile(network, fullgraph=True, **options))
