"""Building: what is compiled and how, what is said when it cannot be, and that nvcc takes every kernel unspilled."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import plugins_trt
from plugins_trt.__main__ import main
from plugins_trt.builder import FOLDERS, KERNELS, PLUGINS, ROOT, cuda_commands
from plugins_trt.report import Usage, measure, parse, readable, table
from plugins_trt.toolchain import choose_architectures, find_nvcc, gencode

KNOWN = {"12.6": (75, 80, 86, 87, 89, 90), "13.0": (75, 80, 86, 87, 89, 90, 100, 110, 120)}


def fake_nvcc(folder: Path, release: str, status: int = 0) -> Path:
    """A compiler that only says which it is, and fails with `status`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "nvcc"
    codes = "\\n".join(f"sm_{a}" for a in KNOWN[release])
    path.write_text(
        f"#!/bin/sh\ncase $1 in --version) echo 'Cuda compilation tools, release {release}, V{release}.1';;"
        f" --list-gpu-code) printf '{codes}\\n';; *) echo 'kernel.cu(1): error: no' >&2; exit {status};; esac\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize("release", sorted(KNOWN))
def test_both_generations_of_cuda(tmp_path: Path, release: str) -> None:
    found = find_nvcc(fake_nvcc(tmp_path, release))
    assert found.architectures == KNOWN[release]
    assert choose_architectures(None, found) == KNOWN[release]
    assert choose_architectures("sm_87, 8.9", found) == (87, 89)
    if release == "12.6":
        with pytest.raises(plugins_trt.PluginError, match=r"'120'[\s\S]*CUDA 12\.6"):
            choose_architectures("120", found)


def test_the_compiler_of_the_packages_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr("shutil.which", lambda name: None)
    for variable in ("CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    packaged = fake_nvcc(tmp_path / "nvidia" / "cu13" / "bin", "13.0")
    real = Path("/usr/local/cuda/bin/nvcc")
    assert find_nvcc().path == (real if real.is_file() else packaged)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "mine"))
    named = fake_nvcc(tmp_path / "mine" / "bin", "12.6")
    assert find_nvcc().path == named


def test_no_compiler_is_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--nvcc", str(tmp_path / "nvcc"), "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "no CUDA compiler" in said and "pip install nvidia-cuda-nvcc" in said and "--nvcc" in said
    assert list(tmp_path.iterdir()) == []


def test_a_failed_build_shows_the_compiler_and_keeps_the_old_library(tmp_path: Path) -> None:
    old = tmp_path / "libvrwkv_plugins.so"
    old.write_text("old")
    with pytest.raises(plugins_trt.PluginError, match=r"kernel\.cu\(1\): error: no"):
        plugins_trt.build(nvcc=fake_nvcc(tmp_path / "bin", "13.0", 1), out=tmp_path, architectures="89")
    assert old.read_text() == "old"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["bin", "libvrwkv_plugins.so"]


def test_commands() -> None:
    compile_one, link = cuda_commands("nvcc", (87, 89), ROOT, Path("out"), None, None)
    kernel, plugin = " ".join(compile_one(KERNELS[0])), " ".join(compile_one(PLUGINS[0]))
    assert "code=sm_87" in kernel and "code=sm_89" in kernel and "code=compute_89" in kernel
    assert "-Werror all-warnings" in kernel and "-Wall,-Wextra,-Werror" in plugin
    assert "VRWKV_TRT_HEADERS" not in plugin
    linking = " ".join(link(["a.o"], "x.so"))
    assert "nvinfer" not in linking and "-cudart static" in linking
    with_headers, _ = cuda_commands("nvcc", (87,), ROOT, Path("out"), "/inc", "clang++")
    assert "-DVRWKV_TRT_HEADERS -isystem /inc" in " ".join(with_headers(PLUGINS[0]))
    assert gencode((75,)) == ["-gencode=arch=compute_75,code=sm_75", "-gencode=arch=compute_75,code=compute_75"]


def test_wrong_headers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(plugins_trt.PluginError, match=r"no NvInferRuntime\.h"):
        plugins_trt.build(headers=tmp_path, out=tmp_path / "out")


def test_the_library_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("VRWKV_PLUGINS", raising=False)
    with pytest.raises(plugins_trt.PluginError, match="python -m plugins_trt build"):
        plugins_trt.library()
    there = tmp_path / "visualrwkv-edge" / "plugins" / plugins_trt.fingerprint()[:16] / "libvrwkv_plugins.so"
    there.parent.mkdir(parents=True)
    there.touch()
    assert plugins_trt.library() == there
    other = tmp_path / "other.so"
    other.touch()
    monkeypatch.setenv("VRWKV_PLUGINS", str(other))
    assert plugins_trt.library() == other


def test_sources_are_complete() -> None:
    names = {file.relative_to(ROOT).as_posix() for file in plugins_trt.sources()}
    assert {*KERNELS, *PLUGINS, "CMakeLists.txt"} <= names
    for file in plugins_trt.sources():
        if file.suffix == ".txt":
            continue
        for included in re.findall(r'#include "([^"]+)"', file.read_text(encoding="utf-8")):
            assert (file.parent / included).resolve().relative_to(ROOT).as_posix() in names, f"{file}: {included}"


def test_cmake_lists_the_same_files() -> None:
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    listed = set(re.findall(r"[\w/]+\.(?:cu|cpp)\b", text))
    assert listed == {*KERNELS, *PLUGINS, "common/emulate.cpp"}


def test_every_folder_has_its_contract() -> None:
    for folder in FOLDERS:
        names = {file.name for file in (ROOT / folder).iterdir()}
        assert {"kernel.cuh", "launch.cu", "launch.h", "plugin.cpp", "reference.py", "README.md"} <= names


_PTXAS = """ptxas info : Compiling entry function '_ZN5vrwkv12wkv7_prepareI6__halffEEvNS_4Wkv7IT_T0_EEPvii' for 'sm_87'
ptxas info : Function properties for _ZN5vrwkv12wkv7_prepareI6__halffEEvNS_4Wkv7IT_T0_EEPvii
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers
"""


def test_the_report_is_read_and_shown() -> None:
    (use,) = parse(_PTXAS, 87)
    assert use == Usage("wkv7_prepare<float16, float32>", 87, 40, 16, 8)
    shown = table([use, Usage(use.kernel, 89, 38, 0, 0)])
    assert "| wkv7_prepare<float16, float32> | 40 (spills 16 B) | 38 |" in shown and "1 of 2" in shown
    symbol = "_ZN5vrwkv10matmul_fewI13__nv_bfloat16NS_6Codes8ILb1EEELb1EEEvNS_6MatMulIT_T0_EE"
    assert readable(symbol) == "matmul_few<bfloat16, groups of 32, grouped>"


@pytest.mark.slow
def test_nvcc_compiles_every_kernel_without_spills() -> None:
    try:
        found = find_nvcc()
    except plugins_trt.PluginError as error:
        pytest.skip(f"no CUDA compiler: {error.hint}")
    uses = measure([87], nvcc=found.path)
    assert len(uses) == 10 + 3 + 10 + 3 + 18 + 3 == len({use.kernel for use in uses})
    assert [use for use in uses if use.spilled or use.stack] == []
    assert max(use.registers for use in uses) <= 255


def test_the_command_line_teaches() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "plugins_trt", "--help"], cwd=ROOT.parent, env={**os.environ, "COLUMNS": "120"},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert "--arch 87" in done.stdout and "report" in done.stdout
