"""Asking a bundle everything, several questions at a time.

Models that allow it are asked in lockstep (`apps.evaluate.lockstep`). For the others, each of `batch` threads has a
session of its own, and the scheduler lets their tokens share steps of the model. Either way a picture is opened when
its question is asked, so that few are in memory.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from apps.evaluate.answers import Answer, Answers
from apps.evaluate.lockstep import Lockstep, suits
from apps.evaluate.sample import Problem, Sample, open_picture
from runtime import GenerateOptions, Session, VisualRWKV
from runtime.errors import InputError, StateError

Report = Callable[["Pace"], None]


@dataclass
class Pace:
    """How a run gets on, and what it cost."""

    total: int  # questions, those answered by an earlier run included
    before: int  # answered by an earlier run
    done: int = 0  # by this one, problems included
    tokens: int = 0  # generated
    prompt_tokens: int = 0  # text and pictures
    seconds: float = 0.0
    problems: list[Problem] = field(default_factory=list)

    @property
    def questions_per_s(self) -> float:
        """Of this run."""
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Generated, of this run, everything else it did included in the time."""
        return self.tokens / self.seconds if self.seconds else 0.0


class _Round:
    """What the threads of one run share."""

    def __init__(self, samples: Iterator[Sample], answers: Answers, pace: Pace) -> None:
        self.samples, self.answers, self.pace = samples, answers, pace
        self.reading, self.writing = threading.Lock(), threading.Lock()
        self.stop = threading.Event()
        self.error: BaseException | None = None

    def take(self) -> Sample | None:
        with self.reading:
            return None if self.stop.is_set() else next(self.samples, None)

    def keep(self, outcome: Answer | Problem) -> None:
        with self.writing:
            if isinstance(outcome, Answer):
                self.answers.add(outcome)
                self.pace.tokens += outcome.tokens
                self.pace.prompt_tokens += outcome.prompt_tokens
            else:
                self.pace.problems.append(outcome)
            self.pace.done += 1

    def fail(self, error: BaseException) -> None:
        with self.writing:
            self.error = self.error or error
        self.stop.set()


def ask_all(
    model: VisualRWKV,
    samples: Iterable[Sample],
    answers: Answers,
    total: int,
    *,
    before: int,
    batch: int,
    options: GenerateOptions,
    report: Report = lambda pace: None,
) -> Pace:
    """Ask every sample; answers are on disk when this returns.

    Args:
        model: a loaded bundle.
        samples: with their pictures; read as they are needed.
        answers: where they go.
        total: how many questions the task has, for `report`.
        before: how many of them were answered before, for `report`.
        batch: how many are asked at a time; 1 asks one after the other, through a session.
        options: how answers are generated.
        report: is called now and then.

    Raises:
        VisualRWKVError: the model, the data or the disk failed; the answers so far are kept, as with Ctrl-C.
    """
    shared = _Round(iter(samples), answers, Pace(total, before))
    if batch > 1 and suits(model.manifest):
        return _in_lockstep(Lockstep(model, options, batch), shared, report)
    start = time.perf_counter()
    sessions = [model.session() for _ in range(batch)]
    threads = [
        threading.Thread(target=_work, args=(shared, session, options), daemon=True, name=f"evaluate-{i}")
        for i, session in enumerate(sessions)
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)
                shared.pace.seconds = time.perf_counter() - start
                report(shared.pace)
    except BaseException:
        shared.stop.set()
        for session in sessions:
            session.cancel()
        for thread in threads:
            thread.join()
        raise
    shared.pace.seconds = time.perf_counter() - start
    if shared.error is not None:
        raise shared.error
    report(shared.pace)
    return shared.pace


def _in_lockstep(lockstep: Lockstep, shared: _Round, report: Report) -> Pace:
    start = time.perf_counter()
    for outcome in lockstep.answer(shared.samples):
        shared.keep(outcome)
        shared.pace.seconds = time.perf_counter() - start
        report(shared.pace)
    shared.pace.seconds = time.perf_counter() - start
    report(shared.pace)
    return shared.pace


def _work(shared: _Round, session: Session, options: GenerateOptions) -> None:
    try:
        while (sample := shared.take()) is not None:
            outcome = ask(session, sample, options)
            if not shared.stop.is_set():  # a cancelled answer is none
                shared.keep(outcome)
    except BaseException as error:
        shared.fail(error)


def ask(session: Session, sample: Sample, options: GenerateOptions) -> Answer | Problem:
    """Ask one question in a session that forgets what it was asked before."""
    session.reset()
    try:
        pictures = [open_picture(picture) for picture in sample.pictures]
        text, last = "", None
        for chunk in session.ask(sample.question, pictures, options):
            text, last = text + chunk.text, chunk
    except (InputError, StateError) as error:  # this picture, this question; the next may well be fine
        return Problem(f"question {sample.key}", str(error), sample.group)
    assert last is not None and last.stats is not None
    stats = last.stats
    return Answer(
        sample.key,
        text,
        sample.digest,
        stats.generated_tokens,
        stats.prompt_tokens + stats.image_tokens,
        last.finish_reason or "",
    )
