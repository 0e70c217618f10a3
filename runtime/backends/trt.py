"""TensorRT and TensorRT-RTX: engines on an NVIDIA GPU, with a CUDA graph for the one-token step.

State stays on the device in the two buffer sets of `runtime.state`; a step moves one embedding in and the logits out.
An engine comes from the bundle (TensorRT-RTX, built ahead of time) or is built on this machine on first use and kept
(`python -m runtime build`). One-token steps are recorded once per pair of buffer sets and replayed from then on.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime import tensorrt
from runtime.backends.base import Buffer
from runtime.cuda import Cuda
from runtime.errors import BundleError, ConfigError, TargetUnavailable
from runtime.logs import event
from runtime.spec import MANIFEST_FILE, GraphSpec, Manifest

_log = logging.getLogger(__name__)
_RECORDINGS = 16  # per engine: two per live state and batch size; older ones are made again when needed


class DeviceBuffer:
    """Memory on the device, with page-locked memory of the same size on the host to pass through."""

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], dtype: str) -> None:
        """Allocate both; the device's is zero."""
        self._cuda, self._shape, self._dtype = cuda, shape, np.dtype(dtype)
        self.address = cuda.allocate(self.nbytes)
        self._staging = cuda.allocate_host(self.nbytes)
        raw = (ctypes.c_byte * self.nbytes).from_address(self._staging)
        self._host: np.ndarray = np.ctypeslib.as_array(raw).view(self._dtype).reshape(shape)
        weakref.finalize(self, cuda.free, self.address, self._staging)

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions."""
        return self._shape

    @property
    def dtype(self) -> np.dtype:
        """Element type."""
        return self._dtype

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return int(np.prod(self._shape, dtype=np.int64)) * self._dtype.itemsize

    def read(self) -> np.ndarray:
        """Return the content, copied to the host: valid until the buffer is read or written again."""
        self._cuda.to_host(self._staging, self.address, self.nbytes)
        self._cuda.synchronize()
        return self._host

    def write(self, array: np.ndarray, index: tuple[int | slice, ...] = ()) -> None:
        """Copy `array` in, or into the part that `index` selects (which reads the rest first)."""
        if index:
            self.read()
        else:
            self._cuda.synchronize()  # an earlier copy may still be reading the host's memory
        np.copyto(self._host[(*index, ...)], array, casting="no")
        self._cuda.to_device(self.address, self._staging, self.nbytes)


class TrtRunner:
    """One engine and a context for each of its profiles."""

    def __init__(self, cuda: Cuda, engine: Any, graph: GraphSpec, *, record: bool = True) -> None:
        """Take over a deserialised engine; without `record`, steps are launched one by one."""
        self._cuda, self._engine, self._graph = cuda, engine, graph
        self._profiles = tensorrt.profiles(graph)
        self._contexts = [engine.create_execution_context() for _ in self._profiles]
        for index, context in enumerate(self._contexts):
            if context is None:
                raise BundleError(f"no memory on the GPU for graph {graph.name!r}", hint="close other programs")
            context.set_optimization_profile_async(index, int(cuda.stream))
        self._recordings: OrderedDict[tuple[int, ...], tuple[Any, list[weakref.ref[Any]]]] = OrderedDict()
        self._record = record

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Run from `inputs` into `outputs`. The wait for the result is in `Buffer.read`, which comes next."""
        buffers = {**inputs, **outputs}
        key = tuple(map(id, buffers.values()))
        if key in self._recordings:
            self._recordings.move_to_end(key)
            self._cuda.launch(self._recordings[key][0])
            return
        profile = self._choose(inputs)
        launch = functools.partial(self._launch, self._contexts[profile], inputs, buffers)
        launch()  # the first run of a shape allocates, which a recording must not
        if self._record and self._profiles[profile] is tensorrt.DECODE:
            self._keep(key, buffers, launch)

    def _choose(self, inputs: Mapping[str, Buffer]) -> int:
        sizes = {
            axis: size
            for spec in self._graph.inputs
            for axis, size in zip(spec.shape, inputs[spec.name].shape, strict=True)
            if isinstance(axis, str)
        }
        for index, profile in enumerate(self._profiles):
            if all(profile.sizes[axis][0] <= size <= profile.sizes[axis][2] for axis, size in sizes.items()):
                return index
        raise ConfigError(
            f"graph {self._graph.name!r} was called with {sizes}",
            wanted="; ".join(f"{p.name}: { ({a: p.sizes[a][::2] for a in sizes}) }" for p in self._profiles),
        )

    def _launch(self, context: Any, inputs: Mapping[str, Buffer], buffers: Mapping[str, Any]) -> None:
        for name, buffer in inputs.items():
            context.set_input_shape(name, buffer.shape)
        for name, buffer in buffers.items():
            context.set_tensor_address(name, buffer.address)
        if not context.execute_async_v3(int(self._cuda.stream)):
            raise BundleError(f"TensorRT could not run graph {self._graph.name!r}", hint="see its log above")

    def _keep(self, key: tuple[int, ...], buffers: Mapping[str, Any], launch: Callable[[], None]) -> None:
        """Record the launch just made. Where a buffer goes, so does the recording that names its address."""
        self._cuda.synchronize()
        self._cuda.begin_capture()
        launch()
        recording = self._cuda.end_capture()
        alive = [weakref.ref(buffer, functools.partial(self._forget, key)) for buffer in buffers.values()]
        self._recordings[key] = recording, alive
        if len(self._recordings) > _RECORDINGS:
            _, (oldest, _) = self._recordings.popitem(last=False)
            self._cuda.forget(oldest)

    def _forget(self, key: tuple[int, ...], _: object) -> None:
        recording = self._recordings.pop(key, None)
        if recording is not None:
            self._cuda.forget(recording[0])

    def close(self) -> None:
        """Release recordings and contexts."""
        self._cuda.synchronize()
        for recording, _ in self._recordings.values():
            self._cuda.forget(recording)
        self._recordings.clear()
        self._contexts.clear()


