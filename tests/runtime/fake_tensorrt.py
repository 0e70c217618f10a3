"""TensorRT and the CUDA runtime without a GPU: the same calls, host memory as the device, engines run by onnxruntime.

What is checked is what a GPU would punish: addresses that are no allocation, copies past its end, shapes outside the
profile, a launch with unset addresses, work that is recorded but never launched, memory freed twice.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest


class FakeCuda:
    """`cuda.bindings.runtime`: every call returns its code first."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaDeviceAttr = SimpleNamespace(cudaDevAttrComputeCapabilityMajor=75, cudaDevAttrComputeCapabilityMinor=76)

    def __init__(self, architecture: tuple[int, int] = (8, 7), devices: int = 1) -> None:
        self.architecture, self.devices = architecture, devices
        self.memory: dict[int, ctypes.Array[Any]] = {}
        self.recorded: list[Callable[[], None]] | None = None
        self.launches = self.captures = 0
        self.fail: str | None = None  # the name of a call that fails from now on

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cuda") and name == object.__getattribute__(self, "fail"):
            return lambda *arguments: (700, None)
        return object.__getattribute__(self, name)

    def cudaGetErrorString(self, code: int) -> tuple[int, bytes]:
        return 0, b"an illegal memory access" if code else b"no error"

    def cudaGetDeviceCount(self) -> tuple[int, int]:
        return (0, self.devices) if self.devices else (100, 0)

    def cudaGetDevice(self) -> tuple[int, int]:
        return 0, 0

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        return 0, 1

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        return (0,)

    def cudaDeviceGetAttribute(self, attribute: int, device: int) -> tuple[int, int]:
        return 0, self.architecture[attribute - 75]

    def cudaMemGetInfo(self) -> tuple[int, int, int]:
        return 0, 4 << 30, 8 << 30

    def cudaMalloc(self, nbytes: int) -> tuple[int, int]:
        block = (ctypes.c_byte * nbytes)()
        ctypes.memset(block, 0x7F, nbytes)  # fresh memory of a device is not zero
        self.memory[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    cudaMallocHost = cudaMalloc

    def cudaFree(self, address: int) -> tuple[int]:
        del self.memory[address]
        return (0,)

    cudaFreeHost = cudaFree

    def cudaMemset(self, address: int, value: int, nbytes: int) -> tuple[int]:
        self.check(address, nbytes)
        ctypes.memset(address, value, nbytes)
        return (0,)

    def cudaMemcpyAsync(self, to: int, source: int, nbytes: int, kind: int, stream: int) -> tuple[int]:
        self.check(to, nbytes)
        self.check(source, nbytes)
        self.enqueue(lambda: ctypes.memmove(to, source, nbytes) and None)
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        assert self.recorded is None, "waiting is not allowed while recording"
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:
        assert self.recorded is None
        self.recorded, self.captures = [], self.captures + 1
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, list[Callable[[], None]]]:
        assert self.recorded
        work, self.recorded = self.recorded, None
        return 0, work

    def cudaGraphInstantiate(self, graph: list[Callable[[], None]], flags: int) -> tuple[int, Any]:
        return 0, SimpleNamespace(work=list(graph), alive=True)

    def cudaGraphDestroy(self, graph: Any) -> tuple[int]:
        return (0,)

    def cudaGraphLaunch(self, graph: Any, stream: int) -> tuple[int]:
        assert graph.alive
        self.launches += 1
        for work in graph.work:
            work()
        return (0,)

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[int]:
        assert graph.alive, "destroyed twice"
        graph.alive = False
        return (0,)

    def enqueue(self, work: Callable[[], None]) -> None:
        """Run work, or record it."""
        if self.recorded is None:
            work()
        else:
            self.recorded.append(work)

    def check(self, address: int, nbytes: int) -> None:
        """Fail unless so many bytes at `address` belong to one allocation."""
        for start, block in self.memory.items():
            if start <= address < start + len(block):
                assert address + nbytes <= start + len(block), "past the end"
                return
        raise AssertionError(f"{address:#x} is no allocation")

    def array(self, address: int, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """Return device memory as an array."""
        nbytes = int(np.prod(shape)) * dtype.itemsize
        self.check(address, nbytes)
        raw = (ctypes.c_byte * nbytes).from_address(address)
        return np.ctypeslib.as_array(raw).view(dtype).reshape(shape)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine, self._profile = engine, 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._profile = index
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        low, _, high = self._engine.profiles[self._profile][name]
        assert all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)), (name, shape, low, high)
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        engine, cuda = self._engine, self._engine.cuda
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        assert set(addresses) == {v.name for v in (*engine.session.get_inputs(), *engine.session.get_outputs())}

        def work() -> None:
            feed = {
                value.name: cuda.array(addresses[value.name], shapes[value.name], _dtype(value.type)).copy()
                for value in engine.session.get_inputs()
            }
            for value, made in zip(engine.session.get_outputs(), engine.session.run(None, feed), strict=True):
                cuda.array(addresses[value.name], made.shape, made.dtype)[...] = made

        cuda.enqueue(work)
        return True


