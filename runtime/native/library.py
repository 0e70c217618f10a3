"""The compiled library: where it is, what it takes, which instruction sets it may use here."""

from __future__ import annotations

import ctypes
import functools
import os
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_void_p
from pathlib import Path

from runtime.errors import ConfigError, TargetUnavailable

VERSION = 2  # of the functions and structures, as `vrwkv_version` in src/api.cpp
FORMATS = {"float32": 0, "float16": 1, "int8": 2, "int4": 3}
TILES, ROWS = 0, 1  # layouts: read whole, or with zero inputs left out
_SUFFIXES = (".so", ".dylib", ".dll")
_BUILD = "install a C++17 compiler, then install this package again"


class Source(ctypes.Structure):
    """A matrix of the bundle, as `Source` in src/matrix.h."""

    _fields_ = (
        ("format", c_int32),
        ("release", c_int32),
        ("k", c_int64),
        ("n", c_int64),
        ("block", c_int64),
        ("data", c_void_p),
        ("scale", c_void_p),
        ("zero", c_void_p),
    )


class Sizes(ctypes.Structure):
    """The sizes of a model, as `Sizes` in src/api.cpp."""

    _fields_ = (
        ("family", c_int32),
        ("layers", c_int32),
        ("width", c_int32),
        ("hidden", c_int32),
        ("vocab", c_int32),
        ("threads", c_int32),
        ("rank", c_int32 * 4),
    )


class Call(ctypes.Structure):
    """One call of the step, as `Call` in src/model.h; pointers have the names of the graph's inputs and outputs."""

    _fields_ = (
        *((name, c_int32) for name in ("batch", "length", "images", "orders")),
        *((name, c_void_p) for name in ("embeddings", "att_shift", "ffn_shift", "wkv", "image_state", "scan")),
        *((name, c_void_p) for name in ("logits", "att_shift_out", "ffn_shift_out", "wkv_out")),
    )


@functools.cache
def library() -> ctypes.CDLL:
    """Load the library, once.

    Raises:
        TargetUnavailable: it was not built, cannot be loaded, or is of another version of this package.
    """
    found = [path for path in sorted(Path(__file__).parent.glob("libvrwkv.*")) if path.suffix in _SUFFIXES]
    if not found:
        raise TargetUnavailable("the native step was not built: no C++ compiler when this was installed", hint=_BUILD)
    try:
        loaded = ctypes.CDLL(str(found[0]))
        _declare(loaded)
        version = loaded.vrwkv_version()
    except (OSError, AttributeError) as error:
        raise TargetUnavailable(f"the native step cannot be loaded: {error}", hint=_BUILD) from None
    if version != VERSION:
        raise TargetUnavailable(f"the native step was built by version {version}", wanted=f"{VERSION}", hint=_BUILD)
    return loaded


def _declare(loaded: ctypes.CDLL) -> None:
    floats = c_void_p
    loaded.vrwkv_version.argtypes, loaded.vrwkv_version.restype = [], c_int32
    loaded.vrwkv_isas.argtypes, loaded.vrwkv_isas.restype = [c_char_p, c_int32], None
    loaded.vrwkv_open.argtypes = [POINTER(Sizes), c_char_p, POINTER(c_void_p), POINTER(Source)]
    loaded.vrwkv_open.restype = c_void_p
    loaded.vrwkv_close.argtypes, loaded.vrwkv_close.restype = [c_void_p], None
    loaded.vrwkv_weight_bytes.argtypes, loaded.vrwkv_weight_bytes.restype = [c_void_p], c_int64
    loaded.vrwkv_bytes_read.argtypes, loaded.vrwkv_bytes_read.restype = [c_void_p], c_int64
    loaded.vrwkv_run.argtypes = [c_void_p, POINTER(Call)]
    loaded.vrwkv_run.restype = c_int32
    loaded.vrwkv_multiply.argtypes = [c_char_p, POINTER(Source), c_int32, floats, c_int32, floats]
    loaded.vrwkv_multiply.restype = c_int64


def instruction_sets() -> tuple[str, ...]:
    """Return the instruction sets that this build has and this machine runs, the best first."""
    names = ctypes.create_string_buffer(256)
    library().vrwkv_isas(names, len(names))
    return tuple(names.value.decode().split())


def chosen_set() -> str:
    """Return the instruction set to use: the best, or the one that VRWKV_ISA names.

    Raises:
        ConfigError: this machine, or this build, does not have it.
    """
    usable = instruction_sets()
    wanted = os.environ.get("VRWKV_ISA", usable[0])
    if wanted not in usable:
        raise ConfigError(f"VRWKV_ISA is {wanted!r}", wanted=f"one of {', '.join(usable)}", hint="unset it")
    return wanted
