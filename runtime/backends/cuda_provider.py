"""Whether onnxruntime can use an NVIDIA GPU here, and how it is asked to."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np

from runtime.errors import TargetUnavailable

PROVIDER = "CUDAExecutionProvider"
DEVICE = ("cuda", 0)
INSTALL = "pip uninstall -y onnxruntime; pip install --force-reinstall 'onnxruntime-gpu[cuda,cudnn]'"


def usable() -> Any:
    """Return the onnxruntime module if it can use a GPU.

    Raises:
        TargetUnavailable: it is not installed, built without CUDA, or finds neither CUDA's libraries nor a GPU.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise TargetUnavailable(f"onnxruntime is not installed: {error}", hint=INSTALL) from error
    if PROVIDER not in ort.get_available_providers():
        raise TargetUnavailable(
            f"onnxruntime {ort.__version__} has no CUDA",
            wanted="the package onnxruntime-gpu, in the place of onnxruntime",
            hint=INSTALL,
        )
    complaints = io.StringIO()
    severity = getattr(ort, "set_default_logger_severity", lambda level: None)
    severity(4)  # what fails here is told below
    try:
        with contextlib.redirect_stdout(complaints):
            if hasattr(ort, "preload_dlls"):  # finds the libraries that packages of NVIDIA brought
                ort.preload_dlls()
            ort.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32), *DEVICE)
    except Exception as error:  # onnxruntime raises several unrelated types
        missing = next((line for line in complaints.getvalue().splitlines() if "Failed to load" in line), "")
        raise TargetUnavailable(
            f"onnxruntime {ort.__version__} cannot use a GPU: {missing or str(error).strip().splitlines()[-1]}",
            wanted="an NVIDIA GPU, its driver, CUDA and cuDNN",
            hint=f"nvidia-smi tells whether there is a GPU; libraries: {INSTALL}",
        ) from error
    finally:
        severity(2)
    return ort


def provider(*, record: bool) -> tuple[str, dict[str, str]]:
    """Return the provider's name and options.

    TF32 would round the operands of the recurrence's products to 10 bits; the state stays float32.
    """
    return PROVIDER, {
        "device_id": str(DEVICE[1]),
        "use_tf32": "0",
        "enable_cuda_graph": "1" if record else "0",
        "arena_extend_strategy": "kSameAsRequested",  # the other doubles what it takes
        "cudnn_conv_algo_search": "HEURISTIC",  # the other tries every algorithm on the first picture
    }


def session_options(ort: Any) -> Any:
    """Return options for a session whose work is on the GPU: one thread on the host, and only errors are logged."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options
