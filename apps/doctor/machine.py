"""What is known about a machine: plain data, filled by `apps.doctor.probes`, or by hand in a test.

Sizes are bytes. What could not be found out is None or empty, and `problems` says why.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cpu:
    """The processor, and the part of it that this process may use."""

    name: str = ""
    architecture: str = ""  # as `uname -m`: "x86_64", "aarch64"
    cores: int = 0
    usable: float = 0.0  # after affinity and the quota of a container
    features: tuple[str, ...] = ()  # of those that matter here, as the kernel names them
    governor: str = ""  # of core 0: "performance", "schedutil", ...


@dataclass(frozen=True)
class Memory:
    """Main memory, which Jetson boards share with their GPU."""

    total: int = 0
    available: int = 0  # to this process: the limit of a container is taken into account
    limit: int | None = None  # of the container
    swap: int = 0


@dataclass(frozen=True)
class Disk:
    """Where a bundle is or would be written."""

    path: str = ""
    free: int = 0


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU."""

    name: str
    memory: int | None = None  # None where it is the main memory, or not told
    capability: str = ""  # "8.7"
    driver: str = ""


@dataclass(frozen=True)
class Jetson:
    """An NVIDIA Jetson board, its software and how it is set."""

    model: str = ""
    l4t: str = ""  # "36.4.3"
    jetpack: str = ""  # "6.2", or "6" where only the generation is known
    power_mode: str = ""
    gpu_clocks_locked: bool | None = None
    swap_on_zram: bool = False


@dataclass(frozen=True)
class Camera:
    """One capture device."""

    device: str
    name: str = ""
    readable: bool = True


@dataclass(frozen=True)
class Engine:
    """How graphs are run here."""

    onnxruntime: str = ""  # version, "" where it is not installed
    providers: tuple[str, ...] = ()
    native_isa: str = ""  # instruction set that the native step would use; "" where it cannot be loaded
    native_reason: str = ""  # why not


@dataclass(frozen=True)
class Machine:
    """Everything the verdicts are drawn from."""

    system: str = ""  # "Linux 6.8.0"
    python: str = ""
    cpu: Cpu = Cpu()
    memory: Memory = Memory()
    disk: Disk = Disk()
    gpus: tuple[Gpu, ...] = ()
    cuda: str = ""  # toolkit or runtime version
    tensorrt: str = ""
    tensorrt_rtx: str = ""
    cuda_python: str = ""
    plugins: bool = False  # whether the TensorRT plugins of this SDK are built
    jetson: Jetson | None = None
    cameras: tuple[Camera, ...] = ()
    gstreamer: bool = False  # gst-launch-1.0 is there, which CSI cameras are read through
    engine: Engine = Engine()
    packages: dict[str, str] = field(default_factory=dict)  # version by distribution
    problems: tuple[str, ...] = ()  # probes that failed, a line each
