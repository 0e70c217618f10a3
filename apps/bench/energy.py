"""Energy, where the machine tells: Intel and AMD's counters (RAPL), or the power monitor of a Jetson (INA3221).

Both tell what the whole package or board takes, idle cores and other programs included.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Protocol

SAMPLE_S = 0.05  # between two readings of a power monitor, which averages over more than this itself
JETSON_RAILS = ("VDD_IN", "VIN_SYS_5V0", "POM_5V_IN", "VDD_TOTAL")  # the rail that feeds the whole module


class Meter(Protocol):
    """Counts joules between `start` and `stop`."""

    source: str

    def start(self) -> None: ...

    def stop(self) -> float: ...


class RaplMeter:
    """The package domains of /sys/class/powercap, which count microjoules and wrap around."""

    def __init__(self, domains: list[Path]) -> None:
        """Read `energy_uj` of each domain."""
        self.source = f"RAPL, {len(domains)} package" + "s" * (len(domains) > 1)
        self._domains = domains
        self._wrap = [int((domain / "max_energy_range_uj").read_text()) for domain in domains]
        self._begin = self._read()

    def start(self) -> None:
        """Begin to count."""
        self._begin = self._read()

    def stop(self) -> float:
        """Return joules since `start`."""
        steps = zip(self._begin, self._read(), self._wrap, strict=True)
        return sum((now - then) % (wrap + 1) for then, now, wrap in steps) / 1e6

    def _read(self) -> list[int]:
        return [int((domain / "energy_uj").read_text()) for domain in self._domains]


class PowerMeter:
    """A power monitor that tells millivolts and milliamperes, sampled by a thread of ours while it counts."""

    def __init__(self, volts: Path, amperes: Path, rail: str) -> None:
        """Read one channel of a hwmon device."""
        self.source = f"INA3221, {rail}"
        self._files, self._joules, self._stop = (volts, amperes), 0.0, threading.Event()
        self._thread: threading.Thread | None = None
        self._watts()

    def start(self) -> None:
        """Begin to sample."""
        self._joules = 0.0
        self._stop.clear()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Return joules since `start`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        return self._joules

    def _sample(self) -> None:
        watts, then, going = self._watts(), time.perf_counter(), True
        while going:
            going = not self._stop.wait(SAMPLE_S)
            now, power = time.perf_counter(), self._watts()
            self._joules += (now - then) * (watts + power) / 2
            watts, then = power, now

    def _watts(self) -> float:
        volts, amperes = (int(file.read_text()) / 1e3 for file in self._files)
        return volts * amperes


def find_meter(root: Path = Path("/sys")) -> tuple[Meter | None, str]:
    """Return what measures energy here and its name, or None and why nothing does."""
    packages = sorted(root.glob("class/powercap/*-rapl:[0-9]*"))
    domains = [domain for domain in packages if domain.name.count(":") == 1]
    try:
        if domains:
            rapl = RaplMeter(domains)
            return rapl, rapl.source
        for label in sorted(root.glob("bus/i2c/drivers/ina3221*/*/hwmon/hwmon*/in*_label")):
            if (rail := label.read_text().strip()) in JETSON_RAILS:
                channel = label.name.removeprefix("in").removesuffix("_label")
                power = PowerMeter(label.with_name(f"in{channel}_input"), label.with_name(f"curr{channel}_input"), rail)
                return power, power.source
    except PermissionError as error:
        return None, f"not measurable here: only root may read {error.filename}"
    except (OSError, ValueError) as error:
        return None, f"not measurable here: {error}"
    return None, "not measurable here: the system shows neither RAPL counters nor a Jetson's power monitor"
