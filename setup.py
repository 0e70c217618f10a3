"""Builds the native step (runtime/native/src), where there is a C++17 compiler; everything else is in pyproject.toml.

The library has a C face and is loaded with ctypes, so one file serves every Python version. Without a compiler the
install succeeds all the same: the runtime then says so and runs the step on onnxruntime.
"""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("runtime/native/src")
SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
# No -march: each file names the instructions it uses, and the library picks a file when it is loaded. Multiplications
# and additions are fused only where the code says so, so that a result does not depend on how many rows share a call.
FLAGS = ["-std=c++17", "-O3", "-g0", "-pthread", "-ffp-contract=off", "-fvisibility=hidden"]


class build_native(build_ext):
    """Names the file as a plain library, and looks for no Python module in it."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return the path of the library within the packages."""
        return fullname.replace(".", "/") + SUFFIX

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """Return nothing to export by name: the sources say what they export."""
        return list(ext.export_symbols)


setup(
    ext_modules=[
        Extension(
            "runtime.native.libvrwkv",
            sources=sorted(path.as_posix() for path in SOURCES.glob("*.cpp")),
            depends=sorted(path.as_posix() for path in SOURCES.glob("*.h")),
            extra_compile_args=FLAGS,
            extra_link_args=["-pthread"],
            optional=True,
        )
    ],
    cmdclass={"build_ext": build_native},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},  # no part of it is compiled against Python
)
