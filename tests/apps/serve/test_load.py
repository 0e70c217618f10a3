"""64 clients at once: answers or documented refusals, and nothing is left behind. The long version is a benchmark."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serve_load import drive, gauges
from runtime import Session, VisualRWKV
from tests.apps.serve.conftest import MODEL, Serve, Server, data_url, frame_at, show
from tests.runtime.fake_model import fake_model


def sessions() -> int:
    gc.collect()
    return sum(type(thing) is Session for thing in gc.get_objects())


def test_64_clients_at_once(serve: Serve, demo: VisualRWKV) -> None:
    before = sessions()
    server = serve(demo, slots=8, waiting=24, states=40)
    assert server.chat("Hello", max_tokens=1)[0] == 200
    assert sessions() == before + 8
    threads = threading.active_count()
    found = drive(server.address, MODEL, clients=64, seconds=3.0, max_tokens=12)
    assert found.wrong == []
    assert set(found.statuses) <= {200, 404, 429}  # 404: the states of 64 clients do not fit into 40
    assert found.statuses[200] >= 32 and found.statuses[429] >= 32  # of the first wave alone, half finds no place
    assert len(found.ttft_s) > 0
    left = gauges(server.address)
    assert (left["vrwkv_server_answering"], left["vrwkv_server_waiting"]) == (0, 0)
    assert 0 < left["vrwkv_server_states"] <= 40
    assert left["vrwkv_server_state_bytes"] < 40 * 200_000
    assert left['vrwkv_server_requests_total{status="429"}'] == found.statuses[429]
    assert sessions() == before + 8
    end = time.monotonic() + 20
    while threading.active_count() > threads + 32 and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() <= threads + 32  # the readers of pictures stay: as many as may be inside


def test_nobody_hears_of_the_others(server: Server) -> None:
    """Twelve conversations at the same time say what each says alone."""
    questions = [
        "Where is the circle?",
        "What colour is the circle?",
        "Is it day or night?",
        "How many shapes are there?",
    ]
    asked = [show(q, data_url(frame_at(t))) for q in questions for t in (0.8, 2.4, 4.8)]

    def answer(message: Any) -> str:
        status, found = server.chat(message, store=False)
        assert status == 200
        return str(found["choices"][0]["message"]["content"])

    alone = [answer(message) for message in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        assert list(pool.map(answer, asked)) == alone
    assert len(set(alone)) > 3


def test_answers_share_steps(serve: Serve, tmp_path: Path) -> None:
    with fake_model(tmp_path / "bundle", undo_bytes=0) as model:
        step, rows = model.engine.step, []

        def counted(x: np.ndarray, state: Any) -> np.ndarray:
            rows.append(len(x))
            time.sleep(1e-3)
            return step(x, state)

        model.engine.step = counted  # type: ignore[method-assign]
        server = serve(model, slots=4)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: server.chat(f"Question {n}", max_tokens=100), range(4)))
        assert sum(rows) > 200  # of 396 tokens
