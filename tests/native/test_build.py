"""The sources build and run elsewhere: with sanitizers here, and for ARM under emulation."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "runtime" / "native" / "src"
CHECK = Path(__file__).with_name("check.cpp")
FLAGS = ["-std=c++17", "-pthread", "-ffp-contract=off", "-I", str(SOURCES)]
PLAIN = ["arena.cpp", "matrix.cpp", "pool.cpp", "step.cpp", "segment.cpp", "api.cpp"]


def build(compiler: str, out: Path, isas: tuple[str, ...], *flags: str) -> None:
    """Compile the library with some instruction sets, and the check, into one program."""
    names = [*PLAIN, "isa_list.cpp", *(f"isa_{isa}.cpp" for isa in isas)]
    command = [compiler, *FLAGS, *flags, "-o", str(out), str(CHECK), *(str(SOURCES / name) for name in names)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr


def run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: apt-get install g++")
def test_no_sanitizer_complains(tmp_path: Path) -> None:
    flags = ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DVRWKV_ONLY_SCALAR")
    build("g++", tmp_path / "check", ("scalar",), *flags)
    assert run(str(tmp_path / "check")).split() == ["scalar"]


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-g++") is None or shutil.which("qemu-aarch64") is None,
    reason="no ARM compiler or emulator: apt-get install g++-aarch64-linux-gnu qemu-user",
)
def test_arm(tmp_path: Path) -> None:
    build("aarch64-linux-gnu-g++", tmp_path / "check", ("neon", "scalar"), "-O1", "-static")
    assert run("qemu-aarch64", str(tmp_path / "check")).split() == ["neon", "scalar"]
