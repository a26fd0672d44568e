"""A pipeline of its own for every call: the same weights, but nothing that a call changes.

Knows nothing of policies or of the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, TypeAlias

import torch
from diffusers.configuration_utils import ConfigMixin
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from worldcache.pipelines.enable import transformers_of


@dataclass(eq=False)
class TransformerCall:
    """A call of a transformer that a pipeline waits for.

    Attributes:
        function: makes it.
        output: what it returned, once it was made.
    """

    function: Callable[[], Any]
    output: Any = None

    def make(self) -> Tensor:
        """Make the call.

        Returns:
            float32 ``[1]`` on the device: 1 if every number of the output is finite, 0 if not.
        """
        self.output = self.function()
        values = [
            leaf
            for leaf in pytree.tree_leaves(self.output)
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel()
        ]
        spans = [high.float() - low.float() for low, high in map(torch.aminmax, values)]
        return torch.stack(spans).isfinite().all().float().reshape(1) if spans else torch.ones(1)


Ask: TypeAlias = Callable[[TransformerCall], Any]
"""Has a call made elsewhere, and returns its output."""


def make_now(call: TransformerCall) -> Any:
    """The call's output, made where it is asked for."""
    call.make()
    return call.output


def copy_for_call(pipe: Any, ask: Ask) -> Any:
    """A copy of a pipeline that shares its weights, for one call.

    Schedulers and guiders, which step, are copies. So are the transformers as far as hooks and contexts go:
    their parameters and submodules are the originals'. What a pipeline keeps about a running call is on the
    copy. Models that are offloaded stay where the call leaves them.

    Args:
        pipe: the pipeline; it stays as it is.
        ask: makes the calls of its transformers.
    """
    copied = copy(pipe)
    for name, part in pipe.components.items():
        if isinstance(part, ConfigMixin) and not isinstance(part, nn.Module):
            setattr(copied, name, deepcopy(part))
    for name, module in transformers_of(pipe).items():
        setattr(copied, name, _shell(module, ask))
    if getattr(pipe, "_all_hooks", None):
        copied._all_hooks = []  # or the call's end would take the hooks of all that runs beside it
    return copied


def _shell(module: nn.Module, ask: Ask) -> nn.Module:
    """The module again, without its diffusers hooks, whose forward is made by ``ask``."""
    shell = copy(module)
    vars(shell).pop("_diffusers_hook", None)
    forward = shell.forward

    @wraps(forward)
    def asking(*args: Any, **kwargs: Any) -> Any:
        return ask(TransformerCall(partial(forward, *args, **kwargs)))

    vars(shell)["forward"] = asking
    return shell


def bring_home(pipe: Any) -> None:
    """Move models that are offloaded between their calls to the host, all of them."""
    for hook in getattr(pipe, "_all_hooks", ()):
        hook.offload()
