"""Which compilers a machine has, and what they can target."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from plugins_trt.errors import PluginError

# Compute capabilities the kernels are written for: Turing to Blackwell, Jetson Orin (87) and Thor (110).
ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 110, 120)
_ENVIRONMENT = ("CUDA_HOME", "CUDA_PATH", "CUDA_ROOT")


@dataclass(frozen=True)
class Nvcc:
    """A CUDA compiler."""

    path: Path
    version: tuple[int, int]
    architectures: tuple[int, ...]  # those of ARCHITECTURES that it knows


def find_nvcc(path: str | Path | None = None) -> Nvcc:
    """Return the CUDA compiler at `path`, or the first in CUDA_HOME, the search path, the usual folder, PyPI's wheels.

    Raises:
        PluginError: there is none, or it does not run.
    """
    looked = [Path(path)] if path else list(_candidates())
    found = next((one for one in looked if one.is_file()), None)
    if found is None:
        raise PluginError(
            "no CUDA compiler: no nvcc at " + (str(path) if path else ", ".join(map(str, looked)) or "any usual place"),
            wanted="CUDA 12.6 or later (JetPack brings it)",
            hint="install the CUDA toolkit, or `pip install nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-crt "
            "nvidia-nvvm nvidia-cuda-cccl`, or name it with --nvcc",
        )
    text = _output([str(found), "--version"])
    release = re.search(r"release (\d+)\.(\d+)", text)
    if release is None:
        raise PluginError(f"{found} --version says nothing about its release", wanted="nvcc of CUDA 12.6 or later")
    known = {int(code) for code in re.findall(r"\bsm_(\d+)\b", _output([str(found), "--list-gpu-code"]))}
    version = (int(release[1]), int(release[2]))
    return Nvcc(found, version, tuple(a for a in ARCHITECTURES if a in known))


def find_compiler(name: str | None = None) -> str:
    """Return a C++ compiler: `name`, $CXX, or what the machine has.

    Raises:
        PluginError: there is none.
    """
    for one in (name, os.environ.get("CXX"), "g++", "clang++", "c++"):
        found = shutil.which(one) if one else None
        if found:
            return found
    raise PluginError("no C++ compiler", wanted="g++ 12 or later, or clang++", hint="apt install g++, or set CXX")


def choose_architectures(text: str | None, nvcc: Nvcc) -> tuple[int, ...]:
    """Return the compute capabilities that `text` asks for ("87,89"), or all that `nvcc` knows.

    Raises:
        PluginError: one is not a number, or unknown to this compiler.
    """
    if not text:
        return nvcc.architectures
    wanted = []
    for part in text.replace("sm_", "").split(","):
        digits = part.strip().replace(".", "")
        if not digits.isdigit() or int(digits) not in nvcc.architectures:
            raise PluginError(
                f"--arch names {part.strip()!r}",
                wanted=f"of {', '.join(map(str, nvcc.architectures))} (CUDA {nvcc.version[0]}.{nvcc.version[1]})",
                hint="a newer CUDA for a newer GPU; Jetson Orin is 87, Thor 110 (CUDA 13)",
            )
        wanted.append(int(digits))
    return tuple(sorted(set(wanted)))


def gencode(architectures: Sequence[int]) -> list[str]:
    """Return nvcc's options: machine code of each architecture, and PTX of the newest, which later GPUs compile."""
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    newest = max(architectures)
    return [*flags, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


def _candidates() -> Iterator[Path]:
    for variable in _ENVIRONMENT:
        if os.environ.get(variable):
            yield Path(os.environ[variable]) / "bin" / "nvcc"
    found = shutil.which("nvcc")
    if found:
        yield Path(found)
    yield Path("/usr/local/cuda/bin/nvcc")
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
    for folder in ("cu13", "cuda_nvcc"):  # CUDA 13's wheels, then those of CUDA 12
        yield packages / folder / "bin" / "nvcc"


def _output(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except OSError as error:
        raise PluginError(f"{command[0]} does not start: {error}", hint="another compiler, with --nvcc") from error
    if done.returncode:
        raise PluginError(f"{' '.join(command)} failed: {done.stderr.strip()[:500]}", hint="another compiler")
    return done.stdout
