"""TensorRT in both its forms, as far as a bundle needs it: which one is here, our plugins, building an engine.

`tensorrt` comes with JetPack and with the desktop package; `tensorrt_rtx` from PyPI builds engines on a machine
without a GPU too. Both have the same interface. Nothing of a bundle is executed: plugins are loaded only from the
installed package, and engines are read without host code, which both forms refuse unless told otherwise.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import BundleError, TargetUnavailable
from runtime.onnxfile import without_functions
from runtime.spec import GraphSpec

MODULES = ("tensorrt", "tensorrt_rtx")
TARGETS = ("rtx", "tensorrt", "jetson", "jetson-orin", "jetson-thor")  # of bundles for this engine
DECODE_BATCH = 8  # sessions that share a step, as many as the scheduler puts together
LONGEST = 4096  # positions of the longest segment: a picture that is scanned goes in one call

Progress = Callable[[str, int, int], None]
"""Called with (phase, step, steps)."""

_loaded: dict[Path, Any] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class TensorRT:
    """One installed TensorRT."""

    module: Any

    @property
    def name(self) -> str:
        """As people write it, with its version: "tensorrt 10.3.0"."""
        return f"{self.module.__name__} {self.module.__version__}"

    @property
    def is_rtx(self) -> bool:
        """Whether it is TensorRT-RTX."""
        return "rtx" in self.module.__name__

    def capability(self, architecture: str) -> Any:
        """Return TensorRT-RTX's name for "89"; raises `TargetUnavailable` if it cannot compile for it."""
        names = self.module.ComputeCapability
        if not architecture.isdecimal() or not hasattr(names, f"SM{architecture}"):
            raise TargetUnavailable(
                f"{self.name} cannot compile for architecture {architecture!r}",
                wanted=", ".join(sorted((n[2:] for n in dir(names) if n[:2] == "SM"), key=lambda n: (len(n), n))),
            )
        return getattr(names, f"SM{architecture}")

    def load_plugins(self, library: Path) -> None:
        """Register the plugins of a library, once in this process.

        The library stays loaded: taking it out while a network lives would crash.

        Raises `TargetUnavailable` if TensorRT does not take it.
        """
        with _lock:
            if library in _loaded:
                return
            if self.is_rtx:
                _name_library()
            handle = self.module.get_plugin_registry().load_library(str(library))
            if handle is None:
                raise TargetUnavailable(
                    f"{self.name} does not take the plugins in {library}",
                    hint="build them again: python -m plugins_trt build",
                )
            _loaded[library] = handle


def find(kind: str | None = None) -> TensorRT:
    """Return the installed TensorRT; `kind` is "tensorrt", "tensorrt_rtx", or the first of both that is there."""
    reasons = []
    for name in (kind,) if kind else MODULES:
        try:
            return TensorRT(importlib.import_module(name))
        except ImportError as error:
            reasons.append(f"{name}: {error}")
    raise TargetUnavailable(
        f"no TensorRT: {'; '.join(reasons)}",
        hint="on a Jetson use JetPack's Python; on a desktop: pip install 'visualrwkv-edge[rtx]'",
    )


@dataclass(frozen=True)
class Profile:
    """Smallest, usual and largest size of every dynamic axis, by letter."""

    name: str
    sizes: Mapping[str, tuple[int, int, int]]


DECODE = Profile("decode", {"B": (1, 1, DECODE_BATCH), "T": (1, 1, 1)})
SEGMENT = Profile("segment", {"B": (1, 1, 1), "T": (1, 256, LONGEST)})
WHOLE = Profile("whole", {"B": (1, 1, 8), "T": (1, 1024, 1 << 14), "I": (1, 1, 1), "P": (1, 64, 1024)})


def profiles(graph: GraphSpec) -> tuple[Profile, ...]:
    """Return what an engine is tuned for: the step for one token of many sessions, and for long segments of one."""
    return (DECODE, SEGMENT) if graph.name == "step" else (WHOLE,)


