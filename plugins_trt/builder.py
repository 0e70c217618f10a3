"""Builds the plugin library: kernels and plugins by nvcc, or all of it by a C++ compiler on the emulation."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from plugins_trt.errors import PluginError
from plugins_trt.toolchain import choose_architectures, find_compiler, find_nvcc, gencode

ROOT = Path(__file__).resolve().parent
FOLDERS = ("matmul_w8", "read_state", "wkv6", "wkv7")
KERNELS = tuple(f"{folder}/launch.cu" for folder in FOLDERS)
PLUGINS = ("common/abi.cpp", "common/plugin.cpp", "registry.cpp", *(f"{folder}/plugin.cpp" for folder in FOLDERS))
_EMULATION = "common/emulate.cpp"
_SUFFIXES = {".cu", ".cuh", ".cpp", ".h", ".txt"}
NAME, EMULATED_NAME = "libvrwkv_plugins.so", "libvrwkv_plugins_emulated.so"
_WARNINGS = ("-Wall", "-Wextra", "-Werror")

Progress = Callable[[str], None]


def sources(root: Path = ROOT) -> tuple[Path, ...]:
    """Return every file that building needs, sorted: what a bundle carries along for devices."""
    return tuple(sorted(f for f in root.rglob("*") if f.suffix in _SUFFIXES and f.is_file()))


def fingerprint(root: Path = ROOT) -> str:
    """Return the sha256 of all sources: names and contents."""
    digest = hashlib.sha256()
    for file in sources(root):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def cache_folder(root: Path = ROOT) -> Path:
    """Return where `build` puts the library of these sources unless told otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "visualrwkv-edge" / "plugins" / fingerprint(root)[:16]


def library(folder: str | Path | None = None, *, emulated: bool = False) -> Path:
    """Return the built library: in `folder`, or where $VRWKV_PLUGINS points, or where `build` put it.

    Raises:
        PluginError: it has not been built.
    """
    name = EMULATED_NAME if emulated else NAME
    named = os.environ.get("VRWKV_PLUGINS")
    if folder is None and named and not emulated:
        path = Path(named)
    else:
        path = (Path(folder) if folder else cache_folder()) / name
    if not path.is_file():
        raise PluginError(
            f"no plugin library at {path}",
            wanted="the library of these sources, built on this machine",
            hint="python -m plugins_trt build" + (" --emulate" if emulated else ""),
        )
    return path


def build(
    *,
    architectures: str | None = None,
    headers: str | Path | None = None,
    emulate: bool = False,
    out: str | Path | None = None,
    nvcc: str | Path | None = None,
    compiler: str | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
    root: Path = ROOT,
) -> Path:
    """Build the plugin library and return its path. A library that is already there is replaced only when done.

    Args:
        architectures: compute capabilities such as "87" or "86,89,120"; None: all that the CUDA compiler knows.
        headers: folder of NvInferRuntime.h; None: our own declaration, which needs none.
        emulate: build the kernels for the CPU, with a C++ compiler alone. For tests.
        out: the folder to write to; None: a folder in the user's cache, where `library` looks.
        nvcc, compiler: paths of compilers; None: searched for.
        jobs: compilers at a time; None: one per processor.
        progress: called with a line per compiled file.
        root: where the sources are; a bundle carries a copy.

    Raises:
        PluginError: no compiler, a wrong architecture or folder, or the compiler's own errors.
    """
    say = progress or (lambda _: None)
    target = Path(out) if out else cache_folder(root)
    if headers is not None and not (Path(headers) / "NvInferRuntime.h").is_file():
        raise PluginError(f"no NvInferRuntime.h in {headers}", hint="leave --headers out: our own declaration will do")
    if headers is not None and emulate:
        raise PluginError("--headers together with --emulate", hint="the emulation needs no TensorRT: leave one out")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        folder = Path(scratch)
        if emulate:
            cc = find_compiler(compiler)
            compile_one, link = emulated_commands(cc, root, folder)
            names: tuple[str, ...] = (*KERNELS, *PLUGINS, _EMULATION)
        else:
            found = find_nvcc(nvcc)
            chosen = choose_architectures(architectures, found)
            say(f"CUDA {found.version[0]}.{found.version[1]}, sm_{', sm_'.join(map(str, chosen))}")
            compile_one, link = cuda_commands(str(found.path), chosen, root, folder, headers, compiler)
            names = (*KERNELS, *PLUGINS)
        with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
            tasks = {pool.submit(_run, compile_one(name)): name for name in names}
            try:
                for count, task in enumerate(as_completed(tasks), 1):
                    task.result()
                    say(f"[{count}/{len(names)}] {tasks[task]}")
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        _run(link([str(folder / _object(name)) for name in names], str(folder / "library.so")))
        path = target / (EMULATED_NAME if emulate else NAME)
        shutil.move(folder / "library.so", path)
    return path


Compile = Callable[[str], list[str]]
Link = Callable[[list[str], str], list[str]]


def cuda_commands(
    nvcc: str, architectures: Sequence[int], root: Path, out: Path, headers: str | Path | None, compiler: str | None
) -> tuple[Compile, Link]:
    """Return how to compile one source, and how to link: with CUDA, and with no library of TensorRT."""
    host = ["-ccbin", compiler] if compiler else []
    common = [nvcc, *host, "-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
    trt = ["-DVRWKV_TRT_HEADERS", "-isystem", str(headers)] if headers else []

    def compile_one(name: str) -> list[str]:
        if name.endswith(".cu"):
            special = ["-Werror", "all-warnings", *gencode(architectures)]
        else:
            special = ["-Xcompiler", ",".join(_WARNINGS), *trt]
        return [*common, *special, "-c", "-o", str(out / _object(name)), str(root / name)]

    def link(objects: list[str], to: str) -> list[str]:
        # CUDA's runtime inside the library: it must not depend on which one the process has loaded.
        return [nvcc, *host, "-shared", "-cudart", "static", "-o", to, *objects]

    return compile_one, link


def emulated_commands(compiler: str, root: Path, out: Path) -> tuple[Compile, Link]:
    """Return how to compile one source, and how to link: for the CPU, with the emulation instead of CUDA."""
    # No fortified longjmp: fibers jump between stacks on purpose.
    common = [compiler, "-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-DVRWKV_EMULATE", "-U_FORTIFY_SOURCE"]

    def compile_one(name: str) -> list[str]:
        return [*common, *_WARNINGS, "-Wno-unknown-pragmas", "-x", "c++", "-c", "-o", str(out / _object(name)),
                str(root / name)]  # fmt: skip

    def link(objects: list[str], to: str) -> list[str]:
        return [compiler, "-shared", "-o", to, *objects]

    return compile_one, link


def _object(name: str) -> str:
    return name.replace("/", "_") + ".o"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise PluginError(
            f"the compiler stopped with {done.returncode}:\n" + "\n".join(lines[:30]),
            hint="the command was " + " ".join(command),
        )
