"""Our side of a peer's process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.measure import memory_mb
from benchmarks.peers.worker import ANSWERS
from runtime.errors import TargetUnavailable, VisualRWKVError

REPOSITORY = Path(__file__).resolve().parents[2]


class Peer:
    """A process that runs one model of one engine, and does nothing until it is called. Use it as a context manager."""

    def __init__(
        self, name: str, module: str, *args: object, threads: int, python: str | Path = sys.executable
    ) -> None:
        """Start `python -m MODULE ARGS THREADS` and wait until its model is loaded.

        Raises:
            TargetUnavailable: it died; the message ends with the last lines it said.
        """
        self.name, self.threads = name, threads
        answers, theirs = os.pipe()
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": str(threads)}
        environment |= {"TRANSFORMERS_VERBOSITY": "error", ANSWERS: str(theirs)}
        self._answers = os.fdopen(answers, encoding="utf-8")
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in `close`)
        command = [str(python), "-m", module, *map(str, args), str(threads)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                text=True,
                env=environment,
                pass_fds=(theirs,),
            )
        finally:
            os.close(theirs)
        try:
            self.ready: dict[str, Any] = self("ready")
        except BaseException:
            self.close()
            raise

    def __call__(self, operation: str, **args: object) -> Any:
        """Run an operation in the process and return its result; raises `TargetUnavailable` if it fails there."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"op": operation, "args": args}) + "\n")
            self._process.stdin.flush()
        line = self._answers.readline()
        answer = json.loads(line) if line else {"error": f"died; its last words:\n{self._last_words()}"}
        if "error" in answer:
            raise TargetUnavailable(
                f"{self.name}, {operation}: {answer['error']}", hint="--help tells how to leave a peer out"
            )
        return answer["result"]

    def memory_mb(self) -> dict[str, float]:
        """Return the resident memory of the process (`benchmarks.measure.memory_mb`)."""
        return memory_mb(self._process.pid)

    def close(self) -> None:
        """End the process. Safe to call twice."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._answers, self._log):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _last_words(self) -> str:
        self._log.seek(0)
        return "".join(self._log.readlines()[-8:])

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def run(main: Callable[[], None]) -> None:
    """Run a command line; errors raised on purpose end it without a traceback, and Ctrl-C quietly."""
    try:
        main()
    except VisualRWKVError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nstopped: nothing was written", file=sys.stderr)
        sys.exit(130)
