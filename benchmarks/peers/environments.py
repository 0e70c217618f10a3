"""Virtual environments of the peers, made when a comparison first needs them: `build/peers/NAME`.

Versions are fixed, so that a figure can be had again. llama-cpp-python is compiled for this machine by pip (a C++
compiler and cmake; ten minutes on two cores); torch is large. `PIP_*` variables are passed on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from runtime.errors import TargetUnavailable

ROOT = Path("build/peers")
REQUIREMENTS = {
    "llama.cpp": ("llama-cpp-python==0.3.36", "gguf==0.19.0"),
    "torch": ("torch==2.13.0", "transformers==5.23.0", "rwkv==0.8.32"),
}
LEAN = ("-DLLAVA_BUILD=OFF",)  # llama.cpp's own vision code: fifty files that we do not measure
# Its kernels for AMX crash on RWKV-7 (0.3.36, a segmentation fault in ggml_backend_amx_mul_mat): all else that
# processors with AMX have, instead of "whatever this machine has".
WITHOUT_AMX = ("-DGGML_NATIVE=OFF", *(f"-DGGML_AVX512{part}=ON" for part in ("", "_VBMI", "_VNNI", "_BF16")))
_STAMP = "peers.txt"  # what was installed: another list installs again


def environment(name: str, root: Path = ROOT) -> Path:
    """Return the Python of a peer's environment, which is made if it is not there.

    Raises:
        TargetUnavailable: something could not be installed; pip has said what.
    """
    folder, wanted = root / name, REQUIREMENTS[name]
    python, stamp = folder / "bin" / "python", folder / _STAMP
    if stamp.is_file() and stamp.read_text(encoding="utf-8").split() == list(wanted):
        return python.absolute()
    print(f"installing {', '.join(wanted)} into {folder} (once; minutes)", file=sys.stderr, flush=True)
    commands = [
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *wanted],
    ]
    environ = {"CMAKE_ARGS": " ".join(llama_options(_processor())), **os.environ}
    for command in commands:
        try:
            status = subprocess.run(command, check=False, stdout=sys.stderr, env=environ).returncode
        except OSError as error:
            raise TargetUnavailable(f"cannot run {command[0]}: {error}", hint=f"remove {folder}, try again") from None
        if status:
            raise TargetUnavailable(
                f"{' '.join(command)} failed with {status}",
                hint="read what pip says above; --help tells how to leave a peer out",
            )
    stamp.write_text("\n".join(wanted) + "\n", encoding="utf-8")
    return python.absolute()


def llama_options(processor: str) -> tuple[str, ...]:
    """Return CMake options for llama.cpp on a processor, given as the text of /proc/cpuinfo."""
    return (*LEAN, *(WITHOUT_AMX if "amx_tile" in processor.split() else ()))


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    return file.read_text(encoding="utf-8") if file.exists() else ""
