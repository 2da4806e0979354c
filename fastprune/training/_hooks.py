"""What a caller of `fit` has called back, and the state that such hooks keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from fastprune.errors import CheckpointError
from fastprune.training.result import EpochRecord

__all__ = ["AfterBackward", "AfterEpoch", "AfterStep", "Hooks", "owner_of"]

AfterBackward = Callable[[], object]
"""Called once a step with gradients complete: unscaled, accumulated, not yet clipped.

One with an attribute ``capturable`` that is true, or of an object with such an attribute, says
that all it does is done on the device, the same at every step, and may become a part of a CUDA
graph: it is then not called at every step any more.

One with methods ``state_dict`` and ``load_state_dict``, or of an object with them, goes on where
it was when a training does: checkpoints and the stored result hold its state, tensors and plain
data. That is so for all three kinds of hooks; an object of several is saved once.
"""

AfterStep = Callable[[Any], object]
"""Called once a step with the learning rate just used, a float; one that is capturable, as above,
may be given it as a tensor, 0-dim float32 on the device, whose value changes from step to step."""

AfterEpoch = Callable[[EpochRecord], object]
"""Called once an epoch, after its validation and before its checkpoint. A training that was killed
between the two calls it for that epoch again, with state and weights as they were before."""


@runtime_checkable
class _Stateful(Protocol):
    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> object: ...


@dataclass(frozen=True, slots=True)
class Hooks:
    """The hooks of one training."""

    after_backward: AfterBackward | None = None
    after_step: AfterStep | None = None
    after_epoch: AfterEpoch | None = None

    def state_dict(self) -> list[Any]:
        """States of the hooks that have one, in the order of the fields."""
        return [owner.state_dict() for owner in self._owners()]

    def load_state_dict(self, states: list[Any] | None) -> None:
        """Goes on from states; from none where the training had no such hooks.

        Raises:
            CheckpointError: they are of other hooks.
        """
        owners = self._owners()
        if not states or not owners:
            return
        if len(states) != len(owners):
            raise CheckpointError(
                f"hooks: the training was begun with {len(states)} that have a state, and goes on "
                f"with {len(owners)}; give the same hooks, or train in another folder"
            )
        for owner, state in zip(owners, states, strict=True):
            owner.load_state_dict(state)

    def _owners(self) -> list[_Stateful]:
        hooks = (self.after_backward, self.after_step, self.after_epoch)
        owners = {id(owner): owner for owner in map(owner_of, hooks)}
        return [owner for owner in owners.values() if isinstance(owner, _Stateful)]


def owner_of(hook: Callable[..., object] | None) -> object:
    """The object that a hook is a method of; else the hook itself."""
    return getattr(hook, "__self__", hook)
