"""Random walks over everything a session can do, against a plain account of what was done.

The account of a session is the list of pictures and questions that led to where it stands: `undo`, `restore`, `fork`,
`save` and the like only choose which account counts. A session that never did anything but those pictures and
questions, on a model without a cache, must have the same state to the bit and say the same next.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from runtime import Session, SessionSnapshot, VisualRWKV
from runtime.backends.fake import FakeBackend
from runtime.errors import StateError
from runtime.session import GenerateOptions
from runtime.spec import SlotSpec
from runtime.state import State
from runtime.tokenizer import Tokenizer
from runtime.undo import UNDO_STEPS
from tests.runtime.fake_model import fake_model
from tests.runtime.recording import MANIFEST, RecordingEngine

LENGTH = 8000  # positions that a ledger holds


class LedgerEngine(RecordingEngine):
    """Records what it is fed in a slot of the state, so that states are compared position by position."""

    slots = (SlotSpec("fed", "int64", (1, "B", LENGTH + 1), ("layer", "batch", "position"), "carried"),)

    def __init__(self) -> None:
        super().__init__(replace(MANIFEST, slots=self.slots))
        self.backend, self.bundle = FakeBackend(), SimpleNamespace(manifest=self.manifest)

    def close(self) -> None:
        self.backend.close()

    def new_state(self) -> State:  # type: ignore[override]
        return State(self.slots, FakeBackend())

    def advance(self, x: Any, state: State, image: tuple[int, int] | None = None) -> np.ndarray:  # type: ignore[override]
        rows = x if isinstance(x, np.ndarray) else self.embed(x)
        (ledger,) = state.array("fed")[0]
        count = int(ledger[0])
        ledger[count + 1 : count + 1 + len(rows)] = rows[:, 0]
        ledger[0] = count + len(rows)
        state.write("fed", ledger[None, None])
        self._logits[:] = 0
        self._logits[self._next(ledger[1 : ledger[0] + 1].tolist())] = 1
        return self._logits


@dataclass(frozen=True)
class See:
    picture: int


@dataclass(frozen=True)
class Ask:
    question: str
    pictures: tuple[int, ...]
    tokens: int
    cancelled: int  # after this many chunks; 0 lets it finish


Account = tuple[See | Ask, ...]


class Walk(RuleBasedStateMachine):
    """Several sessions of one model; subclasses bring the model."""

    open_model: ClassVar[Callable[[Path], VisualRWKV]]
    open_plain: ClassVar[Callable[[Path], VisualRWKV]]
    picture: ClassVar[Callable[[int], np.ndarray]]

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name)
        self.model, self.plain = type(self).open_model(path), type(self).open_plain(path)
        self.sessions: list[tuple[Session, list[Account]]] = []  # accounts: where it stands, after where undo leads
        self.snapshots: list[tuple[SessionSnapshot, Account]] = []
        self.files: list[tuple[Path, Account]] = []
        self.told: dict[Account, str] = {}
        self.open()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            for index in range(len(self.sessions)):
                self.compare(index)
            self.model.close()
            self.plain.close()
            self.folder.cleanup()

    def at(self, index: int) -> tuple[Session, list[Account]]:
        return self.sessions[index % len(self.sessions)]

    def step(self, index: int, entry: See | Ask) -> None:
        session, accounts = self.at(index)
        perform(session, entry, type(self).picture)
        accounts.append((*accounts[-1], entry))
        del accounts[: -UNDO_STEPS - 1]

    which = st.integers(0, 5)

    @precondition(lambda self: len(self.sessions) < 4)
    @rule()
    def open(self) -> None:
        self.sessions.append((self.model.session(), [()]))

    @rule(index=which, picture=st.integers(0, 3))
    def see(self, index: int, picture: int) -> None:
        self.step(index, See(picture))

    @rule(
        index=which,
        question=st.sampled_from(["What?", "Why\n\nso?", "Größe？", ""]),
        pictures=st.lists(st.integers(0, 3), max_size=2),
        tokens=st.integers(1, 4),
        cancelled=st.integers(0, 3),
    )
    def ask(self, index: int, question: str, pictures: list[int], tokens: int, cancelled: int) -> None:
        self.step(index, Ask(question, tuple(pictures), tokens, cancelled))

    @rule(index=which)
    def undo(self, index: int) -> None:
        session, accounts = self.at(index)
        if len(accounts) > 1:
            session.undo()
            accounts.pop()
        else:
            with pytest.raises(StateError, match="nothing to undo"):
                session.undo()

    @rule(index=which)
    def reset(self, index: int) -> None:
        session, accounts = self.at(index)
        session.reset()
        accounts[:] = [()]

    @rule(index=which)
    def snapshot(self, index: int) -> None:
        session, accounts = self.at(index)
        self.snapshots = [*self.snapshots, (session.snapshot(), accounts[-1])][-3:]

    @precondition(lambda self: self.snapshots)
    @rule(index=which, number=which)
    def restore(self, index: int, number: int) -> None:
        session, accounts = self.at(index)
        snapshot, account = self.snapshots[number % len(self.snapshots)]
        session.restore(snapshot)
        accounts[:] = [account]

    @rule(index=which, place=which)
    def fork(self, index: int, place: int) -> None:
        session, accounts = self.at(index)
        self.sessions[place % len(self.sessions)] = session.fork(), [accounts[-1]]

    @rule(index=which, number=st.integers(0, 2))
    def save(self, index: int, number: int) -> None:
        session, accounts = self.at(index)
        path = Path(self.folder.name) / f"{number}.state"
        session.save(path)
        self.files = [entry for entry in self.files if entry[0] != path] + [(path, accounts[-1])]

    @precondition(lambda self: self.files)
    @rule(place=which, number=which)
    def load(self, place: int, number: int) -> None:
        path, account = self.files[number % len(self.files)]
        self.sessions[place % len(self.sessions)] = self.model.session(path), [account]

    @rule(index=which)
    def compare(self, index: int) -> None:
        session, accounts = self.at(index)
        if accounts[-1] not in self.told:
            plain = self.plain.session()
            for entry in accounts[-1]:
                perform(plain, entry, type(self).picture)
            self.told[accounts[-1]] = tell(plain)
        assert tell(session) == self.told[accounts[-1]]

    @invariant()
    def all_is_bounded(self) -> None:
        if hasattr(self, "sessions"):
            assert all(session.nbytes == self.sessions[0][0].nbytes for session, _ in self.sessions)
            assert all(session.rollbacks == 0 for session, _ in self.sessions)


def perform(session: Session, entry: See | Ask, picture: Callable[[int], np.ndarray]) -> None:
    if isinstance(entry, See):
        session.see(picture(entry.picture))
        return
    stream = session.ask(entry.question, [picture(n) for n in entry.pictures], GenerateOptions(max_tokens=entry.tokens))
    for count, _ in enumerate(stream, 1):
        if count == entry.cancelled:
            session.cancel()


def tell(session: Session) -> str:
    """Everything about a session: its state to the bit, its account of itself, and the logits of what it says next."""
    snapshot = session.snapshot()
    progress = snapshot.progress
    fork = session.fork()
    advance, logits = fork._scheduler.advance, []

    def listening(*arguments: Any) -> np.ndarray:
        found = advance(*arguments)
        logits.append(found.tobytes())
        return found

    fork._scheduler.advance = listening  # type: ignore[method-assign]
    try:
        said = [chunk.text for chunk in fork.ask("And now?", options=GenerateOptions(max_tokens=3))]
    finally:
        fork._scheduler.advance = advance  # type: ignore[method-assign]
    state = {name: hash(array.tobytes()) for name, array in snapshot.state.arrays.items()}
    return repr(
        (state, progress.history, progress.tokens, progress.frames, progress.pictures, said, hash(tuple(logits)))
    )


def random_picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (96, 96, 3), np.uint8)


def even_picture(number: int) -> np.ndarray:
    return np.full((5, 6, 3), 10 + 40 * number, np.uint8)


def walk(
    open_model: Callable[..., VisualRWKV],
    examples: int,
    steps: int,
    picture: Callable[[int], np.ndarray] = even_picture,
) -> None:
    class Machine(Walk):
        pass

    Machine.open_model = staticmethod(lambda folder: open_model(folder, cache_bytes=1 << 20))
    Machine.open_plain = staticmethod(lambda folder: open_model(folder, cache_bytes=0))
    Machine.picture = staticmethod(picture)
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks, database=None
        ),
    )


def test_a_ledger(tokenizer: Tokenizer) -> None:
    """Every position ever fed is compared."""
    walk(lambda folder, **options: VisualRWKV(LedgerEngine(), tokenizer, **options), examples=10, steps=200)  # type: ignore[arg-type]


def test_a_fake_model(tmp_path: Path) -> None:
    """Every bit of its state decides what it says next."""
    walk(lambda folder, **options: fake_model(tmp_path / "bundle", **options), examples=5, steps=100)


def test_the_demo_model(demo_bundle: Path) -> None:
    walk(
        lambda folder, **options: VisualRWKV.load(demo_bundle, threads=1, verify=False, **options),
        2,
        40,
        random_picture,
    )