def build(
    tensorrt: TensorRT,
    graph: GraphSpec,
    path: Path,
    *,
    capability: str | None = None,
    library: Path | None = None,
    progress: Progress = lambda phase, step, steps: None,
) -> bytes:
    """Compile one ONNX file to an engine.

    Args:
        tensorrt: which one.
        graph: what the file's inputs are.
        path: the file; its external weights lie beside it.
        capability: an architecture such as "89", for TensorRT-RTX ahead of time; None: the GPU of this machine.
        library: the plugins (`plugins_trt`), for a graph with operators of ours.
        progress: called as the compiler goes on.

    Raises:
        TargetUnavailable: the plugins cannot be loaded, or there is no such architecture.
        BundleError: TensorRT cannot parse or compile the graph; its own words are in the message.
    """
    trt = tensorrt.module
    if library is not None:
        tensorrt.load_plugins(library)
    log = _Log(trt)
    builder = trt.Builder(log.logger)
    strongly = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    # RTX knows no other networks, TensorRT 11 has dropped the flag: where it can be given, it is.
    network = builder.create_network(1 << int(strongly)) if strongly is not None else builder.create_network()
    parser = trt.OnnxParser(network, log.logger)
    # TensorRT up to 10.6 prefers a function's body to the plugin of its name, so bodies go.
    if not parser.parse(without_functions(path.read_bytes()), str(path)):
        reasons = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise BundleError(f"{tensorrt.name} cannot parse {path.name}: {reasons}", hint="export the bundle again")
    config = builder.create_builder_config()
    if capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(tensorrt.capability(capability), 0)
    for profile in profiles(graph):
        shapes = builder.create_optimization_profile()
        for spec in graph.inputs:
            sizes = [spec.resolve(**{k: v[i] for k, v in profile.sizes.items()}) for i in range(3)]
            shapes.set_shape(spec.name, *sizes)
        config.add_optimization_profile(shapes)
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _monitor(trt, progress)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BundleError(f"{tensorrt.name} cannot compile {path.name}: {log.worst}", hint="see its log above")
    return bytes(engine)


def plugin_layers(tensorrt: TensorRT, path: Path, library: Path) -> list[str]:
    """Return the names of the layers of a graph that TensorRT gives to plugins."""
    return [name for name, kind in _layers(tensorrt, path, library) if kind == "PLUGIN_V3"]


def layer_kinds(tensorrt: TensorRT, path: Path, library: Path) -> Counter[str]:
    """Return how many layers of each kind TensorRT makes of a graph, e.g. `{"PLUGIN_V3": 23, ...}`."""
    return Counter(kind for _, kind in _layers(tensorrt, path, library))


def _layers(tensorrt: TensorRT, path: Path, library: Path) -> list[tuple[str, str]]:
    trt = tensorrt.module
    tensorrt.load_plugins(library)
    log = _Log(trt)
    network = trt.Builder(log.logger).create_network()
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse(without_functions(path.read_bytes()), str(path)):
        raise BundleError(f"{tensorrt.name} cannot parse {path.name}: {log.worst}")
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    return [(layer.name, layer.type.name) for layer in layers]


def cache_folder() -> Path:
    """Where engines built on this machine are kept: $VRWKV_CACHE, or the user's cache folder."""
    base = os.environ.get("VRWKV_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "visualrwkv-edge" / "engines"


def ahead_of_time(graph: str, architecture: str) -> str:
    """Return the name of an engine in a bundle of target "rtx"."""
    return f"{graph}.sm{architecture}.engine"


def engine_name(fingerprint: str, graph: str, architecture: str, tensorrt: str, library: Path | None) -> str:
    """Return the file name of an engine: everything that makes it another one is in it."""
    plugins = hashlib.sha256(library.read_bytes()).hexdigest()[:12] if library else "no-plugins"
    return f"{fingerprint[:16]}.{graph}.sm{architecture}.{tensorrt.replace(' ', '-')}.{plugins}.engine"


def changed(name: str, others: Sequence[str]) -> str:
    """Say why an engine must be built although others of the same graph are there; "" if there are none."""
    labels = ("model", "graph", "GPU", "TensorRT", "plugins")
    for other in others:
        new, old = _fields(name), _fields(other)
        if new[:2] == old[:2] and new != old:
            parts = [f"{label} {b} instead of {a}" for label, a, b in zip(labels, old, new, strict=True) if a != b]
            return "; ".join(parts)
    return ""


def _fields(name: str) -> tuple[str, ...]:
    model, graph, gpu, rest = name.split(".", 3)
    version, plugins, _ = rest.rsplit(".", 2)
    return model, graph, gpu, version, plugins


class _Log:
    """A TensorRT logger that keeps the worst message."""

    def __init__(self, trt: Any) -> None:
        outer = self
        self.worst = "no reason given"

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                    outer.worst = message

        self.logger = Logger()


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.interrupted = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                progress(phase_name, step + 1, self.steps.get(phase_name, 0))
            except KeyboardInterrupt:
                self.interrupted = True
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


def _name_library() -> None:
    """RTX's parser opens its own library by a name that the package of version 1.7 lacks, and would end the process.

    A link beside the library, under that name, is what its maker's other packages have.
    """
    libraries = importlib.import_module("tensorrt_rtx_libs")
    folder = Path(next(iter(libraries.__path__)))
    link = folder / "libtensorrt_rtx.so"
    if link.exists():
        return
    versions = sorted(folder.glob("libtensorrt_rtx.so.*"))
    try:
        link.symlink_to(versions[-1].name)
    except (OSError, IndexError) as error:
        raise TargetUnavailable(
            f"{link} is missing and cannot be made: {error}",
            wanted="the library under the name by which the parser opens it",
            hint=f"ln -s libtensorrt_rtx.so.1 {link}",
        ) from None
