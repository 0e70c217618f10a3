"""Finding out about a machine. A probe that fails is a line in the report, never the end of it."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from apps.doctor import nvidia
from apps.doctor.host import Host
from apps.doctor.machine import Camera, Cpu, Disk, Engine, Machine, Memory
from runtime.errors import VisualRWKVError

# What inference kernels are chosen by; the names of the kernel.
FEATURES = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
PACKAGES = ("visualrwkv-edge", "numpy", "onnxruntime", "onnxruntime-gpu", "opencv-python-headless", "torch")


def examine(host: Host | None = None, bundle: Path | None = None) -> Machine:
    """Run every probe and return what they found; `bundle` is where disk space is looked at."""
    host = host or Host()
    problems: list[str] = []

    def tried(what: str, probe: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return probe()
        except Exception as error:  # drivers, half-mounted file systems, packages broken in their own ways
            problems.append(f"{what}: {type(error).__name__}: {error}")
            return otherwise

    return Machine(
        system=tried("system", lambda: f"{platform.system()} {platform.release()}", ""),
        python=platform.python_version(),
        cpu=tried("processor", lambda: cpu(host), Cpu()),
        memory=tried("memory", lambda: memory(host), Memory()),
        disk=tried("disk", lambda: disk(bundle), Disk()),
        gpus=tried("GPU", lambda: nvidia.gpus(host), ()),
        cuda=tried("CUDA", lambda: nvidia.cuda(host), ""),
        tensorrt=tried("TensorRT", lambda: nvidia.tensorrt(host), ""),
        tensorrt_rtx=tried("TensorRT-RTX", lambda: installed("tensorrt-rtx"), ""),
        cuda_python=tried("cuda-python", lambda: installed("cuda-python"), ""),
        plugins=tried("plugins", nvidia.plugins, False),
        jetson=tried("Jetson", lambda: nvidia.jetson(host), None),
        cameras=tried("cameras", lambda: cameras(host), ()),
        gstreamer=tried("GStreamer", lambda: host.has("gst-launch-1.0"), False),
        engine=tried("inference engine", engine, Engine()),
        packages={name: found for name in PACKAGES if (found := installed(name))},
        problems=tuple(problems),
    )


def cpu(host: Host) -> Cpu:
    """Look at the processor: /proc/cpuinfo, the affinity of this process, the quota of its container."""
    info = host.text("/proc/cpuinfo")
    fields: dict[str, str] = dict(re.findall(r"^([^\t:]+?)\s*: (.*)$", info, re.MULTILINE))
    found = set(fields.get("flags", fields.get("Features", "")).split())
    cores = len(re.findall(r"^processor\s*:", info, re.MULTILINE)) or os.cpu_count() or 1
    here = host.root == Path("/")
    usable = float(len(os.sched_getaffinity(0)) if here and hasattr(os, "sched_getaffinity") else cores)
    for group in groups(host):
        quota, _, period = host.text(f"{group}/cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            usable = min(usable, int(quota) / int(period))
    return Cpu(
        name=fields.get("model name", fields.get("Model", "")) or host.text("/proc/device-tree/model"),
        architecture=host.text("/proc/sys/kernel/arch") or platform.machine(),
        cores=cores,
        usable=usable,
        features=tuple(name for name in FEATURES if name in found),
        governor=host.text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    )


def memory(host: Host) -> Memory:
    """Look at /proc/meminfo and the limit of the container."""
    fields = {
        name: int(value) * 1024 for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", host.text("/proc/meminfo"), re.M)
    }
    total, available = fields.get("MemTotal", 0), fields.get("MemAvailable", 0)
    limit = None
    for group in groups(host):
        most, used = _number(host.text(f"{group}/memory.max")), _number(host.text(f"{group}/memory.current"))
        if most is None:  # version 1
            most = _number(host.text(f"{group}/memory.limit_in_bytes"))
            used = _number(host.text(f"{group}/memory.usage_in_bytes"))
        if most is not None and most < total:
            cached = re.search(r"^(?:total_)?inactive_file (\d+)$", host.text(f"{group}/memory.stat"), re.MULTILINE)
            room = most - (used or 0) + (int(cached[1]) if cached else 0)  # files that are only cached are given up
            limit, available = min(most, limit or most), max(0, min(available, room))
    return Memory(total, available, limit, fields.get("SwapTotal", 0))


def disk(bundle: Path | None) -> Disk:
    """Look at the file system of `bundle`, or of the working folder."""
    folder = (bundle or Path.cwd()).absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return Disk(str(folder), shutil.disk_usage(folder).free)


def cameras(host: Host) -> tuple[Camera, ...]:
    """List capture devices. One camera may have several: those of metadata have an index above 0 and are left out."""
    found = []
    for entry in host.glob("/sys/class/video4linux/video*"):
        index = (entry / "index").read_text().strip() if (entry / "index").is_file() else "0"
        device = f"/dev/{entry.name}"
        if index == "0":
            name = host.text(f"/sys/class/video4linux/{entry.name}/name")
            found.append(Camera(device, name, os.access(host.file(device), os.R_OK | os.W_OK)))
    return tuple(found)


def engine() -> Engine:
    """Ask onnxruntime what it has, and the native step whether it can be used."""
    try:
        import onnxruntime
    except ImportError:
        return Engine()
    found = Engine(onnxruntime.__version__, tuple(onnxruntime.get_available_providers()))
    try:
        from runtime.native.library import chosen_set
    except ImportError:
        return found
    try:
        return replace(found, native_isa=chosen_set())
    except VisualRWKVError as error:
        return replace(found, native_reason=error.found)


def installed(distribution: str) -> str:
    """Return the version of an installed distribution, or ""."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def groups(host: Host) -> list[str]:
    """Return the control groups of this process, innermost first, the whole container's last."""
    own = next((line[3:] for line in host.text("/proc/self/cgroup").splitlines() if line.startswith("0::")), "/")
    inner = [Path(own), *Path(own).parents]
    return [f"/sys/fs/cgroup{'' if place == Path('/') else place.as_posix()}" for place in inner] + [
        "/sys/fs/cgroup/memory"
    ]


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None
