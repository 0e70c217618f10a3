"""Many clients of the server at once: time to first token, tokens per second, refusals, leaks.

    python -m benchmarks.serve_load build/demo-int8-cpu
    python -m benchmarks.serve_load build/demo-int8-cpu --clients 64 --seconds 60 --json result.json

Starts `python -m apps.serve` on a free port and lets every client talk to it over loopback: a new conversation about a
picture, two turns more through its `state`, then the next. Every answer is streamed. A client that is refused with 429
waits as long as `Retry-After` says. The clients share the machine with the server. Prints a table, and JSON as its last
line; exits with 1 if anything but an answer or a 429 came back, or something was left behind.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np

from benchmarks.measure import machine, memory_mb

TURNS = ("How many circles are there?", "What colour is the star?", "Is it day or night?")
PATIENCE_S = 60.0
GROWTH = 1.1  # of the server's memory from half time to the end: more is a leak


@dataclass
class Found:
    """What the clients met, all together."""

    statuses: Counter[int] = field(default_factory=Counter)
    ttft_s: list[float] = field(default_factory=list)
    answer_s: list[float] = field(default_factory=list)
    tokens: int = 0
    wrong: list[str] = field(default_factory=list)  # whatever should not have happened
    lock: threading.Lock = field(default_factory=threading.Lock)


def drive(address: str, model: str, *, clients: int, seconds: float, max_tokens: int = 32) -> Found:
    """Let clients talk to a server for so long; returns when all have their last answer."""
    found, end = Found(), time.monotonic() + seconds
    threads = [
        threading.Thread(target=_client, args=(address, model, number, end, max_tokens, found))
        for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def gauges(address: str) -> dict[str, float]:
    """Return the server's numbers by name."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE_S)
    try:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    finally:
        connection.close()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


def _client(address: str, model: str, number: int, end: float, max_tokens: int, found: Found) -> None:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE_S)
    url, state, turn = _picture(number), None, 0
    try:
        while time.monotonic() < end:
            text = {"type": "text", "text": TURNS[turn]}
            content = [text] if state else [text, {"type": "image_url", "image_url": {"url": url}}]
            body = {
                "model": model,
                "messages": [{"role": "user", "content": content}],
                "stream": True,
                "max_tokens": max_tokens,
                **({"state": state} if state else {}),
            }
            status, state, wait_s = _ask(connection, body, found)
            if status == 404 and turn:  # others needed the state's room
                turn = 0
            elif status == 200:
                turn = (turn + 1) % len(TURNS)
            state = state if turn else None
            time.sleep(min(wait_s, max(0.0, end - time.monotonic())))
    except Exception as error:
        with found.lock:
            found.wrong.append(f"client {number}: {error!r}")
    finally:
        connection.close()


def _ask(connection: http.client.HTTPConnection, body: dict[str, Any], found: Found) -> tuple[int, str | None, float]:
    """One request; return its status, the state, and how long to wait before the next."""
    began = time.monotonic()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    first, state, pieces, done = None, None, 0, False
    if answer.status == 200:
        while line := answer.readline():
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if "error" in event:
                    with found.lock:
                        found.wrong.append(str(event["error"]))
                    break
                if event["choices"][0]["delta"].get("content"):
                    first, pieces = first or time.monotonic(), pieces + 1
                state = event.get("state", state)
            done = done or line.startswith(b"data: [DONE]")
    rest = answer.read()
    now = time.monotonic()
    retry = answer.headers.get("Retry-After")
    with found.lock:
        found.statuses[answer.status] += 1
        if answer.status == 200:
            found.ttft_s += [first - began] if first else []
            found.answer_s.append(now - began)
            found.tokens += pieces
            if not done:
                found.wrong.append("an answer without an end")
        elif answer.status == 429:
            if retry is None:
                found.wrong.append("429 without Retry-After")
        elif answer.status != 404 or "state" not in body:
            found.wrong.append(f"{answer.status}: {rest[:200]!r}")
    return answer.status, state, float(retry or 0)


def _picture(number: int) -> str:
    """A small scene of its own for every client."""
    picture = np.full((64, 64, 3), 30 + number % 60, np.uint8)
    cv2.circle(picture, (20 + number % 20, 30), 10, (0, 200, 255), -1)
    data = cv2.imencode(".png", picture)[1].tobytes()
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _percentiles(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    return {name: float(np.percentile(seconds, q)) * 1e3 for name, q in (("p50", 50), ("p95", 95), ("max", 100))}


def measure(bundle: Path, *, clients: int, seconds: float, threads: int | None, slots: int) -> dict[str, Any]:
    """Serve a bundle from a process of its own and drive it."""
    command = [sys.executable, "-m", "apps.serve", str(bundle), "--port", "0", "--slots", str(slots), "--name", "model"]
    command += ["--threads", str(threads)] if threads else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if " at http" not in line:
                raise SystemExit(f"the server did not start: {line}")
            address = line.split(" at ")[1].split("/v1")[0]
            drive(address, "model", clients=slots, seconds=min(3.0, seconds))  # everything that is made once is there
            before, half = memory_mb(server.pid)["anon"], [0.0]
            watcher = threading.Timer(seconds / 2, lambda: half.append(memory_mb(server.pid)["anon"]))
            watcher.start()
            found = drive(address, "model", clients=clients, seconds=seconds)
            watcher.join()
            after, left = memory_mb(server.pid)["anon"], gauges(address)
        finally:
            server.terminate()
            server.wait(30)
    for name in ("answering", "waiting"):
        if left[f"vrwkv_server_{name}"]:
            found.wrong.append(f"{name} is {left[f'vrwkv_server_{name}']:g} at the end")
    # By half time every place for a state is taken, and whatever is made once is there.
    if after > half[-1] * GROWTH:
        found.wrong.append(f"the server grew from {half[-1]:.1f} to {after:.1f} MB in the second half")
    return {
        "clients": clients,
        "slots": slots,
        "seconds": seconds,
        "answers": found.statuses[200],
        "refused_429": found.statuses[429],
        "state_gone_404": found.statuses[404],
        "answers_per_s": found.statuses[200] / seconds,
        "tokens_per_s": found.tokens / seconds,
        "ttft_ms": _percentiles(found.ttft_s),
        "answer_ms": _percentiles(found.answer_s),
        "anon_mb": {"before": before, "half_time": half[-1], "after": after},
        "states": left["vrwkv_server_states"],
        "wrong": found.wrong[:10],
        "wrong_count": len(found.wrong),
        "machine": machine(),
    }


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="write the result here, too")
    args = parser.parse_args()
    result = measure(args.bundle, clients=args.clients, seconds=args.seconds, threads=args.threads, slots=args.slots)
    for name in ("clients", "answers", "refused_429", "state_gone_404", "answers_per_s", "tokens_per_s", "wrong_count"):
        print(f"{name:<16} {result[name]:>10.1f}")
    for name in ("ttft_ms", "answer_ms"):
        print(f"{name:<16} " + "  ".join(f"{key} {value:.1f}" for key, value in result[name].items()))
    print(f"{'anon_mb':<16} " + "  ".join(f"{key} {value:.1f}" for key, value in result["anon_mb"].items()))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 1 if result["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
