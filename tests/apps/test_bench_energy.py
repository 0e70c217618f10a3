"""Meters of energy, on folders that look like a machine's /sys."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from apps.bench import energy
from apps.bench.energy import PowerMeter, RaplMeter, find_meter


def package(root: Path, number: int, joules: float, wrap: int = 10**9) -> Path:
    """A RAPL package, and the core domain inside it that must not be counted twice."""
    for name in (f"intel-rapl:{number}", f"intel-rapl:{number}:0"):
        domain = root / "class" / "powercap" / name
        domain.mkdir(parents=True)
        (domain / "energy_uj").write_text(str(round(joules * 1e6)))
        (domain / "max_energy_range_uj").write_text(str(wrap))
    return root / "class" / "powercap" / f"intel-rapl:{number}" / "energy_uj"


def jetson(root: Path, rail: str) -> Path:
    """An INA3221 with one channel."""
    hwmon = root / "bus" / "i2c" / "drivers" / "ina3221" / "1-0040" / "hwmon" / "hwmon3"
    hwmon.mkdir(parents=True)
    (hwmon / "in1_label").write_text(rail + "\n")
    (hwmon / "in1_input").write_text("5000\n")
    (hwmon / "curr1_input").write_text("2000\n")
    return hwmon


def test_packages_are_summed_and_wrap_around(tmp_path: Path) -> None:
    first, second = package(tmp_path, 0, 3.0), package(tmp_path, 1, 999.0)
    meter, told = find_meter(tmp_path)
    assert isinstance(meter, RaplMeter) and told == "RAPL, 2 packages"
    meter.start()
    first.write_text(str(round(3.5e6)))
    second.write_text(str(round(1.0e6)))  # from 999 J over the end at 1000 J to 1 J: 2 J
    assert meter.stop() == pytest.approx(2.5, abs=1e-5)


def test_a_jetson_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jetson(tmp_path, "VDD_IN")
    meter, told = find_meter(tmp_path)
    assert isinstance(meter, PowerMeter) and told == "INA3221, VDD_IN"
    clock, sampled = iter(range(1000)), threading.Event()

    def seconds() -> float:
        now = next(clock)
        if now >= 3:
            sampled.set()
        return float(now)

    monkeypatch.setattr(energy, "SAMPLE_S", 0.001)
    monkeypatch.setattr(energy.time, "perf_counter", seconds)
    meter.start()
    assert sampled.wait(60)
    joules = meter.stop()
    assert joules >= 30 and joules % 10 == 0  # 5 V x 2 A over whole seconds of this clock


def test_other_rails_are_not_the_board(tmp_path: Path) -> None:
    jetson(tmp_path, "VDD_CPU_GPU_CV")
    assert find_meter(tmp_path)[0] is None


def test_the_reason_why_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "neither RAPL" in find_meter(tmp_path)[1]
    counter = package(tmp_path, 0, 1.0)
    read = Path.read_text

    def refused(self: Path, *args: str) -> str:
        if self == counter:
            raise PermissionError(13, "Permission denied", str(self))
        return read(self, *args)

    monkeypatch.setattr(Path, "read_text", refused)
    assert find_meter(tmp_path) == (None, f"not measurable here: only root may read {counter}")


def test_a_counter_that_is_no_number(tmp_path: Path) -> None:
    package(tmp_path, 0, 1.0).write_text("busy")
    meter, told = find_meter(tmp_path)
    assert meter is None and told.startswith("not measurable here: invalid literal")
