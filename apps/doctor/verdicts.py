"""What a machine can do here, and what would help: drawn from a `Machine` alone, so that tests can make one up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from apps.doctor.machine import Machine
from runtime.backends.cuda_provider import INSTALL, PROVIDER
from runtime.targets import TARGETS

Answer = Literal["yes", "slow", "no"]

# Targets that people ask for; which of them this version runs is in `runtime.targets`.
ASKED_FOR = ("cuda", "rtx", "jetson")
PRECISIONS = ("fp32", "fp16", "int8", "int4")
EXPORTER = ("torch", "onnx", "onnxscript", "onnx_ir", "rich", "safetensors")
EXPORT_MEMORY = 4e9  # bytes: a 1.5B model peaked at 2.65 GB anonymous (BENCHMARKS.md), pictures' towers not included


@dataclass(frozen=True)
class Verdict:
    """One question about the machine: its answer, the reason, and lines to type."""

    name: str
    answer: Answer
    why: str
    do: tuple[str, ...] = ()


def verdicts(machine: Machine, packages: frozenset[str], targets: tuple[str, ...] = TARGETS) -> list[Verdict]:
    """Judge targets, precisions, export and cameras.

    Args:
        machine: what is known about it.
        packages: the importable ones among `EXPORTER`.
        targets: what this version runs.
    """
    others = [name for name in targets if name != "cpu" and not name.startswith("jetson-")]
    return [
        _cpu_target(machine),
        *(_cuda_target(machine) if name == "cuda" else _gpu_target(machine, name) for name in others),
        *(_missing_target(machine, name) for name in ASKED_FOR if name not in targets),
        *(_precision(machine, name) for name in PRECISIONS),
        _export(machine, packages),
        _cameras(machine),
    ]


def _cpu_target(machine: Machine) -> Verdict:
    engine = machine.engine
    if not engine.onnxruntime:
        return Verdict("target cpu", "no", "onnxruntime is not installed", ("pip install onnxruntime",))
    native = "; the step of a model runs natively" if engine.native_isa else ""
    native += f" ({engine.native_isa})" if engine.native_isa else ""
    missing = f"; the native step is not used: {engine.native_reason}" if engine.native_reason else ""
    return Verdict("target cpu", "yes", f"onnxruntime {engine.onnxruntime}{native}{missing}")


def _missing_target(machine: Machine, name: str) -> Verdict:
    """Say that a target is not in this version, and what of the hardware it is about was found."""
    here = machine.jetson is not None if name == "jetson" else bool(machine.gpus)
    do = ("python -m export --int8 --target cpu",) if here else ()
    return Verdict(f"target {name}", "no", f"not in this version; {_hardware(machine, name)}", do)


def _cuda_target(machine: Machine) -> Verdict:
    """Judge onnxruntime on a GPU by the provider that is installed; whether it opens is known only when it is tried."""
    title, hardware, slowly = "target cuda", _hardware(machine, "cuda"), "bundles for it run on the processor, slowly"
    if machine.jetson:
        return Verdict(title, "slow", f"on a Jetson that is target jetson; {slowly}")
    if not machine.gpus:
        return Verdict(title, "slow", f"{hardware}; {slowly}")
    if PROVIDER not in machine.engine.providers:
        return Verdict(title, "slow", f"{hardware}, but onnxruntime has no CUDA; {slowly}", (INSTALL,))
    return Verdict(
        title, "yes", f"{hardware}, with onnxruntime {machine.engine.onnxruntime}; --try on a bundle tells more"
    )


def _gpu_target(machine: Machine, name: str) -> Verdict:
    """Judge a target for TensorRT by what it runs on: the GPU or board, and everything an engine needs there."""
    title, hardware = f"target {name}", _hardware(machine, name)
    here = machine.jetson is not None if name == "jetson" else bool(machine.gpus) and machine.jetson is None
    if not here:
        return Verdict(title, "slow", f"{hardware}; bundles for it run on onnxruntime, slowly")
    engine = machine.tensorrt_rtx if name == "rtx" else machine.tensorrt
    install = {"rtx": 'pip install "visualrwkv-edge[rtx]"', "jetson": "sudo apt-get install nvidia-jetpack"}
    cuda = "pip install cuda-python"
    wanted = [
        (engine, "TensorRT", install.get(name, "pip install tensorrt")),
        (machine.cuda_python, "cuda-python", 'pip install "visualrwkv-edge[jetson]"' if name == "jetson" else cuda),
        (machine.plugins, "the plugins", "python -m plugins_trt build"),
    ]
    missing = [(what, do) for there, what, do in wanted if not there]
    if missing:
        names = ", ".join(what for what, _ in missing)
        why = f"{hardware}, but without {names} bundles for it run on onnxruntime, slowly"
        return Verdict(title, "slow", why, tuple(do for _, do in missing))
    return Verdict(title, "yes", f"{hardware}, with TensorRT {engine}")


def _hardware(machine: Machine, name: str) -> str:
    if name == "jetson":
        return f"this is a {machine.jetson.model or 'Jetson'}" if machine.jetson else "this is no Jetson"
    return f"here is {machine.gpus[0].name}" if machine.gpus else "no NVIDIA GPU was found"


def _precision(machine: Machine, name: str) -> Verdict:
    if not machine.engine.onnxruntime:
        return Verdict(name, "no", "nothing runs without onnxruntime")
    found = set(machine.cpu.features)
    if name == "fp32":
        return Verdict(name, "yes", "runs anywhere; reads four bytes of memory per weight and token")
    if name == "fp16":
        return Verdict(name, "yes", "half of fp32 on disk; computed in float32")
    size = {"int8": "8-bit weights, the first layers in more", "int4": "4-bit weights, the first layers in 8"}[name]
    dots = found & {"avx512_vnni", "avx_vnni", "asimddp", "i8mm"}
    if dots:
        return Verdict(
            name, "yes", f"{size}; this processor multiplies 8-bit numbers itself ({', '.join(sorted(dots))})"
        )
    if found & {"avx2", "asimd"}:
        return Verdict(name, "yes", f"{size}; without 8-bit dot products, so less gain than newer processors show")
    known = ", ".join(machine.cpu.features) or "no features known"
    return Verdict(name, "slow", f"runs on general kernels: neither AVX2 nor NEON was found ({known})")


def _export(machine: Machine, packages: frozenset[str]) -> Verdict:
    missing = [name for name in EXPORTER if name not in packages]
    if missing:
        why = f"the exporter's packages are missing: {', '.join(missing)}"
        if machine.jetson or machine.cpu.architecture == "aarch64":
            why += "; a device does not need them: export on another machine and copy the bundle"
        return Verdict("export", "no", why, ('pip install "visualrwkv-edge[export]"',))
    if machine.memory.available < EXPORT_MEMORY:
        room = gigabytes(machine.memory.available)
        return Verdict("export", "slow", f"{room} of memory are free: enough for small models, not for 1.5B")
    return Verdict("export", "yes", "torch and the ONNX tools are installed")


def _cameras(machine: Machine) -> Verdict:
    closed = [camera.device for camera in machine.cameras if not camera.readable]
    if closed:
        why = f"no permission to read {', '.join(closed)}"
        return Verdict("cameras", "no", why, ('sudo usermod -aG video "$USER"  # then log in again',))
    if machine.jetson and not machine.gstreamer:
        why = "CSI cameras are read through gst-launch-1.0, which is missing"
        return Verdict(
            "cameras", "slow" if machine.cameras else "no", why, ("sudo apt-get install gstreamer1.0-tools",)
        )
    if not machine.cameras:
        return Verdict("cameras", "no", "none is plugged in; videos, folders and network streams work without")
    return Verdict("cameras", "yes", ", ".join(f"{c.device} {c.name}".strip() for c in machine.cameras))


def advice(machine: Machine) -> list[str]:
    """Return what would make this machine faster or steadier, a line each; all of it is the owner's choice."""
    lines = []
    if machine.jetson:
        mode, locked = machine.jetson.power_mode, machine.jetson.gpu_clocks_locked
        if not mode.upper().startswith("MAXN"):
            lines.append(f"power mode is {mode or 'unknown'}; list the others: sudo nvpmodel -p --verbose")
        if locked is False:
            lines.append("clocks are not locked, so figures will wander: sudo jetson_clocks (until the next boot)")
        if machine.jetson.swap_on_zram:
            lines.append("swap lies in memory (zram): it hides a shortage of memory and costs time when it is used")
    if machine.cpu.governor and machine.cpu.governor != "performance" and not machine.jetson:
        lines.append(f"the clock governor is {machine.cpu.governor!r}: sudo cpupower frequency-set -g performance")
    if 0 < machine.cpu.usable < 2:
        lines.append("one core is usable: a camera, a controller and the model will share it")
    if machine.memory.limit is not None:
        lines.append(f"a container limits memory to {gigabytes(machine.memory.limit)}")
    if "onnxruntime" in machine.packages and "onnxruntime-gpu" in machine.packages:
        lines.append("onnxruntime and onnxruntime-gpu are one module, and the later one wins: uninstall one of them")
    return lines


def gigabytes(size: float) -> str:
    """Return a size as people read it: "7.4 GB", "120 MB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
