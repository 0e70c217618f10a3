"""NVIDIA's part of a machine: GPUs, CUDA, TensorRT, and what a Jetson board is and how it is set."""

from __future__ import annotations

import re
from importlib import metadata

from apps.doctor.host import Host
from apps.doctor.machine import Gpu, Jetson

# The release of Jetson Linux tells the generation of JetPack, where the package that carries its name is missing.
GENERATIONS = {"35": "5", "36": "6", "38": "7"}
LIBRARIES = ("/usr/lib/aarch64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/usr/local/tensorrt/lib", "/usr/local/lib")


def gpus(host: Host) -> tuple[Gpu, ...]:
    """List NVIDIA GPUs as nvidia-smi tells them. A Jetson's is part of the board where that tool is silent."""
    listed = host.output(
        "nvidia-smi", "--query-gpu=name,memory.total,compute_cap,driver_version", "--format=csv,noheader"
    )
    found = []
    for line in listed.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 4:
            name, size, capability, driver = (
                "" if "N/A" in cell or "Not Supported" in cell else cell for cell in cells
            )
            mebibytes = re.match(r"(\d+) MiB", size)
            found.append(Gpu(name, int(mebibytes[1]) << 20 if mebibytes else None, capability, driver))
    return tuple(found)


def cuda(host: Host) -> str:
    """Return the version of the CUDA toolkit, else of what the driver can run, or ""."""
    toolkit = re.search(r'"version"\s*:\s*"([\d.]+)"', host.text("/usr/local/cuda/version.json"))
    if toolkit:
        return toolkit[1]
    compiler = re.search(r"release ([\d.]+)", host.output("nvcc", "--version"))
    driver = re.search(r"CUDA Version: ([\d.]+)", host.output("nvidia-smi"))
    return compiler[1] if compiler else f"{driver[1]} (driver only)" if driver else ""


def tensorrt(host: Host) -> str:
    """Return the version of TensorRT: of the library on disk, else of the Python package; "" for none."""
    for folder in LIBRARIES:
        versions = [re.search(r"\.so\.(\d+\.\d+\.\d+)", path.name) for path in host.glob(f"{folder}/libnvinfer.so.*")]
        named = [match[1] for match in versions if match]
        if named:
            return max(named, key=lambda text: tuple(map(int, text.split("."))))
    try:
        return metadata.version("tensorrt")
    except metadata.PackageNotFoundError:
        return ""


def plugins() -> bool:
    """Whether the plugins that engines need were built on this machine."""
    import plugins_trt

    try:
        return plugins_trt.library().is_file()
    except plugins_trt.PluginError:
        return False


def jetson(host: Host) -> Jetson | None:
    """Look at a Jetson board; None where this is none."""
    release = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", host.text("/etc/nv_tegra_release"))
    model = host.text("/proc/device-tree/model")
    if release is None and "Jetson" not in model:
        return None
    package = host.output("dpkg-query", "--showformat=${Version}", "--show", "nvidia-jetpack")
    jetpack = package.split("+")[0] or (GENERATIONS.get(release[1], "") if release else "")
    mode = re.search(r"NV Power Mode: (.+)", host.output("nvpmodel", "-q"))
    return Jetson(
        model=model,
        l4t=f"{release[1]}.{release[2]}" if release else "",
        jetpack=jetpack,
        power_mode=mode[1].strip() if mode else "",
        gpu_clocks_locked=_locked(host),
        swap_on_zram="zram" in host.text("/proc/swaps"),
    )


def _locked(host: Host) -> bool | None:
    """Whether the GPU's lowest clock is its highest, as jetson_clocks sets it; None where the board does not tell."""
    for folder in host.glob("/sys/class/devfreq/*gpu*"):
        name = f"/sys/class/devfreq/{folder.name}"
        low, high = host.text(f"{name}/min_freq"), host.text(f"{name}/max_freq")
        if low and high:
            return low == high
    return None
