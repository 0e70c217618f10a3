"""The side of a peer's process: reads calls from standard input, answers on a pipe of its own, a line of JSON each.

Imports nothing but the standard library: every peer's environment can run it.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

ANSWERS = "PEER_ANSWERS"
Operations = dict[str, Callable[..., Any]]


def serve(operations: Operations) -> None:
    """Answer calls until the input ends, on the file descriptor that the environment names: libraries print.

    A call is `{"op": NAME, "args": {...}}`, an answer `{"result": ...}` or `{"error": TEXT}`.
    """
    with os.fdopen(int(os.environ[ANSWERS]), "w", encoding="utf-8") as answers:
        for line in sys.stdin:
            call = json.loads(line)
            try:
                answer = {"result": operations[call["op"]](**call["args"])}
            except Exception:
                answer = {"error": traceback.format_exc(limit=4)}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def seconds(run: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
