"""The command line end to end, with a stub in the model's place."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import pytest

from apps import webcam_qa
from runtime.errors import InputError, StateError
from tests.apps.fakes import FlakyCamera, StubModel, picture


class Terminal(io.StringIO):
    """Typed input; a pipe unless `terminal`."""

    def __init__(self, text: str = "", terminal: bool = False) -> None:
        super().__init__(text)
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def run(model: StubModel, bundle: Path) -> Any:
    def call(*arguments: str, typed: str = "", terminal: bool = False) -> int:
        argv = ["--bundle", str(bundle), *arguments]
        return webcam_qa.main(argv, load=model.load, stdin=Terminal(typed, terminal))  # type: ignore[arg-type]

    return call


def script(path: Path, *entries: dict[str, Any]) -> str:
    path.write_text(json.dumps({"questions": list(entries)}))
    return str(path)


def test_a_question_about_a_file(run: Any, model: StubModel, video: Path, capsys: Any) -> None:
    code = run("--source", str(video), "--question", "What?", "--threads", "2", "--padding", "left16")
    out = capsys.readouterr().out
    assert code == 0
    assert model.asked == [("What?", [0])]
    assert model.sessions == ["left16"]
    assert model.loaded["threads"] == 2
    assert model.closed
    assert "What?\n  > seen: [0]\n" in out
    assert "TTFT" in out
    assert "50.0 tokens/s" in out
    assert "123 MiB" in out
    assert "frames dropped" in out


def test_several_questions_each_begin_afresh(run: Any, model: StubModel, video: Path) -> None:
    run("--source", str(video), "--question", "One?", "--question", "Two?", "--fast")
    assert [q for q, _ in model.asked] == ["One?", "Two?"]
    assert all(len(seen) == 1 for _, seen in model.asked)
    assert len(model.sessions) == 2


def test_or_go_on_in_one_conversation(run: Any, model: StubModel, video: Path) -> None:
    run("--source", str(video), "--question", "One?", "--question", "Two?", "--conversation", "--every", "0.3")
    assert len(model.sessions) == 1
    last = model.asked[-1][1]
    assert len(model.asked) >= 4
    assert last == sorted(set(last)), "no frame is shown twice"


def test_every_asks_again_about_newer_frames_until_the_source_ends(run: Any, model: StubModel, video: Path) -> None:
    began = time.monotonic()
    assert run("--source", str(video), "--question", "Now?", "--every", "0.2") == 0
    took = time.monotonic() - began
    shown = [seen[0] for _, seen in model.asked]
    assert 3 <= len(shown) <= 2 + took / 0.2  # not about every frame; a busy machine plays the video more slowly
    assert shown == sorted(set(shown))
    assert took < 5


def test_timed_questions_are_about_the_frame_of_their_time_however_slow_the_model(
    run: Any, model: StubModel, video: Path, tmp_path: Path, capsys: Any
) -> None:
    model.seconds_per_word = 0.3
    questions = script(
        tmp_path / "q.json",
        {"time_s": 0.2, "question": "A?", "answer": "seen: [4]"},
        {"time_s": 0.25, "question": "B?", "answer": "seen: [5]"},
        {"time_s": 0.5, "question": "C?", "answer": "seen: [2, 10]", "earlier_s": [0.1]},
        {"time_s": 0.75, "question": "D?", "answer": "seen: [2, 10, 15]", "follow_up": True},
    )
    assert run("--source", str(video), "--questions", questions, "--check") == 0
    out = capsys.readouterr().out
    assert out.count("[right]") == 4
    assert "4 of 4 right" in out
    assert len(model.sessions) == 3


@pytest.mark.parametrize(("check", "code"), [(["--check"], 1), (["--check", "1"], 0), (["--check", "2"], 1), ([], 0)])
def test_check_decides_the_exit_code(
    run: Any, video: Path, tmp_path: Path, capsys: Any, check: list[str], code: int
) -> None:
    questions = script(
        tmp_path / "q.json",
        {"time_s": 0, "question": "A?", "answer": "seen: [0]"},
        {"time_s": 0.1, "question": "B?", "answer": "something else"},
    )
    assert run("--source", str(video), "--questions", questions, "--fast", *check) == code
    assert "[wrong: it is something else]" in capsys.readouterr().out


def test_a_question_after_the_end_of_the_video_is_an_error(run: Any, video: Path, tmp_path: Path, capsys: Any) -> None:
    questions = script(tmp_path / "q.json", {"time_s": 60, "question": "A?", "answer": "x"})
    assert run("--source", str(video), "--questions", questions, "--fast") == 1
    assert "wanted: a frame at 60.0 s" in capsys.readouterr().err


def test_typed_questions_keep_one_conversation(run: Any, model: StubModel, tmp_path: Path, capsys: Any) -> None:
    cv2.imwrite(str(tmp_path / "only.png"), picture(7))
    typed = "One?\nTwo?\n/frame\n/reset\nThree?\n/nonsense\n/help\n/quit\nFour?\n"
    assert run("--source", str(tmp_path), typed=typed) == 0
    assert model.asked == [("One?", [7]), ("Two?", [7]), ("Three?", [7])]
    assert len(model.sessions) == 2
    out = capsys.readouterr().out
    assert "frame 0 at 0.00 s, 64 x 48" in out
    assert "forgot 2 questions" in out
    assert "there is no /nonsense" in out
    assert "/stop  end the answer" in out
    assert "? " not in out.replace("?\n", ""), "no prompt without a terminal"


def test_piped_questions_end_with_the_pipe(run: Any, model: StubModel, video: Path) -> None:
    assert run("--source", str(video), typed="One?\n\nTwo?") == 0
    assert len(model.asked) == 2


def test_no_question_at_all_is_an_error(run: Any, video: Path, capsys: Any) -> None:
    assert run("--source", str(video)) == 2
    assert "no question was asked" in capsys.readouterr().err


def test_stop_ends_a_streaming_answer(run: Any, model: StubModel, video: Path, capsys: Any) -> None:
    model.answer = lambda question, seen: " ".join(["word"] * 100) if question == "Long?" else "short"
    model.seconds_per_word = 0.02
    assert run("--source", str(video), typed="Long?\n/stop\nShort?\n") == 0
    out = capsys.readouterr().out
    assert out.count("word") < 20
    assert "[cancelled]" in out
    assert "> short" in out


def test_a_failed_question_does_not_end_the_watch(run: Any, model: StubModel, video: Path, capsys: Any) -> None:
    model.failures = {"Bad?": InputError("no such thing"), "Worse?": StateError("the state is not finite")}
    assert run("--source", str(video), typed="One?\nBad?\nTwo?\nWorse?\nThree?\n") == 0
    assert [q for q, _ in model.asked] == ["One?", "Bad?", "Two?", "Worse?", "Three?"]
    assert len(model.sessions) == 2, "wrong input keeps the conversation, a broken state begins a new one"
    assert "the state is not finite" in capsys.readouterr().out


def test_a_camera_that_disappears_keeps_the_conversation(
    model: StubModel, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    camera = FlakyCamera([*[picture(1)] * 3, None], None, [picture(2), 3.0])
    monkeypatch.setattr("apps.webcam_qa.open_source", lambda text, **options: camera.source())
    read, write = os.pipe()
    with os.fdopen(read) as stdin:

        def type_slowly() -> None:
            with os.fdopen(write, "w", buffering=1) as typist:
                time.sleep(0.2)
                typist.write("Before?\n")
                time.sleep(1.9)  # the camera is back after pauses of 0.5 and 1 s
                typist.write("After?\n/quit\n")

        threading.Thread(target=type_slowly).start()
        argv = ["--bundle", str(bundle), "--source", "7"]
        assert webcam_qa.main(argv, load=model.load, stdin=stdin) == 0
    assert model.asked == [("Before?", [1]), ("After?", [1, 2])]
    assert len(model.sessions) == 1
    out = capsys.readouterr().out
    assert "opening it again" in out
    assert "camera 7 is back" in out
    assert "2 reconnects" in out


def test_the_annotated_video_is_saved(run: Any, video: Path, tmp_path: Path, capsys: Any) -> None:
    saved = tmp_path / "out.mp4"
    assert run("--source", str(video), "--question", "Now?", "--every", "0.5", "--save", str(saved)) == 0
    assert f"saved {saved}" in capsys.readouterr().out
    capture = cv2.VideoCapture(str(saved))
    frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    assert frames == 20 + 2 * 20, "the video, and two seconds of its last frame"


def test_limits_end_the_watch(run: Any, model: StubModel, video: Path, capsys: Any) -> None:
    began = time.monotonic()
    source = ["--source", str(video), "--loop", "--question", "Now?", "--every", "0.1"]
    assert run(*source, "--frames", "8") == 0
    assert "8 frames read" in capsys.readouterr().out
    assert run(*source, "--duration", "0.5") == 0
    assert time.monotonic() - began < 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--every", "5"], "--every without a question"),
        (["--question", "A?", "--check"], "--check without true answers"),
        (["--question", "A?", "--questions", "Q"], "both --question and --questions"),
        (["--question", "A?", "--temperature", "-1"], "temperature"),
        (["--question", "A?", "--save", "out.gif"], "out.gif"),
    ],
)
def test_contradictions_are_refused_before_the_model_is_loaded(
    run: Any, model: StubModel, video: Path, tmp_path: Path, capsys: Any, arguments: list[str], message: str
) -> None:
    questions = script(tmp_path / "q.json", {"time_s": 0, "question": "A?"})
    arguments = [questions if a == "Q" else a for a in arguments]
    assert run("--source", str(video), *arguments) == 2
    assert message in capsys.readouterr().err
    assert not model.loaded


@pytest.mark.parametrize("arguments", [["--every", "0"], ["--threads", "x"], ["--frames", "0"], ["--nonsense"]])
def test_wrong_arguments_exit_with_2(run: Any, arguments: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(*arguments)
    assert exit_.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_a_source_that_does_not_exist(run: Any, capsys: Any) -> None:
    assert run("--source", "nothing.mp4", "--question", "A?") == 1
    assert "there is no nothing.mp4" in capsys.readouterr().err


def test_without_a_camera_the_sample_is_watched(
    run: Any, model: StubModel, video: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    script(video.with_suffix(".json"), {"time_s": 0.1, "question": "A?", "answer": "seen: [2]"})
    monkeypatch.setattr("apps.webcam_qa.SAMPLE", video)
    monkeypatch.setattr("apps.webcam_qa.first_camera", lambda: None)
    assert run("--check") == 0
    assert "this is the sample video" in capsys.readouterr().out
    assert run(typed="And now?\n/quit\n", terminal=True) == 0
    assert model.asked[-1][0] == "And now?", "at a terminal a person may go on asking"
    monkeypatch.setattr("apps.webcam_qa.first_camera", lambda: 3)
    monkeypatch.setattr("apps.webcam_qa.open_source", lambda text, **k: FlakyCamera([picture(int(text)), 9.0]).source())
    assert run("--question", "A?") == 0
    assert model.asked[-1] == ("A?", [3])


def test_a_missing_bundle_says_how_to_make_it(tmp_path: Path, video: Path, capsys: Any) -> None:
    argv = ["--bundle", str(tmp_path / "none"), "--source", str(video), "--question", "A?"]
    assert webcam_qa.main(argv, stdin=Terminal()) == 1
    assert f"python -m export CHECKPOINT --int8 --out {tmp_path / 'none'}" in capsys.readouterr().err


def test_control_c_ends_cleanly(run: Any, model: StubModel, video: Path, tmp_path: Path, capsys: Any) -> None:
    def interrupt(question: str, seen: list[int]) -> str:
        signal.raise_signal(signal.SIGINT)
        return "never"

    model.answer = interrupt
    saved = tmp_path / "out.mp4"
    # A shell that starts the tests in the background has SIGINT ignored, and Python then leaves it so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run("--source", str(video), "--question", "A?", "--save", str(saved)) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    out = capsys.readouterr().out
    assert "stopped" in out
    assert "saved" in out
    assert model.closed
    assert saved.stat().st_size > 0


def test_output_cut_off_by_head_is_no_error(bundle: Path, video: Path) -> None:
    argv = ["--bundle", str(bundle), "--source", str(video), "--question", "A?"]
    code = (
        "import sys; from apps import webcam_qa; from tests.apps.fakes import StubModel\n"
        "model = StubModel(); model.answer = lambda question, seen: 'word ' * 20000\n"
        f"sys.exit(webcam_qa.main({argv!r}, load=model.load))"
    )
    process = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "{sys.executable}" -c "$CODE" | head -n 1'],
        env={**os.environ, "CODE": code, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
