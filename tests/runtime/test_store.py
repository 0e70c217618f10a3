"""Saved conversations: they go on bit for bit, or are refused; a save is whole or was never made."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime import Session, VisualRWKV, store
from runtime.errors import ConfigError, StateError, VisualRWKVError
from runtime.tensorfile import STALE, TensorFile, read_tensors, write_tensors
from tests.runtime.fake_model import bits, fake_context_model, fake_model, frame, say

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VisualRWKV:
    return fake_model(tmp_path_factory.mktemp("store") / "bundle")


@pytest.fixture(scope="module")
def saved(model: VisualRWKV, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conversation with a turn behind it and pictures that wait for the next question."""
    path = tmp_path_factory.mktemp("saved") / "kitchen.state"
    session = model.session(padding="left16")
    session.see(frame(1), frame(2))
    session.save(path)
    return path


def progress_of(session: Session) -> tuple[Any, ...]:
    progress = session.snapshot().progress
    queue = [item if isinstance(item, list) else item.embeddings.tobytes() for item in progress.queue]
    waiting = {index: picture.embeddings.tobytes() for index, picture in progress.waiting.items()}
    return progress.history, progress.tokens, progress.frames, queue, waiting, progress.placed, progress.pictures


@pytest.mark.parametrize("padding", ["none", "left16"])
@pytest.mark.parametrize("position", ["first", "last"])
@pytest.mark.parametrize("turns", [0, 1, 2])
def test_a_saved_conversation_goes_on_bit_for_bit(
    tmp_path: Path, position: Literal["first", "last"], padding: Literal["none", "left16"], turns: int
) -> None:
    first, second = (fake_model(tmp_path / "bundle", position) for _ in range(2))
    session = first.session(padding=padding)
    for turn in range(turns):
        session.see(frame(turn))
        say(session, f"Größe {turn}?\ud83c")
    session.see(frame(8), frame(9))
    session.save(tmp_path / "a.state")
    again = second.session(tmp_path / "a.state")
    assert progress_of(again) == progress_of(session)
    assert bits(again) == bits(session)
    for question in ("And now?", "And then?"):
        assert say(again, question) == say(session, question)
        assert bits(again) == bits(session)
        assert progress_of(again) == progress_of(session)
    again.reset()
    assert (again.tokens, again.frames, again.history) == (0, 0, [])


def test_pictures_that_make_a_context_are_saved_before_they_are_asked_about(tmp_path: Path) -> None:
    first, second = (fake_context_model(tmp_path / "bundle") for _ in range(2))
    session = first.session()
    say(session, "What?", frame(3))
    session.see(frame(1), frame(2))
    session.save(tmp_path / "a")
    again = second.session(tmp_path / "a")
    assert len(again.snapshot().progress.features) == 2
    assert say(again, "And now?") == say(session, "And now?")
    assert bits(again) == bits(session)

    def thinner(about: dict[str, str], saved: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        tensors["feature.1"] = tensors["feature.1"][:, :-1]

    with pytest.raises(StateError, match="malformed"):
        second.session(forged(tmp_path / "b", tmp_path / "a", thinner))


def test_a_new_conversation_can_be_saved(model: VisualRWKV, tmp_path: Path) -> None:
    model.session().save(tmp_path / "empty")
    assert say(model.session(tmp_path / "empty"), "One?") == say(model.session(), "One?")


def test_the_file_says_what_it_is_to_any_tool(model: VisualRWKV, saved: Path) -> None:
    tensors = safetensors.numpy.load_file(saved)
    assert set(tensors) == {"slot.att_shift", "slot.ffn_shift", "picture.0", "picture.1"}
    with safetensors.safe_open(saved, "numpy") as file:
        about = file.metadata()
    assert about["fingerprint"] == model.manifest.fingerprint
    assert about["backend"] == "fake"
    assert (about["tokens"], about["frames"], about["version"]) == ("0", "2", "1")


def test_saving_needs_a_free_and_sound_session(model: VisualRWKV, tmp_path: Path) -> None:
    session = model.session()
    stream = session.ask("Go?")
    next(stream)
    with pytest.raises(StateError, match="busy"):
        session.save(tmp_path / "a")
    with pytest.raises(ConfigError, match="compress"):
        model.session().save(tmp_path / "a", compress="int4")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_file_is_refused(model: VisualRWKV, saved: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(saved.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "remove"]))
    if kind == "flip":
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del content[at:]
    elif kind == "insert":
        content[at:at] = data.draw(st.binary(min_size=1, max_size=9))
    else:
        del content[at : at + 1]
    damaged = tmp_path / "damaged"
    damaged.write_bytes(content)
    with pytest.raises(StateError):
        model.session(damaged)