class TrtBackend:
    """Loads graphs as TensorRT engines."""

    def __init__(
        self,
        *,
        kind: str | None = None,
        library: Path | None = None,
        progress: tensorrt.Progress = lambda phase, step, steps: None,
    ) -> None:
        """Open the GPU and TensorRT.

        Args:
            kind: "tensorrt" or "tensorrt_rtx"; None: the one that is installed.
            library: our plugins; None: those that `python -m plugins_trt build` made on this machine.
            progress: of engines that must be built first.

        Raises `TargetUnavailable` where one of them is missing.
        """
        self._tensorrt = tensorrt.find(kind)
        self._cuda = Cuda()
        self._progress = progress
        self._library = library or _library(self._cuda.architecture)
        self._tensorrt.load_plugins(self._library)
        self._runtime = self._tensorrt.module.Runtime(self._tensorrt.module.Logger())
        self._runners: list[TrtRunner] = []
        self.name = f"{self._tensorrt.module.__name__.replace('_', '-')}-sm{self._cuda.architecture}"

    def allocate(self, shape: tuple[int, ...], dtype: str) -> DeviceBuffer:
        """Return a zero-filled buffer."""
        return DeviceBuffer(self._cuda, shape, dtype)

    def load(self, graph: GraphSpec, path: Path) -> TrtRunner:
        """Load one graph's engine; build it first where there is none for this GPU and TensorRT.

        Raises `BundleError` when TensorRT cannot take it.
        """
        engine = self._runtime.deserialize_cuda_engine(self.engine(graph, path).read_bytes())
        if engine is None:
            raise BundleError(
                f"{self._tensorrt.name} cannot load the engine of graph {graph.name!r}",
                hint="python -m runtime build BUNDLE --again",
            )
        runner = TrtRunner(self._cuda, engine, graph)
        self._runners.append(runner)
        return runner

    def engine(self, graph: GraphSpec, path: Path, *, again: bool = False) -> Path:
        """Return the file of a graph's engine: from the bundle, from the cache, or built now."""
        ahead = tensorrt.ahead_of_time(graph.name, self._cuda.architecture)
        manifest = Manifest.from_json((path.parent / MANIFEST_FILE).read_text(encoding="utf-8"))
        if self._tensorrt.is_rtx and ahead in manifest.files and not again:
            return path.with_name(ahead)
        return cached_engine(
            self._tensorrt,
            graph,
            path,
            manifest.fingerprint,
            self._cuda.architecture,
            self._library,
            again=again,
            progress=self._progress,
        )

    def memory(self) -> tuple[int, int]:
        """Return free and total bytes of the GPU (of the machine, on a Jetson)."""
        return self._cuda.memory()

    def close(self) -> None:
        """Release every engine. Safe to call twice."""
        for runner in self._runners:
            runner.close()
        self._runners.clear()


def cached_engine(
    found: tensorrt.TensorRT,
    graph: GraphSpec,
    path: Path,
    fingerprint: str,
    architecture: str,
    library: Path,
    *,
    again: bool = False,
    progress: tensorrt.Progress = lambda phase, step, steps: None,
) -> Path:
    """Return the engine of a graph for this GPU, building it where the cache has none; says why in the log."""
    folder = tensorrt.cache_folder()
    name = tensorrt.engine_name(fingerprint, graph.name, architecture, found.name, library)
    file = folder / name
    if file.is_file() and not again:
        return file
    others = sorted(p.name for p in folder.glob(f"{fingerprint[:16]}.{graph.name}.*.engine")) if folder.is_dir() else []
    reason = "asked for" if again else tensorrt.changed(name, others) or "first use on this machine"
    event(_log, logging.INFO, "engine", f"building the engine of graph {graph.name!r}: {reason}", graph=graph.name)
    built = tensorrt.build(found, graph, path, library=library, progress=progress)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_bytes(built)
        partial.replace(file)
    except OSError as error:
        raise TargetUnavailable(
            f"{folder} cannot take the engine: {error.strerror}",
            wanted=f"{len(built) / 1e6:.0f} MB",
            hint="free some space, or set VRWKV_CACHE to another folder",
        ) from error
    return file


def _library(architecture: str) -> Path:
    """Return our plugins, built on this machine from the installed package; code of a bundle is never run.

    Raises `TargetUnavailable` where they are not built yet and there is no compiler to do it now.
    """
    import plugins_trt

    try:
        return plugins_trt.library()
    except plugins_trt.PluginError:
        event(_log, logging.INFO, "plugins", "building the TensorRT plugins, which takes minutes, once")
    try:
        return plugins_trt.build(architectures=architecture)
    except plugins_trt.PluginError as error:
        raise TargetUnavailable(f"the TensorRT plugins cannot be built: {error}", hint="see above") from error
