"""Turns between the feeding thread and questions."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from runtime.border import Border
from tests.runtime.watching import PATIENCE, until


def started(run: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_frame_and_questions_in_the_order_that_is_fair() -> None:
    border, order = Border(), []

    def ask(name: str) -> None:
        with border.question():
            order.append(name)

    def feed() -> None:
        with border.frame():
            order.append("frame")
        border.frame_done()

    def begin(name: str) -> None:
        with border.changed:
            border.asking += 1
        ask(name)

    begin("one")
    assert border.hold_back(0.0, True, 0.001)  # a frame is due and waits for the first question's token
    feeding = started(feed)
    with border.changed:
        border.asking += 1  # the second question comes
    border.first_token()  # of the first: the frame is owed now, though a question waits
    feeding.join(PATIENCE)
    assert order == ["one", "frame"]
    ask("two")
    border.first_token()
    assert order == ["one", "frame", "two"]
    assert (border.asking, border.answering) == (0, 2)
    border.answered(True)
    border.answered(True)
    assert not border.hold_back(0.0, True, 0.001)
    assert border.hold_back(1e9, True, 0.001)


def test_a_question_waits_for_the_frame_that_is_owed() -> None:
    border, order = Border(), []
    with border.changed:
        border.asking += 1
    border.hold_back(0.0, True, 0.001)
    border.first_token()
    with border.changed:
        border.asking += 1

    def ask() -> None:
        with border.question():
            order.append("question")

    asking = started(ask)
    assert not border.hold_back(0.0, True, 0.001)
    with border.frame():
        order.append("frame")
    border.frame_done()
    asking.join(PATIENCE)
    assert order == ["frame", "question"]


def test_one_at_a_time_and_only_the_holder_is_let_in() -> None:
    border, found = Border(), []
    with border.question():
        assert border.lets_in()
        thread = started(lambda: found.append(border.lets_in()))
        thread.join(PATIENCE)
        waiting = started(lambda: border.frame().__enter__())
        until(lambda: border._blocked)
        assert waiting.is_alive()
    waiting.join(PATIENCE)
    assert found == [False]
    assert not border.lets_in()


def test_a_question_that_fails_leaves_the_border_free() -> None:
    border = Border()
    with border.changed:
        border.asking += 1
    with pytest.raises(ValueError, match="gone"), border.question():
        raise ValueError("gone")
    border.answered(False)
    assert border.asking == 0
    with border.frame():
        assert border.lets_in()


def test_closing_lets_everybody_through() -> None:
    border = Border()
    with border.changed:
        border.asking += 1
    waiting = started(lambda: border.frame().__enter__())
    until(lambda: border._blocked)
    border.close()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
