"""Finding the bundle an app runs on, and saying how to make it when there is none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from runtime.errors import BundleError
from runtime.spec import MANIFEST_FILE

DEFAULT_BUNDLE = Path("build/demo-int8-cpu")


def find_bundle(path: Path, *, ask: bool = False, answer: Callable[[str], str] = input) -> Path:
    """Return `path` when a bundle lies there; otherwise raise `BundleError` with the command that makes one.

    With `ask`, and the exporter installed, a person at the terminal may have the demo model exported now.
    """
    if (path / MANIFEST_FILE).is_file():
        return path
    demo = path == DEFAULT_BUNDLE
    command = ["-m", "export", "--int8"] if demo else ["-m", "export", "CHECKPOINT", "--int8"]
    command += ["--out", str(path)]
    installed = find_spec("torch") is not None
    if demo and installed and ask and answer(f"There is no bundle at {path}. Export it now? [Y/n] ") in ("", "y", "Y"):
        if subprocess.run([sys.executable, *command], check=False).returncode == 0:
            return path
        raise BundleError(f"the export to {path} failed")
    install = "" if installed else '  (after: pip install ".[export]")'
    raise BundleError(f"there is no bundle at {path}", hint=f"python {' '.join(command)}{install}")
