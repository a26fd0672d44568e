"""The error tree of the engine library.

    WorldCacheError
    ├── InvalidInput            a caller's value is wrong; ``param`` names the field
    │   ├── UnknownName         a model, policy, action, start or preset that does not exist
    │   └── PolicyNotCalibrated the policy needs a calibration that the model lacks
    ├── ModelLoadError          weights or configuration are missing or do not fit
    ├── RolloutFailed           one rollout failed while it ran; its neighbours did not
    │   └── OutOfMemory         the device had no memory for it, not even alone
    └── RolloutCancelled        the rollout was cancelled before it finished
        └── DeadlineExceeded    its deadline had passed

Every message says what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable


class WorldCacheError(Exception):
    """Base of every error that the library raises on purpose."""

    code = "internal_error"


class InvalidInput(WorldCacheError, ValueError):
    """A value that the caller gave cannot be used.

    Args:
        message: what is wrong and what to do.
        param: dotted path of the field at fault, for example ``"cache.max_skip"``.
        code: machine-readable name of the problem.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code

    def at(self, param: str) -> InvalidInput:
        """The same error, told of the field ``param``."""
        self.param = param
        return self


class UnknownName(InvalidInput):
    """A name that is not registered; the message lists the known ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, param: str | None = None) -> None:
        choices = ", ".join(sorted(known)) or "none"
        super().__init__(
            f"unknown {kind} {name!r}; use one of: {choices}", param=param, code=f"unknown_{kind}"
        )


class PolicyNotCalibrated(InvalidInput):
    """The policy needs measurements of this model that nobody has made."""

    def __init__(self, policy: str, model: str, *, param: str | None = None) -> None:
        super().__init__(
            f"policy {policy!r} is not calibrated for model {model!r}; choose another policy",
            param=param,
            code="policy_not_calibrated",
        )


class ModelLoadError(WorldCacheError):
    """A model could not be loaded; the message names the missing file or key."""

    code = "model_load_failed"


class RolloutFailed(WorldCacheError):
    """A rollout failed while it ran."""

    code = "rollout_failed"


class OutOfMemory(RolloutFailed):
    """The device had no memory for a rollout, not even alone."""

    code = "out_of_memory"


class RolloutCancelled(WorldCacheError):
    """A rollout was cancelled before it finished."""

    code = "rollout_cancelled"


class DeadlineExceeded(RolloutCancelled):
    """A rollout was cancelled because its deadline had passed."""

    code = "deadline_exceeded"
