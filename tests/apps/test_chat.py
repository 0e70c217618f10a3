"""A conversation in the terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from apps.chat.__main__ import main
from apps.chat.paths import read_path, split_pictures
from apps.chat.screen import Plain, Rich, Terminal, tame, thumbnail
from apps.chat.talk import Talk
from runtime import GenerateOptions, Stats, VisualRWKV
from runtime.errors import ConfigError, InputError, StateError
from tests.runtime.fake_model import fake_model, frame

ROOT = Path(__file__).resolve().parents[2]
STATS = Stats(5, 16, 3, 0.1234, 0.05, 0.04, 0.2, 50.04, 123 << 20, 4096)


class Notes:
    """A screen that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.errors: list[str] = []
        self.pictures: list[tuple[str, tuple[int, int]]] = []
        self.answers: list[str] = []
        self.reasons: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def error(self, text: str) -> None:
        self.errors.append(text)

    def picture(self, path: Path, size: tuple[int, int]) -> None:
        self.pictures.append((path.name, size))

    @contextmanager
    def answer(self) -> Iterator[Any]:
        self.answers.append("")

        def piece(text: str) -> None:
            self.answers[-1] += text

        yield piece

    def figures(self, stats: Stats, reason: str, tokens: int) -> None:
        self.reasons.append(reason)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of pictures with names that terminals have to quote."""
    folder = tmp_path / "my pictures"
    folder.mkdir()
    for number, name in enumerate(("cat.png", "it's a dog.jpg", "größe 1.PNG")):
        Image.fromarray(frame(number)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[VisualRWKV]:
    with fake_model(tmp_path / "model") as model:
        yield model


@pytest.fixture
def talk(fake: VisualRWKV) -> Talk:
    return Talk(fake, Notes(), GenerateOptions(max_tokens=6))


def notes(talk: Talk) -> Notes:
    screen = talk._screen
    assert isinstance(screen, Notes)
    return screen


def escaped(path: Path) -> str:
    """As a file manager drops it: what the shell would read otherwise stands behind a backslash."""
    return "".join(f"\\{c}" if c in " '()" else c for c in str(path))


def test_dropped_pictures_are_found(pictures: Path) -> None:
    cat, dog, large = (pictures / name for name in ("cat.png", "it's a dog.jpg", "größe 1.PNG"))
    assert split_pictures(f"'{cat}'") == ([cat], "")
    assert split_pictures(f'"{dog}" ') == ([dog], "")
    assert split_pictures(escaped(dog)) == ([dog], "")
    assert split_pictures(shlex.quote(str(dog)) + " ") == ([dog], "")  # an apostrophe in quotes
    assert split_pictures(f"don't look: {shlex.quote(str(dog))} isn't") == ([dog], "don't look: isn't")
    assert split_pictures(str(large)) == ([large], "")  # not quoted at all
    assert split_pictures(f"{cat.as_uri()}\n") == ([cat], "")
    assert split_pictures(large.as_uri()) == ([large], "")
    assert split_pictures(f"'{cat}' {escaped(dog)}  {large.as_uri()}") == ([cat, dog, large], "")


def test_a_question_may_stand_beside_them(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cat = pictures / "cat.png"
    assert split_pictures(f"'{cat}' Is it a cat?") == ([cat], "Is it a cat?")
    assert split_pictures(f"What's   in {escaped(cat)} ?") == ([cat], "What's in ?")
    monkeypatch.chdir(pictures)
    assert split_pictures("cat.png") == ([Path("cat.png")], "")
    assert split_pictures("./cat.png What is it?") == ([Path("cat.png")], "What is it?")
    assert split_pictures("is that cat.png?") == ([], "is that cat.png?")
    assert split_pictures("describe cat.png please") == ([], "describe cat.png please")


@pytest.mark.parametrize(
    "line",
    ["", "I don't know what's \"this", "'", "a \\", "/nowhere/cat.png", "file:///nowhere/cat.png", "file://",
     "~nobody/x.png", "x\0y.png", "/" + "x" * 5000 + ".png", "'/etc/passwd'", "C:\\cat.png what?", "1/2 or 3/4?"],
)  # fmt: skip
def test_other_lines_stay_as_they_are(line: str) -> None:
    assert split_pictures(line) == ([], line.strip())


def test_only_pictures_count(pictures: Path) -> None:
    assert split_pictures(f"'{pictures / 'notes.txt'}'")[0] == []
    assert split_pictures(f"'{pictures}'")[0] == []


def test_paths_of_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert read_path("~/a.state") == Path("/home/me/a.state")
    assert read_path(r"my\ kitchen.state") == Path("my kitchen.state")
    assert read_path("'my kitchen.state'") == Path("my kitchen.state")
    assert read_path("file:///tmp/my%20kitchen.state") == Path("/tmp/my kitchen.state")


def test_pictures_and_questions(talk: Talk, pictures: Path) -> None:
    screen = notes(talk)
    assert talk.line(f"'{pictures / 'cat.png'}' What is it?")
    assert screen.pictures == [("cat.png", (7, 6))]
    assert len(screen.answers[0]) == 6 and screen.reasons == ["length"]
    talk.line(f"/image {escaped(pictures / 'cat.png')} '{pictures / 'größe 1.PNG'}'")
    assert [name for name, _ in screen.pictures] == ["cat.png", "cat.png", "größe 1.PNG"]
    talk.line("And these?")
    talk.line("/history")
    assert screen.notes[-1].splitlines() == [
        "> [1 picture] What is it?",
        screen.answers[0],
        "> [2 pictures] And these?",
        screen.answers[1],
    ]


def test_undo_takes_back_one_step(talk: Talk, pictures: Path) -> None:
    screen = notes(talk)
    talk.line(f"'{pictures / 'cat.png'}'")
    talk.line("One?")
    talk.line("/undo")
    talk.line("One?")
    assert screen.answers[0] == screen.answers[1]
    talk.line("/undo")
    talk.line("/undo")
    assert screen.notes == [
        "took back the question 'One?'",
        "took back the question 'One?'",
        "took back the picture cat.png",
    ]
    with pytest.raises(StateError, match="nothing to undo"):
        talk.line("/undo")


def test_a_fork_leaves_no_trace(talk: Talk) -> None:
    screen = notes(talk)
    talk.line("One?")
    talk.line("/fork")
    talk.line("Two?")
    talk.line("/fork")
    talk.line("Three?")
    talk.line("/back")
    talk.line("/back")
    talk.line("Two?")
    assert screen.answers[1] == screen.answers[3]
    with pytest.raises(StateError, match="no fork"):
        talk.line("/back")


def test_saving_and_loading(talk: Talk, fake: VisualRWKV, tmp_path: Path) -> None:
    screen = notes(talk)
    file = tmp_path / "my kitchen.state"
    talk.line("One?")
    talk.line(f"/save '{file}'")
    talk.line("Two?")
    talk.line(f"/load {escaped(file)}")
    talk.line("Two?")
    assert screen.answers[1] == screen.answers[2]
    talk.line(f"/save {file}")  # its own file may be written again
    other = tmp_path / "precious.txt"
    other.write_text("precious")
    with pytest.raises(ConfigError, match="there already"):
        talk.line(f"/save {other}")
    with pytest.raises(StateError):
        talk.line(f"/load {other}")
    assert other.read_text() == "precious"
    talk.line("/reset")
    talk.line("One?")
    assert screen.answers[-1] == screen.answers[0]
    again = Talk(fake, Notes(), GenerateOptions(max_tokens=6), file)
    again.line("/history")
    assert "> Two?" in notes(again).notes[-1]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/imgae x.png", "did you mean /image"),
        ("/xyzzy", "/help lists"),
        ("/nowhere/cat.png", "neither a command nor a picture"),
        ("/image", "without a file"),
        ("/image nothing.png", "nothing.png"),
        ("/save", "without a file"),
        ("/load nothing.state", "nothing.state"),
    ],
)
def test_mistakes_are_said(talk: Talk, line: str, says: str) -> None:
    with pytest.raises((InputError, ConfigError, StateError), match=says):
        talk.line(line)


def test_leaving(talk: Talk) -> None:
    assert talk.line("") and talk.line("/help")
    assert "/fork" in notes(talk).notes[-1]
    assert not talk.line("/quit")


def test_ctrl_c_ends_the_answer_and_nothing_else(fake: VisualRWKV) -> None:
    talk = Talk(fake, Notes(), GenerateOptions(max_tokens=100_000))
    advance, steps = fake.engine.advance, 0

    def pressing(*args: Any) -> np.ndarray:
        nonlocal steps
        steps += 1
        if steps == 5:
            signal.raise_signal(signal.SIGINT)  # in the middle of a step
        return advance(*args)

    fake.engine.advance = pressing  # type: ignore[method-assign]
    before = signal.getsignal(signal.SIGINT)
    talk.line("One?")
    assert (talk.stopped, notes(talk).reasons, steps) == (True, ["cancelled"], 5)
    assert signal.getsignal(signal.SIGINT) is before
    talk._options = GenerateOptions(max_tokens=3)
    talk.line("Two?")
    assert (talk.stopped, len(notes(talk).answers[1])) == (False, 3)


def test_a_pipe_gets_answers_alone(
    fake: VisualRWKV, bundle: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["One?", "", "/undo", f"'{pictures / 'cat.png'}' Two?", "/help", "/quit", "Never?"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    assert main([str(bundle), "--max-tokens", "5"], load=lambda *_, **__: fake) == 0
    out, err = capsys.readouterr()
    assert [len(line) for line in out.splitlines()] == [5, 5] and err == ""


def test_a_pipe_that_fails_says_so(
    fake: VisualRWKV, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("/load nothing.state\nOne?"))
    assert main([str(bundle), "--max-tokens", "5"], load=lambda *_, **__: fake) == 1
    out, err = capsys.readouterr()
    assert len(out.strip()) == 5 and err.startswith("error: ")


def test_one_question_one_answer(
    fake: VisualRWKV, bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--image", str(pictures / "cat.png"), "--question", "What?", "--max-tokens", "4"]
    assert main([str(bundle), *asked], load=lambda *_, **__: fake) == 0
    assert len(capsys.readouterr().out) == 5
    assert main([str(bundle), "--max-tokens", "0", "--question", "x"], load=lambda *_, **__: fake) == 1
    assert "max_tokens is 0" in capsys.readouterr().err
    assert main([str(bundle / "nowhere")]) == 1
    assert "there is no bundle" in capsys.readouterr().err


def test_screens(pictures: Path) -> None:
    out, err = io.StringIO(), io.StringIO()
    for screen in (Plain(out, err), Terminal(out, err)):
        screen.note("a note")
        screen.picture(pictures / "cat.png", (7, 6))
        with screen.answer() as piece:
            piece("an answer\x1b[2J\a")
        screen.figures(STATS, "length", 40)
        screen.error("wrong")
    assert out.getvalue().splitlines() == [
        "an answer[2J",
        "  a note",
        "  [cat.png: 7 x 6]",
        "an answer[2J",
        "  TTFT 0.12 s · 50.0 tokens/s · 3 tokens · context 40 · 123 MiB · cut at --max-tokens",
    ]
    assert err.getvalue() == "error: wrong\n" * 2
    assert tame("a\r\nb\tc\x00\x9b") == "a\nb\tc"


def test_rich_screen(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich", reason="needs pip install rich")
    for name, value in {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = io.StringIO()
    screen = Rich(out)
    screen.note("a [note]")
    screen.picture(pictures / "cat.png", (7, 6))
    with screen.answer() as piece:
        for text in ("It is **", "bold**", " and [red]plain[/red].\x1b[2J"):
            piece(text)
    screen.error("wrong [x]")
    text = out.getvalue()
    assert "a [note]" in text and "wrong [x]" in text and "cat.png · 7 x 6" in text
    assert "\x1b[1mbold" in text and "[red]plain[/red]" in text
    assert text.count("▀") == 7 * 3
    assert "\x1b[2J" not in text
    lines = thumbnail(pictures / "cat.png").plain.splitlines()
    assert [len(line) for line in lines] == [7, 7, 7]


PROGRAM = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
from apps.chat.__main__ import main
from tests.runtime.fake_model import fake_model

model = fake_model(Path(sys.argv[1]))
advance = model.engine.advance
def slow(*args):
    time.sleep(0.005)
    return advance(*args)
model.engine.advance = slow
sys.exit(main([sys.argv[1], "--max-tokens", "100000", "--plain"], load=lambda *_, **__: model))
"""


