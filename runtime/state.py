"""The recurrent state: named slots in two buffer sets that are swapped after every step.

A step reads one set and writes the other, so nothing is allocated per token and a failed step leaves the state as it
was. Context slots (an image state) are only ever read and have one buffer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from runtime.backends.base import Backend, Buffer
from runtime.errors import StateError
from runtime.spec import SlotSpec


@dataclass(frozen=True)
class Snapshot:
    """A copy of a state on the host: slot name -> array. Never written after it is made, but by `State.snapshot`."""

    arrays: dict[str, np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(array.nbytes for array in self.arrays.values())


class Host(Protocol):
    """Where the values of a state are while it takes part in batched steps (`runtime.lanes`)."""

    def bring_home(self, state: State) -> None:
        """Copy the values back into the buffers of `state`, and forget it."""
        ...


class State:
    """Everything a model carries from one token to the next, for a batch of sequences."""

    def __init__(self, slots: tuple[SlotSpec, ...], backend: Backend, batch: int = 1) -> None:
        """Allocate zero-filled buffers for every slot."""
        self.slots, self.batch, self._backend = slots, batch, backend
        carried = [slot for slot in slots if slot.role == "carried"]
        context = {s.name: backend.allocate(s.resolve(batch), s.dtype) for s in slots if s.role == "context"}
        sets = [{s.name: backend.allocate(s.resolve(batch), s.dtype) for s in carried} for _ in range(2)]
        self._inputs: list[dict[str, Buffer]] = [{**one, **context} for one in sets]
        self._outputs = [{f"{name}_out": buffer for name, buffer in one.items()} for one in sets]
        self._current = 0
        self.away: Host | None = None  # who has the current values, if they are not in these buffers

    @property
    def inputs(self) -> dict[str, Buffer]:
        """Graph inputs of the next step: the current values."""
        if self.away is not None:
            self.away.bring_home(self)
        return self._inputs[self._current]

    @property
    def outputs(self) -> dict[str, Buffer]:
        """Graph outputs of the next step: the other set."""
        return self._outputs[1 - self._current]

    def take_in(self, lane: int, other: State) -> None:
        """Copy the current values of `other`, a state of one sequence, into sequence `lane` of this one."""
        source, target = other.inputs, self.inputs
        for slot in self.slots:
            target[slot.name].write(source[slot.name].read()[_lane(slot, 0)], _lane(slot, lane))

    def give_back(self, lane: int, other: State) -> None:
        """Copy the current values of sequence `lane` into `other`, a state of one sequence."""
        source, target = self.inputs, other._inputs[other._current]
        for slot in self.slots:
            target[slot.name].write(source[slot.name].read()[_lane(slot, lane)], _lane(slot, 0))

    def swap(self) -> None:
        """Make what the last step wrote the current values."""
        self._current = 1 - self._current

    @property
    def nbytes(self) -> int:
        """Bytes allocated, both sets together."""
        both = {id(buffer): buffer.nbytes for one in self._inputs for buffer in one.values()}
        return sum(both.values())

    def array(self, slot: str) -> np.ndarray:
        """Return a copy of one slot's current value, in the shape and axes the manifest declares."""
        if slot not in self.inputs:
            raise StateError(f"no slot {slot!r}", wanted=", ".join(self.inputs))
        return self.inputs[slot].read().copy()

    def write(self, slot: str, array: np.ndarray) -> None:
        """Overwrite one slot's current value, in the shape and dtype the manifest declares."""
        self.inputs[slot].write(array)

    def snapshot(self, into: Snapshot | None = None) -> Snapshot:
        """Copy the current values to the host; into an older snapshot of this model, if one may be overwritten."""
        if into is not None:
            for name, buffer in self.inputs.items():
                np.copyto(into.arrays[name], buffer.read(), casting="no")
            return into
        return Snapshot({name: buffer.read().copy() for name, buffer in self.inputs.items()})

    def restore(self, snapshot: Snapshot) -> None:
        """Overwrite the current values; raises `StateError` if the snapshot is of another model or batch size."""
        wanted = {name: (buffer.shape, buffer.dtype) for name, buffer in self.inputs.items()}
        found = {name: (array.shape, array.dtype) for name, array in snapshot.arrays.items()}
        if found != wanted:
            raise StateError(f"the snapshot holds {found}", wanted=str(wanted), hint="use a snapshot of this model")
        for name, buffer in self.inputs.items():
            buffer.write(snapshot.arrays[name])

    def copy(self) -> State:
        """Return an independent state with the same values."""
        other = State(self.slots, self._backend, self.batch)
        other.restore(self.snapshot())
        return other

    def zero(self) -> None:
        """Go back to the state before the first token."""
        for buffer in self.inputs.values():
            buffer.write(np.zeros(buffer.shape, buffer.dtype))


def _lane(slot: SlotSpec, lane: int) -> tuple[int | slice, ...]:
    """Index of one sequence in a slot's array."""
    return (*[slice(None)] * slot.axes.index("batch"), lane)