def test_bytes_anywhere_count(model: VisualRWKV, saved: Path, tmp_path: Path) -> None:
    content, damaged = saved.read_bytes(), tmp_path / "damaged"
    for at in [*range(200), *range(200, len(content), 7)]:
        damaged.write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
        with pytest.raises(StateError):
            store.load(damaged, model.manifest, "fake")


Change = Callable[[dict[str, str], dict[str, Any], dict[str, np.ndarray]], Any]


def forged(path: Path, saved: Path, change: Change) -> Path:
    """Write `path` with other content and a checksum that is right."""
    file = read_tensors(saved, limit=1 << 20)
    about = {key: text for key, text in file.metadata.items() if key != "sha256"}
    session, tensors = json.loads(about["session"]), dict(file.tensors)
    change(about, session, tensors)
    about["session"] = json.dumps(session) if "session" in about else ""
    write_tensors(path, tensors, about)
    return path


def nan(array: np.ndarray) -> np.ndarray:
    return np.full_like(array, np.nan)


FORGERIES: dict[str, Change] = {
    "newer": lambda a, s, t: a.update(version="2"),
    "version of nonsense": lambda a, s, t: a.update(version="9" * 5000),
    "other format": lambda a, s, t: a.update(format="visualrwkv-persona"),
    "other model": lambda a, s, t: a.update(fingerprint="0" * 64),
    "no session": lambda a, s, t: a.pop("session"),
    "unknown key": lambda a, s, t: s.update(more=1),
    "missing key": lambda a, s, t: s.pop("tokens"),
    "wrong type": lambda a, s, t: s.update(tokens="3"),
    "below zero": lambda a, s, t: s.update(tokens=-1),
    "bad padding": lambda a, s, t: s.update(padding="right"),
    "bad history": lambda a, s, t: s.update(history=[{"question": 3}]),
    "id outside": lambda a, s, t: s["queue"].append({"ids": [259], "picture": None}),
    "id below": lambda a, s, t: s["queue"].append({"ids": [-1], "picture": None}),
    "picture outside": lambda a, s, t: s["queue"].append({"ids": [], "picture": 2}),
    "picture below": lambda a, s, t: s["queue"].append({"ids": [], "picture": -1}),
    "waiting picture": lambda a, s, t: s.update(waiting={"0": 0}),
    "waiting nonsense": lambda a, s, t: s.update(waiting={"x": 0}),
    "too many placed": lambda a, s, t: s.update(placed=9),
    "no picture placed": lambda a, s, t: s.update(seen=3),
    "many pictures": lambda a, s, t: s.update(pictures=10**12),
    "pictures below zero": lambda a, s, t: s.update(pictures=-2),
    "features": lambda a, s, t: s.update(features=1),
    "slot missing": lambda a, s, t: t.pop("slot.att_shift"),
    "slot of another shape": lambda a, s, t: t.update({"slot.att_shift": np.zeros((2, 1, 9), np.float32)}),
    "slot of another type": lambda a, s, t: t.update({"slot.att_shift": np.zeros((2, 1, 8), np.int64)}),
    "slot not finite": lambda a, s, t: t.update({"slot.att_shift": nan(t["slot.att_shift"])}),
    "scale without values": lambda a, s, t: t.update({"slot.att_shift.scale": np.ones((2, 1, 1), np.float32)}),
    "scale not finite": lambda a, s, t: t.update(
        {
            "slot.att_shift": np.ones((2, 1, 8), np.int8),
            "slot.att_shift.scale": np.full((2, 1, 1), np.inf, np.float32),
        }
    ),
    "unknown tensor": lambda a, s, t: t.update(extra=np.zeros(3, np.float32)),
    "picture of another width": lambda a, s, t: t.update({"picture.0": np.zeros((3, 9), np.float32)}),
    "picture of nothing": lambda a, s, t: t.update({"picture.0": np.zeros((0, 8), np.float32)}),
    "picture not finite": lambda a, s, t: t.update({"picture.0": nan(t["picture.0"])}),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_file_is_refused(model: VisualRWKV, saved: Path, tmp_path: Path, name: str) -> None:
    forged(tmp_path / "good", saved, lambda about, session, tensors: None)
    assert say(model.session(tmp_path / "good"), "One?")  # what is changed is what is wrong
    with pytest.raises(StateError) as caught:
        model.session(forged(tmp_path / "bad", saved, FORGERIES[name]))
    assert "bad" in str(caught.value) or "not finite" in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_a_file_claims_nothing_else_is_raised(
    model: VisualRWKV, saved: Path, tmp_path: Path, data: st.DataObject
) -> None:
    def change(about: dict[str, str], session: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        session[data.draw(st.sampled_from(sorted(session)))] = data.draw(JSON)

    with suppress(VisualRWKVError):
        say(model.session(forged(tmp_path / "odd", saved, change)), "One?", max_tokens=2)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 7, b"\0" * 400, b"\xff" * 400, b"\x80\x04}q\x00.", b"PK\x03\x04" + b"\0" * 60],
    ids=["empty", "short", "zeros", "ones", "pickle", "zip"],
)
def test_what_is_no_state_file_is_refused(model: VisualRWKV, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(StateError, match="not a state file"):
        model.session(tmp_path / "other")


def test_paths_that_cannot_be_read(model: VisualRWKV, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    for path, text in (
        (tmp_path / "missing", "cannot be read"),
        (tmp_path, "not a file"),
        (tmp_path / "pipe", "not a file"),
        (huge, "bytes"),
        (Path("a\0b"), "cannot be read"),
    ):
        with pytest.raises(StateError, match=text):
            model.session(path)


def test_errors_name_both_sides(model: VisualRWKV, saved: Path, tmp_path: Path) -> None:
    other = replace(model.manifest, fingerprint="ab" * 32, name="other-int8-cpu", precision="int8")
    with pytest.raises(StateError) as caught:
        store.load(saved, other, "fake")
    for part in (str(saved), "'bundle' (fp32)", "'other-int8-cpu' (int8)", "open the bundle"):
        assert part in str(caught.value)
    with pytest.raises(StateError, match="upgrade visualrwkv-edge"):
        model.session(forged(tmp_path / "newer", saved, FORGERIES["newer"]))


def test_another_backend_is_warned_of(model: VisualRWKV, saved: Path) -> None:
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("runtime.store")
    logger.addHandler(handler)
    try:
        store.load(saved, model.manifest, "fake")
        assert not heard
        store.load(saved, model.manifest, "tensorrt")
    finally:
        logger.removeHandler(handler)
    assert len(heard) == 1 and "fake" in heard[0] and "tensorrt" in heard[0]


def small(value: float) -> dict[str, np.ndarray]:
    return {"a": np.full((3, 2), value, np.float32)}


def test_arrays_of_any_layout_come_back(tmp_path: Path) -> None:
    arrays = {
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "empty": np.zeros((0, 4), np.float16),
        "odd": np.arange(3, dtype=np.int8),
        "late": np.arange(5, dtype=np.int64),
    }
    write_tensors(tmp_path / "a", arrays, {"text": 'quotes " and ключ'})
    file = read_tensors(tmp_path / "a", limit=1000)
    assert isinstance(file, TensorFile)
    assert file.metadata["text"] == 'quotes " and ключ'
    for name, array in arrays.items():
        np.testing.assert_array_equal(file.tensors[name], array)
        assert not file.tensors[name].flags.writeable


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    path = tmp_path / "a"
    write_tensors(path, small(1), {})

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"runtime.tensorfile.os.{failing}", full)
    with pytest.raises(StateError, match="No space left"):
        write_tensors(path, small(2), {})
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert read_tensors(path, limit=1000).tensors["a"][0, 0] == 1


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def test_a_disk_that_fills_up_while_writing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_tensors(path, small(1), {})
    code = """
import resource, signal, sys, numpy
from pathlib import Path
from runtime.errors import StateError
from runtime.tensorfile import write_tensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_tensors(Path(sys.argv[1]), {"a": numpy.zeros(100_000, numpy.float32)}, {})
except StateError as error:
    print(error)
"""
    process = run(code, path)
    assert "cannot be written: File too large" in process.communicate(timeout=60)[0]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert read_tensors(path, limit=1000).tensors["a"][0, 0] == 1


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_save_that_is_killed_leaves_a_whole_file(tmp_path: Path, end: signal.Signals) -> None:
    path = tmp_path / "a"
    code = """
import sys, numpy
from pathlib import Path
from runtime.tensorfile import write_tensors
print("ready", flush=True)
for n in range(1, 100_000):
    write_tensors(Path(sys.argv[1]), {"a": numpy.full(500_000, n, numpy.float32)}, {})
"""
    for attempt in range(4):
        process = run(code, path)
        assert process.stdout is not None
        process.stdout.readline()
        while not path.exists():
            time.sleep(0.001)
        time.sleep(0.01 + 0.013 * attempt)
        process.send_signal(end)
        assert process.wait(timeout=60) == -end
        process.stdout.close()
        values = read_tensors(path, limit=1 << 24).tensors["a"]
        assert values[0] >= 1
        assert (values == values[0]).all()


def test_leftovers_of_killed_saves_are_removed_later(tmp_path: Path) -> None:
    old, new, other = (tmp_path / name for name in (".a.1.partial", ".a.2.partial", ".b.1.partial"))
    for file in (old, new, other):
        file.write_bytes(b"")
    for file in (old, other):
        os.utime(file, (time.time() - STALE - 9,) * 2)
    write_tensors(tmp_path / "a", small(1), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.2.partial", ".b.1.partial", "a"]


@pytest.mark.parametrize("path", ["no such folder/a", ".", "a\0b"])
def test_where_nothing_can_be_written(model: VisualRWKV, tmp_path: Path, path: str) -> None:
    with pytest.raises(StateError, match="cannot be written"):
        model.session().save(tmp_path / path)


def test_compressed_states_of_the_demo_model(demo_bundle: Path, tmp_path: Path) -> None:
    """A third of the space, an error of a percent, and the same answers."""
    questions = ("How many circles are there?", "Is it day or night?", "图里有红色图形吗？")
    rng = np.random.default_rng(0)
    with VisualRWKV.load(demo_bundle, threads=1) as model:
        for _ in range(4):
            session = model.session()
            session.see(rng.integers(0, 256, (96, 96, 3), np.uint8))
            say(session, questions[0])
            exact, packed = tmp_path / "exact", tmp_path / "packed"
            session.save(exact)
            session.save(packed, compress="int8")
            assert packed.stat().st_size < 0.3 * exact.stat().st_size
            loss = store.compression_loss(session.snapshot().state, model.manifest)
            assert loss["att_shift"] == loss["ffn_shift"] == 0
            assert 0.001 < loss["wkv"] < 0.015
            restored = model.session(packed)
            found, wanted = (s.snapshot().state.arrays["wkv"] for s in (restored, session))
            error = np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2))
            assert error == pytest.approx(loss["wkv"])
            for question in questions:
                assert say(restored, question, max_tokens=20) == say(session, question, max_tokens=20)


def test_quantised_rows() -> None:
    array = np.array([[[0, 0], [1, -127], [3e38, 0]]], np.float32)
    values, scale = store.quantise(array)
    assert values.tolist() == [[[0, 0], [1, -127], [127, 0]]]
    np.testing.assert_allclose(values * scale, array, rtol=1e-6)
