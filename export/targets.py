"""Where a bundle can run, and what that asks of its graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quant.apply import with_file
from runtime import tensorrt
from runtime.bundle import Bundle
from runtime.errors import ConfigError, TargetUnavailable

TARGETS = {
    "cpu": "onnxruntime or the native step, x86-64 and aarch64",
    "cuda": "onnxruntime on an NVIDIA GPU: nothing is built, neither here nor there",
    "rtx": "TensorRT-RTX: engines built here, without a GPU, for the architectures named by --arch",
    "tensorrt": "TensorRT on a desktop or server GPU: engines are built on that machine",
    "jetson": "TensorRT on a Jetson, Orin or Thor: engines are built on the device",
    "jetson-orin": "the same, for a bundle that names its device",
    "jetson-thor": "the same, for a bundle that names its device",
}
ARCHITECTURES = ("86", "89", "120")  # GeForce RTX 30, 40 and 50


def check_target(target: str) -> None:
    """Raise `ConfigError` for a target that is not known."""
    if target not in TARGETS:
        raise ConfigError(f"target {target!r}", wanted=" or ".join(TARGETS))


@dataclass(frozen=True)
class Compiler:
    """TensorRT-RTX and our plugins, found before an export begins its work."""

    rtx: tensorrt.TensorRT
    library: Path

    @classmethod
    def find(cls, architectures: Sequence[str]) -> Compiler:
        """Raise `TargetUnavailable` for what is missing, or for an architecture that cannot be compiled for."""
        import plugins_trt

        rtx = tensorrt.find("tensorrt_rtx")
        for architecture in architectures:
            rtx.capability(architecture)
        try:
            return cls(rtx, plugins_trt.library())
        except plugins_trt.PluginError as error:
            raise TargetUnavailable(f"the TensorRT plugins are not built: {error}", hint="see above") from error


def with_engines(
    bundle: Bundle, compiler: Compiler, architectures: Sequence[str], progress: Callable[[str, int, int], None]
) -> Bundle:
    """Build TensorRT-RTX engines into a bundle, one file for each graph and architecture.

    Needs no GPU. Every operator of ours must have become a plugin: TensorRT would otherwise fall back in silence.

    Raises:
        TargetUnavailable: an operator of ours became no plugin.
        BundleError: it cannot take a graph.
    """
    rtx, library = compiler.rtx, compiler.library
    for graph in bundle.manifest.graphs:
        path = bundle.file(graph.file)
        if graph.custom_ops and not tensorrt.plugin_layers(rtx, path, library):
            raise TargetUnavailable(
                f"{rtx.name} made no plugin layer of {', '.join(graph.custom_ops)} in {graph.file}",
                wanted="a plugin layer for each of them",
                hint="build the plugins again: python -m plugins_trt build",
            )
        for architecture in architectures:
            progress(f"build {graph.name} for sm_{architecture}", 0, 0)
            engine = tensorrt.build(rtx, graph, path, capability=architecture, library=library)
            name = tensorrt.ahead_of_time(graph.name, architecture)
            bundle.file(name).write_bytes(engine)
            bundle = with_file(bundle, name)
    return bundle
