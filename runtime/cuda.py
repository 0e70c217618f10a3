"""The few calls of the CUDA runtime that a backend needs, through `cuda-python`, with errors that say what happened."""

from __future__ import annotations

from typing import Any

from runtime.errors import StateError, TargetUnavailable


class Cuda:
    """One device and one stream on it. Raises `TargetUnavailable` where there is no GPU or no `cuda-python`."""

    def __init__(self) -> None:
        """Open the current device."""
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise TargetUnavailable(f"cuda-python is not installed: {error}", hint="pip install cuda-python") from None
        self.api: Any = runtime
        code, count = runtime.cudaGetDeviceCount()
        if int(code) or not count:
            raise TargetUnavailable(
                f"no NVIDIA GPU: {_text(runtime, code)}",
                wanted="a GPU and its driver",
                hint="run nvidia-smi (tegrastats on a Jetson); in a container, start it with the NVIDIA runtime",
            )
        self.device = self._do("cudaGetDevice")
        self.stream = self._do("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)

    @property
    def architecture(self) -> str:
        """Compute capability without the dot, e.g. "87"."""
        attribute = self.api.cudaDeviceAttr
        major = self._do("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMajor, self.device)
        minor = self._do("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMinor, self.device)
        return f"{major}{minor}"

    def memory(self) -> tuple[int, int]:
        """Return free and total bytes of the device (a Jetson's is the machine's)."""
        free, total = self._do("cudaMemGetInfo")
        return int(free), int(total)

    def allocate(self, nbytes: int) -> int:
        """Return the address of so many bytes of zeros on the device."""
        address = int(self._do("cudaMalloc", max(nbytes, 1)))
        self._do("cudaMemset", address, 0, max(nbytes, 1))
        return address

    def allocate_host(self, nbytes: int) -> int:
        """Return the address of so many bytes of page-locked host memory."""
        return int(self._do("cudaMallocHost", max(nbytes, 1)))

    def free(self, device: int, host: int) -> None:
        """Release both; 0 is nothing."""
        if device:
            self._do("cudaFree", device)
        if host:
            self._do("cudaFreeHost", host)

    def to_device(self, device: int, host: int, nbytes: int) -> None:
        """Copy, behind everything in the stream."""
        self._copy(device, host, nbytes, self.api.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def to_host(self, host: int, device: int, nbytes: int) -> None:
        """Copy, behind everything in the stream; wait with `synchronize`."""
        self._copy(host, device, nbytes, self.api.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def synchronize(self) -> None:
        """Wait for the stream. An error of a kernel shows here."""
        self._do("cudaStreamSynchronize", self.stream)

    def begin_capture(self) -> None:
        """Record what goes into the stream instead of running it."""
        mode = self.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._do("cudaStreamBeginCapture", self.stream, mode)

    def end_capture(self) -> Any:
        """Return what was recorded, ready to launch."""
        graph = self._do("cudaStreamEndCapture", self.stream)
        try:
            return self._do("cudaGraphInstantiate", graph, 0)
        finally:
            self._do("cudaGraphDestroy", graph)

    def launch(self, graph: Any) -> None:
        """Run what was recorded, once."""
        self._do("cudaGraphLaunch", graph, self.stream)

    def forget(self, graph: Any) -> None:
        """Release a recording."""
        self._do("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        """Release the stream."""
        self._do("cudaStreamDestroy", self.stream)

    def _copy(self, to: int, source: int, nbytes: int, kind: Any) -> None:
        self._do("cudaMemcpyAsync", to, source, nbytes, kind, self.stream)

    def _do(self, name: str, *arguments: Any) -> Any:
        code, *results = getattr(self.api, name)(*arguments)
        if int(code):
            raise StateError(
                f"{name} failed: {_text(self.api, code)}",
                hint="reset() the session; if it happens again, the GPU or its memory is the trouble (dmesg tells)",
            )
        return results[0] if len(results) == 1 else results


def _text(api: Any, code: Any) -> str:
    _, text = api.cudaGetErrorString(code)
    return text.decode() if isinstance(text, bytes) else str(text)
