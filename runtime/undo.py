"""The way back: a ring of states, one for every picture shown and question asked."""

from __future__ import annotations

from collections import deque

from runtime.errors import StateError
from runtime.progress import Picture, Progress
from runtime.state import Snapshot, State

UNDO_BYTES = 64 << 20  # per session: all 16 steps up to 4 MB of state, 5 steps of a 1.5 B model (13 MB)
UNDO_STEPS = 16


def undo_steps(max_bytes: int, snapshot_bytes: int) -> int:
    """How many states of `snapshot_bytes` fit into `max_bytes`, at most `UNDO_STEPS`."""
    return min(UNDO_STEPS, max_bytes // max(1, snapshot_bytes))


class UndoRing:
    """The last states of one session, in memory that is allocated once."""

    def __init__(self, state: State, max_bytes: int = UNDO_BYTES) -> None:
        """Reserve room for as many states as `max_bytes` holds; 0 keeps none."""
        first = state.snapshot()
        self.steps, self._max_bytes = undo_steps(max_bytes, first.nbytes), max_bytes
        self._free = [first, *(state.snapshot() for _ in range(self.steps - 1))][: self.steps]
        self._entries: deque[tuple[Snapshot, Progress]] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes reserved for states."""
        return sum(snapshot.nbytes for snapshot in (*self._free, *(entry[0] for entry in self._entries)))

    def push(self, state: State, progress: Progress) -> None:
        """Remember where a session stands; the oldest entry goes when there is no room.

        `progress` is kept as it is: nobody may change it from now on.
        """
        if not self.steps:
            return
        if not self._free:
            self._drop_oldest()
        self._entries.append((state.snapshot(into=self._free.pop()), progress))
        while len(self._entries) > 1 and self._pictures() + self.nbytes > self._max_bytes:
            self._drop_oldest()

    def pop(self) -> tuple[Snapshot, Progress]:
        """Take out the newest entry; its snapshot is valid until the next `push`. Raises `StateError` without one."""
        if not self._entries:
            raise StateError(
                "there is nothing to undo",
                wanted="a picture shown or a question asked since the session began, was reset or restored "
                f"(the last {self.steps} of them can be undone)",
                hint="take a snapshot() where you may want to go back to, or reset()",
            )
        entry = self._entries.pop()
        self._free.append(entry[0])
        return entry

    def clear(self) -> None:
        """Forget every entry."""
        while self._entries:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        self._free.append(self._entries.popleft()[0])

    def _pictures(self) -> int:
        """Bytes of the pictures that entries keep alive: those that waited for their question."""
        held: dict[int, int] = {}
        for _, progress in self._entries:
            pictures = (*(item for item in progress.queue if isinstance(item, Picture)), *progress.waiting.values())
            arrays = [*(picture.embeddings for picture in pictures), *progress.features]
            held.update({id(array): array.nbytes for array in arrays})
        return sum(held.values())
