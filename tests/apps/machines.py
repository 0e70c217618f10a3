"""Machines that are not here: the files and commands their probes look at, in a folder of their own."""

from __future__ import annotations

from pathlib import Path

from apps.doctor.host import Host

ORIN = {
    "/proc/cpuinfo": "".join(
        f"processor\t: {core}\nFeatures\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp asimdrdm asimddp\n\n"
        for core in range(6)
    ),
    "/proc/sys/kernel/arch": "aarch64\n",
    "/proc/meminfo": "MemTotal:        7802400 kB\nMemFree:          900000 kB\nMemAvailable:    5120000 kB\n"
    "SwapTotal:       3901200 kB\n",
    "/proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n/dev/zram0\tpartition\t650200\t0\t5\n",
    "/proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "/etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    "/usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.11"}}',
    "/usr/lib/aarch64-linux-gnu/libnvinfer.so.10": "",
    "/usr/lib/aarch64-linux-gnu/libnvinfer.so.10.3.0": "",
    "/sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
    "/sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
    "/sys/class/video4linux/video0/name": "vi-output, imx219 9-0010\n",
    "/sys/class/video4linux/video0/index": "0\n",
    "/dev/video0": "",
}
ORIN_COMMANDS = {
    "nvpmodel": "NV Power Mode: 15W\n0",
    "dpkg-query": "6.2+b77",
    "gst-launch-1.0": "",
}
THOR = {
    "/proc/cpuinfo": "".join(
        f"processor\t: {core}\nFeatures\t: fp asimd fphp asimdhp asimddp sve i8mm bf16\n\n" for core in range(14)
    ),
    "/proc/sys/kernel/arch": "aarch64\n",
    "/proc/meminfo": "MemTotal:      128800000 kB\nMemAvailable:  120000000 kB\nSwapTotal:             0 kB\n",
    "/proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "/etc/nv_tegra_release": "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64\n",
    "/usr/local/cuda/version.json": '{"cuda": {"version": "13.0.0"}}',
    "/usr/lib/aarch64-linux-gnu/libnvinfer.so.10.13.3": "",
    "/sys/class/devfreq/gpu-gpc-0/min_freq": "1575000000\n",
    "/sys/class/devfreq/gpu-gpc-0/max_freq": "1575000000\n",
}
THOR_COMMANDS = {"nvpmodel": "NV Power Mode: MAXN\n0", "nvidia-smi": "NVIDIA Thor, [N/A], 11.0, 580.00"}
DESKTOP = {
    "/proc/cpuinfo": "".join(
        f"processor\t: {core}\nmodel name\t: AMD Ryzen 9 7950X 16-Core Processor\n"
        "flags\t\t: fpu sse4_2 avx f16c fma avx2 avx512f avx512bw avx512_vnni avx512_bf16\n\n"
        for core in range(32)
    ),
    "/proc/sys/kernel/arch": "x86_64\n",
    "/proc/meminfo": "MemTotal:       65000000 kB\nMemAvailable:   50000000 kB\nSwapTotal:       2000000 kB\n",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
    "/sys/class/video4linux/video0/name": "HD Webcam: HD Webcam\n",
    "/sys/class/video4linux/video0/index": "0\n",
    "/sys/class/video4linux/video1/name": "HD Webcam: HD Webcam\n",
    "/sys/class/video4linux/video1/index": "1\n",
    "/dev/video0": "",
}
DESKTOP_COMMANDS = {
    "nvidia-smi": "NVIDIA GeForce RTX 4090, 24564 MiB, 8.9, 570.86.15",
    "nvcc": "Cuda compilation tools, release 12.8, V12.8.61",
}
BARE = {
    "/proc/cpuinfo": "processor\t: 0\nmodel name\t: Old Server\nflags\t\t: fpu sse4_2\n\n",
    "/proc/sys/kernel/arch": "x86_64\n",
    "/proc/meminfo": "MemTotal:        2000000 kB\nMemAvailable:    1500000 kB\nSwapTotal:             0 kB\n",
}


def host(folder: Path, files: dict[str, str], commands: dict[str, str] | None = None) -> Host:
    """Write a machine into `folder`."""
    for name, content in files.items():
        path = folder / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    tools = folder / "tools"
    tools.mkdir()
    for name, printed in (commands or {}).items():
        script = tools / name
        script.write_text(f"#!/bin/sh\n/bin/cat <<'END'\n{printed}\nEND\n")
        script.chmod(0o755)
    return Host(folder, str(tools))