def test_in_a_terminal(tmp_path: Path) -> None:
    """Typed for real: an answer is stopped, and two more Ctrl-C leave."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "bundle")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=_own_terminal,
    ) as chat:
        os.close(theirs)
        try:
            assert "type a question" in _until(ours, "> ")
            os.write(ours, b"Hello\n")
            _until(ours, r"\n[a-z]{5}")
            os.write(ours, b"\x03")
            _until(ours, r"· stopped\s+> ")
            os.write(ours, b"/history\n")
            _until(ours, r"  > Hello\s+[a-z]{5}[^>]*> ")
            os.write(ours, b"\x03")
            _until(ours, "/quit, leaves", again=b"\x03")
            os.write(ours, b"\x03")
            assert chat.wait(30) == 130
        finally:
            chat.kill()
            os.close(ours)


def _own_terminal() -> None:
    """Make the terminal the one that Ctrl-C of it reaches this process by."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _until(terminal: int, pattern: str, again: bytes = b"") -> str:
    """Read until `pattern` is found; return what was read.

    `again` is typed once more every ten seconds: a signal that comes just before readline waits is seen with the next.
    """
    seen, began = "", time.monotonic()
    end, patience = began + 60, began + 10
    while not re.search(pattern, seen):
        assert time.monotonic() < end, seen
        if again and time.monotonic() > patience:
            os.write(terminal, again)
            patience += 10
        if select.select([terminal], [], [], 1.0)[0]:
            seen += os.read(terminal, 65536).decode(errors="replace")
    return seen
