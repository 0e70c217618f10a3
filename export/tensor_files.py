"""Opening a `.pth` or `.safetensors` file without running code from it and without reading its weights.

Both readers answer names, shapes and dtypes at once and map a tensor only when it is asked for. What kind a
file is, is told by its first bytes, never by its suffix.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import safetensors
import torch

from runtime.errors import CheckpointError

DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
_SAFETENSORS_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SHOWN = 5


class TensorFile(Protocol):
    """Named tensors of one file."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]

    def tensor(self, key: str) -> torch.Tensor:
        """Return the tensor in its stored dtype, mapped from the file."""
        ...


def open_tensor_file(path: Path) -> TensorFile:
    """Open a checkpoint or vision file; raises `CheckpointError` unless it plainly holds float tensors."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist", wanted="a .pth or .safetensors file", hint="check the path")
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix in (".pth", ".pt", ".bin", ".safetensors"))
        hint = f"name one of its files: {', '.join(inside[:_SHOWN])}" if inside else "name the checkpoint file itself"
        raise CheckpointError(f"{path} is a directory", wanted="a .pth or .safetensors file", hint=hint)
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}", hint="check its permissions") from None
    if not start:
        raise CheckpointError(f"{path} is empty", wanted="a .pth or .safetensors file", hint="download it again")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights", hint="run `git lfs pull`")
    if start[8:9] == b"{" and not start.startswith(b"PK"):
        return _Safetensors(path)
    return _Pickle(path)


class _Pickle:
    """A torch zip (mapped) or an old torch pickle (read whole), through the weights-only unpickler."""

    def __init__(self, path: Path) -> None:
        self._tensors = _named_tensors(path, _load(path))
        self.shapes = {key: tuple(tensor.shape) for key, tensor in self._tensors.items()}
        self.dtypes = {key: tensor.dtype for key, tensor in self._tensors.items()}

    def tensor(self, key: str) -> torch.Tensor:
        return self._tensors[key]


class _Safetensors:
    """A safetensors file, read tensor by tensor."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = cast(Any, safetensors.safe_open(path, framework="pt", device="cpu"))
            slices = {key: self._file.get_slice(key) for key in self._file.keys()}  # noqa: SIM118 (not a mapping)
        except (safetensors.SafetensorError, OSError) as error:
            raise _damaged(path, error) from None
        names = {key: slice_.get_dtype() for key, slice_ in slices.items()}
        _refuse_dtypes(path, {key: name for key, name in names.items() if name not in _SAFETENSORS_DTYPES})
        self.shapes = {key: tuple(slice_.get_shape()) for key, slice_ in slices.items()}
        self.dtypes = {key: _SAFETENSORS_DTYPES[name] for key, name in names.items() if name in _SAFETENSORS_DTYPES}
        for key in set(self.shapes) - set(self.dtypes):
            del self.shapes[key]  # an ignorable integer buffer

    def tensor(self, key: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file.get_tensor(key)
        return tensor


def _load(path: Path) -> Any:
    mapped = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols
            return torch.load(path, weights_only=True, mmap=mapped, map_location="cpu")
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "global" in line), "")
        if not reason:
            raise _damaged(path, error) from None
        raise CheckpointError(
            f"{path} contains code besides tensors ({reason.strip()[:120]}); it was refused and not executed",
            wanted="a plain state dict of tensors",
            hint="save `model.state_dict()` instead of the whole model",
        ) from None
    except Exception as error:  # torch raises whatever its unpickler stumbles on: KeyError, EOFError, RuntimeError...
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
    return CheckpointError(
        f"{path} ({path.stat().st_size} bytes) is truncated, damaged or not a checkpoint: {reason}",
        wanted="a complete .pth or .safetensors file",
        hint="compare its size with the published one and download it again",
    )


def _named_tensors(path: Path, content: Any) -> dict[str, torch.Tensor]:
    """Check what the pickle held, unwrapping one nesting such as {"state_dict": ...}."""
    if isinstance(content, Mapping):
        inner = [name for name in WRAPPERS if isinstance(content.get(name), Mapping)]
        if len(inner) == 1:
            content = content[inner[0]]
        elif "param_groups" in content and "state" in content:
            raise CheckpointError(
                f"{path} is the state of an optimiser",
                wanted="the model's state dict",
                hint="pass the model's own file",
            )
    if not isinstance(content, Mapping) or not content:
        what = f"a {type(content).__name__}" if not isinstance(content, Mapping) else "an empty state dict"
        raise CheckpointError(f"{path} holds {what}", wanted="a state dict: names to tensors")
    odd = [key for key, value in content.items() if not isinstance(key, str) or not isinstance(value, torch.Tensor)]
    if odd:
        kind = type(content[odd[0]]).__name__
        raise CheckpointError(
            f"{path} holds values that are not tensors, first {str(odd[0])[:80]!r} ({kind})",
            wanted="a state dict: names to tensors",
            hint="save `model.state_dict()`; training checkpoints keep it under a key of their own",
        )
    plain = {key: value.detach() for key, value in content.items()}
    bad = {
        key: _kind(value) for key, value in plain.items() if value.dtype not in DTYPES or value.layout != torch.strided
    }
    _refuse_dtypes(path, bad)
    return {key: value for key, value in plain.items() if key not in bad}


def _kind(tensor: torch.Tensor) -> str:
    layout = "" if tensor.layout == torch.strided else f" {tensor.layout}"
    return f"{tensor.dtype}{layout}".replace("torch.", "")


def _refuse_dtypes(path: Path, bad: Mapping[str, str]) -> None:
    # Older transformers versions saved an integer index buffer beside the weights: the one harmless
    # exception.
    refused = {key: kind for key, kind in bad.items() if not key.endswith("position_ids")}
    if refused:
        shown = ", ".join(f"{key} ({kind})" for key, kind in list(refused.items())[:_SHOWN])
        raise CheckpointError(
            f"{path}: {len(refused)} tensors of an unsupported type: {shown}",
            wanted="float32, float16 or bfloat16",
            hint="export from the original checkpoint; quantising is the exporter's work",
        )