class _Engine:
    def __init__(self, cuda: FakeCuda, content: dict[str, Any]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self.session = ort.InferenceSession(content["path"], options)
        self.cuda, self.profiles = cuda, content["profiles"]

    def create_execution_context(self) -> _Context:
        return _Context(self)


def _dtype(kind: str) -> np.dtype:
    return np.dtype({"tensor(float)": np.float32, "tensor(int64)": np.int64}[kind])


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[Sequence[int]]] = {}

    def set_shape(self, name: str, *shapes: Sequence[int]) -> None:
        self.shapes[name] = list(shapes)


def fake_tensorrt(cuda: FakeCuda, name: str = "tensorrt", version: str = "10.3.0") -> ModuleType:
    """Return a module with the calls of `runtime.tensorrt` and `runtime.backends.trt`; `built` counts engines."""
    trt = ModuleType(name)
    made = SimpleNamespace(built=0, libraries=[], graphs={})

    class Monitor:
        pass

    class Config:
        def __init__(self) -> None:
            self.profiles: list[_Profile] = []
            self.progress_monitor: Any = None

        def add_optimization_profile(self, profile: _Profile) -> None:
            self.profiles.append(profile)

    class Builder:
        def __init__(self, logger: Any) -> None:
            pass

        def create_network(self, flags: int) -> SimpleNamespace:
            assert flags == 2
            return SimpleNamespace()

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> _Profile:
            return _Profile()

        def build_serialized_network(self, network: SimpleNamespace, config: Config) -> bytes:
            made.built += 1
            monitor = config.progress_monitor
            monitor.phase_start("Building", None, 2)
            assert monitor.step_complete("Building", 0)
            monitor.phase_finish("Building")
            return json.dumps({"path": network.path, "profiles": [p.shapes for p in config.profiles]}).encode()

    class Parser:
        num_errors = 0

        def __init__(self, network: SimpleNamespace, logger: Any) -> None:
            self._network = network

        def parse(self, data: bytes, path: str) -> bool:
            made.graphs[Path(path).stem] = data
            self._network.path = path
            return True

    class Runtime:
        def __init__(self, logger: Any) -> None:
            pass

        def deserialize_cuda_engine(self, data: bytes) -> _Engine | None:
            try:
                return _Engine(cuda, json.loads(data))
            except ValueError:
                return None

    class Logger:
        INTERNAL_ERROR, ERROR = "internal", "error"

        def __init__(self, *arguments: Any) -> None:
            pass

    registry = SimpleNamespace(load_library=lambda path: made.libraries.append(path) or path)
    for key, value in {
        "__version__": version,
        "NetworkDefinitionCreationFlag": SimpleNamespace(STRONGLY_TYPED=1),
        "IProgressMonitor": Monitor,
        "ILogger": Logger,
        "Logger": Logger,
        "Builder": Builder,
        "OnnxParser": Parser,
        "Runtime": Runtime,
        "get_plugin_registry": lambda: registry,
        "made": made,
    }.items():
        setattr(trt, key, value)
    return trt


def install(monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda, trt: ModuleType | None = None) -> ModuleType:
    """Let both modules be importable, as on a machine with a GPU."""
    import sys

    trt = trt or fake_tensorrt(cuda)
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = cuda  # type: ignore[attr-defined]
    package = ModuleType("cuda")
    package.bindings = bindings  # type: ignore[attr-defined]
    for name, module in {"cuda": package, "cuda.bindings": bindings, trt.__name__: trt}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return trt
