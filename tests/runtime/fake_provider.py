"""onnxruntime's CUDA provider without a GPU: the same calls, other memory as the device, its CPU runs the graphs.

It keeps the rules that the real one has and that a mistake would break in silence or late:
- a session records only a graph without control flow, and only if everything it is bound to is on the device;
- to record, it makes the run three times; a replay reads and writes what was recorded, whatever it is given;
- a session shares only initializers that do not own their memory.
"""

from __future__ import annotations

import gc
import tempfile
import weakref
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class FakeGpu:
    """What happened on the device."""

    def __init__(self) -> None:
        self.present = True
        self.values: weakref.WeakSet[FakeValue] = weakref.WeakSet()
        self.up: Counter[int] = Counter()  # copies by bytes
        self.down: Counter[int] = Counter()
        self.sessions: list[weakref.ref[FakeSession]] = []
        self.recorded = self.replayed = self.plain = 0
        self.fail = False  # every run from now on
        self.refuse = False  # to record
        self.share = True  # memory of initializers between sessions

    @property
    def live(self) -> list[FakeSession]:
        """Sessions that are open."""
        gc.collect()
        return [session for session in (one() for one in self.sessions) if session is not None]

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        gc.collect()
        return sum(value.real.numpy().nbytes for value in self.values if value.owner is None)


class FakeValue:
    """An OrtValue on the device; with an owner, an alias of its memory."""

    def __init__(self, gpu: FakeGpu, real: Any, owner: FakeValue | None = None) -> None:
        self.gpu, self.real, self.owner = gpu, real, owner
        gpu.values.add(self)

    def numpy(self) -> np.ndarray:
        content: np.ndarray = self.real.numpy().copy()
        self.gpu.down[content.nbytes] += 1
        return content

    def update_inplace(self, array: np.ndarray) -> None:
        assert array.flags.c_contiguous and list(array.shape) == list(self.real.shape())
        self.gpu.up[array.nbytes] += 1
        self.real.update_inplace(array)


class FakeOptions:
    """SessionOptions that remember what is asked."""

    def __init__(self) -> None:
        self.__dict__["real"], self.__dict__["fixed"], self.__dict__["shared"] = ort.SessionOptions(), {}, {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.real, name, value)

    def add_free_dimension_override_by_name(self, name: str, size: int) -> None:
        self.fixed[name] = size
        self.real.add_free_dimension_override_by_name(name, size)

    def add_initializer(self, name: str, value: FakeValue) -> None:
        assert value.owner is not None, "the buffer of an initializer must be owned by the user"
        self.shared[name] = value
        self.real.add_initializer(name, value.real)


class FakeBinding:
    """What a run reads and writes."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.inputs: dict[str, FakeValue] = {}
        self.outputs: dict[str, FakeValue] = {}

    def bind_ortvalue_input(self, name: str, value: FakeValue) -> None:
        self.inputs[name] = value
        self.real.bind_ortvalue_input(name, value.real)

    def bind_ortvalue_output(self, name: str, value: FakeValue) -> None:
        self.outputs[name] = value
        self.real.bind_ortvalue_output(name, value.real)


class FakeSession:
    """An InferenceSession on the device."""

    def __init__(self, gpu: FakeGpu, path: str, options: FakeOptions, providers: Sequence[tuple[str, dict]]) -> None:
        ((name, self.settings),) = providers
        assert name == CUDA and all(isinstance(value, str) for value in self.settings.values())
        self.gpu, self.fixed, self.shared = gpu, options.fixed, options.shared
        self.records = self.settings["enable_cuda_graph"] == "1"
        if self.shared and not gpu.share:
            raise RuntimeError("an initializer on another device than planned")
        with tempfile.TemporaryDirectory() as folder:
            options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
            self.real = ort.InferenceSession(path, options.real, providers=[CPU])
            model = onnx.load(options.optimized_model_filepath, load_external_data=False)
        kinds = {node.op_type for node in model.graph.node}
        if self.records and (gpu.refuse or kinds & {"If", "Loop", "Scan"}):
            raise RuntimeError("This session cannot use the graph capture feature: the model has control flow nodes")
        self._recordings: dict[str, list[tuple[str, str, weakref.ref[FakeValue]]]] = {}
        gpu.sessions.append(weakref.ref(self))

    def get_inputs(self) -> Any:
        return self.real.get_inputs()

    def get_outputs(self) -> Any:
        return self.real.get_outputs()

    def io_binding(self) -> FakeBinding:
        return FakeBinding(self.real.io_binding())

    def run_with_iobinding(self, binding: FakeBinding, options: Any = None) -> None:
        if self.gpu.fail:
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")
        if not self.records:
            self.gpu.plain += 1
            self.real.run_with_iobinding(binding.real)
            return
        number = options.get_run_config_entry("gpu_graph_id")
        if number in self._recordings:
            binding = self._recorded(number)
            self.gpu.replayed += 1
            self.real.run_with_iobinding(binding.real)
            return
        assert not set(map(id, binding.inputs.values())) & set(map(id, binding.outputs.values()))
        for _ in range(3):
            self.real.run_with_iobinding(binding.real)
        self.gpu.recorded += 1
        self._recordings[number] = [
            (kind, name, weakref.ref(value))
            for kind, named in (("input", binding.inputs), ("output", binding.outputs))
            for name, value in named.items()
        ]

    def _recorded(self, number: str) -> FakeBinding:
        binding = self.io_binding()
        for kind, name, reference in self._recordings[number]:
            value = reference()
            assert value is not None, "a recording names memory that was released"
            getattr(binding, f"bind_ortvalue_{kind}")(name, value)
        return binding


def fake_onnxruntime(gpu: FakeGpu, *, version: str = "1.31.1", aliases: bool = True, cuda: bool = True) -> ModuleType:
    """Return a module with the calls of `runtime.backends.cuda`."""
    module = ModuleType("onnxruntime")

    def from_numpy(array: np.ndarray, kind: str = "cpu", index: int = 0) -> FakeValue:
        if not gpu.present:
            raise RuntimeError("provider_bridge_ort.cc GetProviderInfo_CUDA\nCUDA Provider not available")
        assert (kind, index) == ("cuda", 0)
        real = ort.OrtValue.ortvalue_from_shape_and_type(list(array.shape), array.dtype, "cpu", 0)
        real.update_inplace(np.ascontiguousarray(array))
        gpu.up[array.nbytes] += 1
        return FakeValue(gpu, real)

    values: dict[str, Any] = {"ortvalue_from_numpy": staticmethod(from_numpy)}
    if aliases:
        values["from_dlpack"] = staticmethod(lambda of: FakeValue(gpu, ort.OrtValue.from_dlpack(of.real), of))
    for name, value in {
        "__version__": version,
        "get_available_providers": lambda: [CUDA, CPU] if cuda else [CPU],
        "preload_dlls": lambda: None if gpu.present else print("Failed to load libcublas.so.13: no such file"),
        "set_default_logger_severity": lambda level: None,
        "OrtValue": type("OrtValue", (), values),
        "SessionOptions": FakeOptions,
        "RunOptions": ort.RunOptions,
        "InferenceSession": lambda path, options, providers: FakeSession(gpu, path, options, providers),
    }.items():
        setattr(module, name, value)
    return module


def install(monkeypatch: pytest.MonkeyPatch, gpu: FakeGpu, **options: Any) -> None:
    """Let `runtime.backends.cuda` find the pretended GPU."""
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", fake_onnxruntime(gpu, **options))
