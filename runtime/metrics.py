"""Numbers a fleet watches: counters, gauges and histograms of one model, as text that Prometheus reads.

Every metric is declared in `FAMILIES`; nothing else can be counted, and label values come from the code, so that the
memory is bounded. Clocks are monotonic: setting the time of day moves no figure.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Literal

from runtime.errors import ConfigError

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # upper ends of the buckets


@dataclass(frozen=True)
class Family:
    """A metric: what it is, and the one label that its values may carry."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    label: str = ""


FAMILIES = {
    "vrwkv_frames_total": Family("counter", "Frames of watched sources, by what became of them.", "what"),
    "vrwkv_reconnects_total": Family("counter", "Times a watched source was opened again."),
    "vrwkv_refreshes_total": Family("counter", "Times a watch went back to its clean state."),
    "vrwkv_rollbacks_total": Family("counter", "Times the watchdog took a session back."),
    "vrwkv_errors_total": Family("counter", "Calls that failed in the middle of a step.", "during"),
    "vrwkv_tokens_total": Family("counter", "Positions fed from prompts and pictures, and tokens generated.", "kind"),
    "vrwkv_answers_total": Family("counter", "Answers that came to an end, by how.", "finish"),
    "vrwkv_ttft_seconds": Family("histogram", "From asking a session to the first token of its answer."),
    "vrwkv_watch_ttft_seconds": Family("histogram", "The same while watching, waiting for the frame border included."),
    "vrwkv_frame_seconds": Family("histogram", "Time to feed one watched frame."),
    "vrwkv_state_tokens": Family("gauge", "Positions in the watched state since its reset or refresh."),
    "vrwkv_watch_bytes": Family("gauge", "Bytes held for watching."),
}


@dataclass
class _Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    total: float = 0.0


class Metrics:
    """The metrics of one model. Thread-safe."""

    def __init__(self) -> None:
        """Begin with nothing counted."""
        self._lock = threading.Lock()
        self._values: dict[str, dict[str, float]] = {}
        self._histograms: dict[str, _Histogram] = {}

    def count(self, name: str, by: float = 1, label: str = "") -> None:
        """Add to a counter. Raises `ConfigError` for one that is not declared, or `by` below 0."""
        self._declared(name, "counter", label)
        if by < 0:
            raise ConfigError(f"{name} counted by {by}", wanted="0 or more: counters only grow")
        with self._lock:
            values = self._values.setdefault(name, {})
            values[label] = values.get(label, 0) + by

    def set(self, name: str, value: float) -> None:
        """Set a gauge. Raises `ConfigError` for one that is not declared."""
        self._declared(name, "gauge", "")
        with self._lock:
            self._values.setdefault(name, {})[""] = value

    def observe(self, name: str, seconds: float) -> None:
        """Add a duration to a histogram. Raises `ConfigError` for one that is not declared."""
        self._declared(name, "histogram", "")
        bucket = next((i for i, end in enumerate(SECONDS) if seconds <= end), len(SECONDS))
        with self._lock:
            histogram = self._histograms.setdefault(name, _Histogram())
            histogram.counts[bucket] += 1
            histogram.total += seconds

    def value(self, name: str, label: str = "") -> float:
        """Return a counter or gauge, or how often a histogram was added to; 0 before the first time."""
        with self._lock:
            if name in self._histograms:
                return sum(self._histograms[name].counts)
            return self._values.get(name, {}).get(label, 0)

    def prometheus(self) -> str:
        """Return everything in Prometheus' text format, version 0.0.4; metrics that never occurred are left out."""
        lines: list[str] = []
        with self._lock:
            for name, family in FAMILIES.items():
                values, histogram = self._values.get(name, {}), self._histograms.get(name)
                if values or histogram:
                    lines += [f"# HELP {name} {family.help}", f"# TYPE {name} {family.kind}"]
                for label in sorted(values):
                    lines.append(f"{name}{_labels(family.label, label)} {_number(values[label])}")
                if histogram:
                    lines += _buckets(name, histogram)
        return "".join(f"{line}\n" for line in lines)

    def _declared(self, name: str, kind: str, label: str) -> None:
        family = FAMILIES.get(name)
        if family is None or family.kind != kind or bool(family.label) != bool(label):
            raise ConfigError(f"no {kind} {name!r} with label {label!r}", wanted=f"one of {', '.join(FAMILIES)}")


def _buckets(name: str, histogram: _Histogram) -> list[str]:
    lines, below = [], 0
    for end, count in zip((*map(_number, SECONDS), "+Inf"), histogram.counts, strict=True):
        below += count
        lines.append(f"{name}_bucket{_labels('le', end)} {below}")
    return [*lines, f"{name}_sum {histogram.total!r}", f"{name}_count {below}"]


def _labels(name: str, value: str) -> str:
    if not name:
        return ""
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'{{{name}="{escaped}"}}'


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
