"""Writing a bundle all or nothing: into a hidden folder beside the destination, renamed at the very end."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import ExportError
from runtime.spec import MANIFEST_FILE


@contextmanager
def destination(out: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a folder to write into, which becomes `out` if nothing goes wrong and disappears otherwise.

    Raises:
        ExportError: `out` is taken by something else than a bundle that may be replaced, or cannot be written, or the
            disk is full.
    """
    taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if taken and not (overwrite and (out / MANIFEST_FILE).is_file()):
        what = "is not a bundle" if overwrite else "exists and is not an empty folder"
        raise ExportError(f"{out} {what}", hint="choose another --out, or --overwrite a bundle")
    with scratch(out, "partial") as folder:
        old = folder.with_name(f"{folder.name}-old")
        try:
            yield folder
            if out.exists():
                out.rename(old)
            folder.rename(out)
        finally:
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def scratch(out: Path, purpose: str) -> Iterator[Path]:
    """Yield a new hidden folder beside `out` that is removed in the end, whatever happens.

    Raises `ExportError` where it cannot be made, and in place of the system's error when the disk is full.
    """
    folder = out.parent / f".{out.name}.{purpose}-{os.getpid()}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ExportError(f"{out.parent} cannot be written: {error.strerror}", hint="choose another --out") from error
    try:
        yield folder
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ExportError(
                f"the disk of {out.parent} is full", hint="free some space, or choose another --out"
            ) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
