"""Probes that fail, hang or read nonsense: a line in the report, never the end of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apps.doctor import host as host_module
from apps.doctor import nvidia, probes
from apps.doctor.host import Host
from apps.doctor.report import Report
from apps.doctor.verdicts import advice, verdicts
from tests.apps import machines

FILES = sorted({*machines.ORIN, "/proc/self/cgroup", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cpu.max"})


@pytest.mark.parametrize(
    ("module", "name", "told"),
    [
        (probes, "cpu", "processor"),
        (probes, "memory", "memory"),
        (probes, "disk", "disk"),
        (probes, "cameras", "cameras"),
        (probes, "engine", "inference engine"),
        (nvidia, "gpus", "GPU"),
        (nvidia, "cuda", "CUDA"),
        (nvidia, "tensorrt", "TensorRT"),
        (nvidia, "jetson", "Jetson"),
    ],
)
def test_a_failing_probe_is_a_line(
    module: object, name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the driver is upset")

    monkeypatch.setattr(module, name, fail)
    machine = probes.examine(machines.host(tmp_path, machines.ORIN, machines.ORIN_COMMANDS))
    assert machine.problems == (f"{told}: RuntimeError: the driver is upset",)
    text = Report(machine, verdicts(machine, frozenset()), advice(machine)).text()
    assert "the driver is upset" in text


def test_a_command_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = machines.host(tmp_path, {})
    script = tmp_path / "tools" / "nvidia-smi"
    script.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(host_module, "TIMEOUT_S", 0.2)
    began = time.monotonic()
    assert host.output("nvidia-smi") == ""
    assert nvidia.gpus(host) == ()
    assert time.monotonic() - began < 30


def test_commands_that_fail_or_are_missing_say_nothing(tmp_path: Path) -> None:
    host = machines.host(tmp_path, {}, {"nvpmodel": "NV Power Mode: 15W"})
    (tmp_path / "tools" / "nvpmodel").write_text("#!/bin/sh\necho 'NV Power Mode: 15W'\nexit 1\n")
    assert host.output("nvpmodel", "-q") == ""
    assert host.output("nvcc", "--version") == ""
    (tmp_path / "tools" / "nvpmodel").write_text("no program at all")
    assert host.output("nvpmodel", "-q") == ""


def test_unreadable_files_are_empty(tmp_path: Path) -> None:
    host = Host(tmp_path)
    assert host.text("/etc/nv_tegra_release") == ""
    assert host.glob("/sys/class/devfreq/*gpu*") == []
    (tmp_path / "etc").mkdir()
    assert host.text("/etc") == "", "a folder is no file"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(FILES), st.binary(max_size=80), max_size=6))
def test_nonsense_in_the_files_never_stops_it(
    tmp_path_factory: pytest.TempPathFactory, contents: dict[str, bytes]
) -> None:
    folder = tmp_path_factory.mktemp("machine")
    for name, data in contents.items():
        path = folder / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    machine = probes.examine(Host(folder, ""))
    assert Report(machine, verdicts(machine, frozenset()), advice(machine)).text().startswith("this machine")
