"""Metrics are what Prometheus reads, and logs are JSON; both are bounded."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from pathlib import Path

import pytest

from runtime.errors import ConfigError
from runtime.logs import JsonFormatter, event
from runtime.metrics import FAMILIES, SECONDS, Metrics
from tests.runtime.fake_model import fake_model, frame, say

LINE = re.compile(r'(vrwkv_[a-z_]+)(\{([a-z]+)="((?:[^"\\\n]|\\["\\n])*)"\})? (\S+)')


def samples(text: str) -> dict[tuple[str, str], float]:
    """Read the text format: a strict reader, so that the writer must be right."""
    found, kinds, seen = {}, {}, set()
    assert text.endswith("\n") or not text
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in kinds
            kinds[name] = kind
        elif not line.startswith("# HELP "):
            match = LINE.fullmatch(line)
            assert match, line
            base = re.sub(r"_(bucket|sum|count)$", "", match[1])
            assert match[1] in kinds or kinds[base] == "histogram"
            key = match[1], match[4] or ""
            assert key not in seen
            seen.add(key)
            found[key] = float(match[5])
    return found


def test_counters_gauges_and_histograms_as_text() -> None:
    metrics = Metrics()
    assert metrics.prometheus() == ""
    metrics.count("vrwkv_frames_total", 3, "fed")
    metrics.count("vrwkv_frames_total", 1, "dropped")
    metrics.count("vrwkv_frames_total", 2, "fed")
    metrics.set("vrwkv_state_tokens", 7)
    metrics.set("vrwkv_state_tokens", 2.5)
    for seconds in (0.01, 0.0100001, 0.3, 1e9):
        metrics.observe("vrwkv_ttft_seconds", seconds)
    found = samples(metrics.prometheus())
    assert found["vrwkv_frames_total", "fed"] == metrics.value("vrwkv_frames_total", "fed") == 5
    assert found["vrwkv_frames_total", "dropped"] == 1
    assert found["vrwkv_state_tokens", ""] == 2.5
    buckets = {label: n for (name, label), n in found.items() if name == "vrwkv_ttft_seconds_bucket"}
    assert list(map(float, buckets)) == [*SECONDS, float("inf")]
    assert list(buckets.values()) == [1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 4]
    assert found["vrwkv_ttft_seconds_count", ""] == metrics.value("vrwkv_ttft_seconds") == 4
    assert found["vrwkv_ttft_seconds_sum", ""] == pytest.approx(1e9 + 0.3200001)


def test_label_values_are_escaped() -> None:
    metrics = Metrics()
    metrics.count("vrwkv_answers_total", 1, 'a"b\\c\nd')
    assert samples(metrics.prometheus()) == {("vrwkv_answers_total", r"a\"b\\c\nd"): 1}


def test_what_is_not_declared_cannot_be_counted() -> None:
    metrics = Metrics()
    for wrong in (
        lambda: metrics.count("vrwkv_surprise_total"),
        lambda: metrics.count("vrwkv_state_tokens"),
        lambda: metrics.count("vrwkv_frames_total"),
        lambda: metrics.count("vrwkv_reconnects_total", 1, "label"),
        lambda: metrics.count("vrwkv_reconnects_total", -1),
        lambda: metrics.set("vrwkv_ttft_seconds", 1),
        lambda: metrics.observe("vrwkv_frames_total", 1),
    ):
        with pytest.raises(ConfigError):
            wrong()
    assert metrics.prometheus() == ""
    assert all(name.endswith("_total") == (family.kind == "counter") for name, family in FAMILIES.items())


def test_threads_lose_no_count() -> None:
    metrics = Metrics()

    def work() -> None:
        for _ in range(2000):
            metrics.count("vrwkv_reconnects_total")
            metrics.observe("vrwkv_frame_seconds", 0.1)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert metrics.value("vrwkv_reconnects_total") == metrics.value("vrwkv_frame_seconds") == 8000


def test_a_model_counts_what_its_sessions_do(tmp_path: Path) -> None:
    with fake_model(tmp_path / "bundle") as model:
        one, two = model.session(), model.session()
        one.see(frame(1))
        say(one, "What?", max_tokens=5)
        stream = two.ask("And?")
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        metrics = model.metrics
        assert metrics.value("vrwkv_tokens_total", "generated") == 6
        assert metrics.value("vrwkv_tokens_total", "fed") == one.tokens + two.tokens - 4  # steps of the first answer
        assert metrics.value("vrwkv_answers_total", "length") == metrics.value("vrwkv_answers_total", "cancelled") == 1
        assert metrics.value("vrwkv_ttft_seconds") == 2
        samples(metrics.prometheus())


def test_events_are_json_lines_that_hide_passwords() -> None:
    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(self.format(record))

    log, handler = logging.getLogger("tests.events"), Keep()
    log.propagate = False
    handler.setFormatter(JsonFormatter())
    log.addHandler(handler)
    event(log, logging.DEBUG, "unseen", "below the level")
    event(
        log,
        logging.WARNING,
        "lost",
        "lost rtsp://me:hush@cam/1 100%",
        source="http://me:hush@cam",
        again_in_s=0.5,
        level=3,
    )
    try:
        raise ValueError("rtsp://me:hush@cam")
    except ValueError:
        log.exception("failed %d times", 2)
    lost, failed = map(json.loads, records)
    assert (lost["event"], lost["message"]) == ("lost", "lost rtsp://***@cam/1 100%")
    assert (lost["source"], lost["again_in_s"], lost["level"]) == ("http://***@cam", 0.5, "warning")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", lost["time"])
    assert failed["message"] == "failed 2 times" and "ValueError" in failed["exception"]
    assert "hush" not in "".join(records)
