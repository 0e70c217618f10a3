"""How probes look at a machine: files and short commands, both of which a test can replace."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 5.0  # of a command; a driver that hangs must not hang the doctor


@dataclass(frozen=True)
class Host:
    """A machine, looked at from `root`. `path` replaces the search path of commands."""

    root: Path = Path("/")
    path: str | None = None

    def file(self, name: str) -> Path:
        """Return where an absolute path lies under `root`."""
        return self.root / name.lstrip("/")

    def text(self, name: str) -> str:
        """Return a file's text without NULs and outer blanks, "" where it cannot be read."""
        try:
            return self.file(name).read_text(encoding="utf-8", errors="replace").replace("\0", "").strip()
        except OSError:
            return ""

    def glob(self, pattern: str) -> list[Path]:
        """Return the paths that match an absolute pattern, in order."""
        try:
            return sorted(self.root.glob(pattern.lstrip("/")))
        except OSError:
            return []

    def has(self, command: str) -> bool:
        """Whether a command is there."""
        return shutil.which(command, path=self.path) is not None

    def output(self, *command: str) -> str:
        """Return what a command prints, "" where it is not there, fails, or takes longer than `TIMEOUT_S`."""
        program = shutil.which(command[0], path=self.path)
        if program is None:
            return ""
        try:
            done = subprocess.run(
                [program, *command[1:]],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT_S,
                check=False,
                env={**os.environ, "LC_ALL": "C"},
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""
