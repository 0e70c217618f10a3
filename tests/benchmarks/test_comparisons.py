"""The comparisons' own arithmetic, with engines that are none; and a few steps with our real one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import charts, contention, decode_peers, official_decoding
from benchmarks.peers import over_context as over
from runtime.errors import ParityError, TargetUnavailable


class FakePeer:
    """An engine with a given time per token, which may grow with its cache."""

    def __init__(self, name: str, ms: float, *, ms_per_context: float = 0.0, logits: Sequence[float] = (1, 2)) -> None:
        self.name, self.threads, self.calls, self.context = name, 1, [], 0
        self._ms, self._grows, self._logits = ms, ms_per_context, list(logits)
        before = {"rss": 50.0, "anon": 20.0}
        self.ready = {"engine": name, "format": "x", "read_per_token": 1_000_000, "before_mb": before}

    def __call__(self, operation: str, **args: Any) -> Any:
        self.calls.append((operation, *args.values()))
        if operation == "context":
            self.context = args["length"]
            return {"weights": 1_000_000, "cache": 100 * self.context}
        if operation == "logits":
            return self._logits
        return args["tokens"] * (self._ms + self._grows * self.context) / 1e3

    def memory_mb(self) -> dict[str, float]:
        return {"rss": 150.0 + self.context, "anon": 100.0}

    def __enter__(self) -> FakePeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.append(("closed",))


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.peers.rounds.REST_S", 0.0)
    monkeypatch.setattr(over, "read_bandwidth", lambda *_: 2.0)
    monkeypatch.setattr(decode_peers, "read_bandwidth", lambda *_: 2.0)


@pytest.fixture
def compared() -> dict[str, Any]:
    """Ours at 2 ms, a rival that takes 2 ms and 1 ms more for every 10 tokens of context."""
    ours, rival = FakePeer("ours int8", 2.0), FakePeer("llama", 2.0, ms_per_context=0.1)
    found = over.over_context([lambda: ours], [lambda: rival], (100, 5000), threads=1, rounds=2, tokens=3)  # type: ignore[list-item, return-value]
    assert [call for call in ours.calls if call[0] == "feed"] == [("feed", 100), ("feed", 4096), ("feed", 804)]
    assert [call for call in rival.calls if call[0] == "context"] == [("context", 100), ("context", 5000)]
    assert ours.calls[-1] == rival.calls[-1] == ("closed",)
    return {**found, "size": "0.1B", "threads": 1}


def test_rows_over_context(compared: dict[str, Any]) -> None:
    rows = {(row["name"], row["context"]): row for row in compared["rows"]}
    assert rows["llama", 5000]["ms_per_token"] == pytest.approx(502)
    assert rows["ours int8", 5000]["times_faster"]["llama"] == pytest.approx(251)
    assert rows["ours int8", 100]["times_faster"]["llama"] == pytest.approx(6)
    assert rows["llama", 5000]["read_per_token_mb"] == pytest.approx(1.5)
    assert rows["llama", 5000]["least_ms"] == pytest.approx(0.75)  # 1.5 MB at 2 GB/s
    assert rows["llama", 5000]["above_start_mb"] == 5100 and rows["ours int8", 5000]["above_start_mb"] == 100


def test_what_is_said_at_the_longest_context(compared: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = over.verdicts(compared["rows"], 5000)
    assert "251.00x as fast as llama" in line and "98 % less memory" in line and "(0.38x its limit)" in line
    over.show(compared)
    assert line in capsys.readouterr().out


def test_without_feeding_ours_decodes_from_the_start() -> None:
    ours = FakePeer("ours", 1.0)
    over.over_context([lambda: ours], [], (10, 20), threads=1, rounds=1, tokens=1, feed=False)  # type: ignore[list-item, return-value]
    assert not [call for call in ours.calls if call[0] == "feed"]


def test_the_chart_is_drawn_again_from_json(compared: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(compared), encoding="utf-8")
    charts.main([str(tmp_path / "a.json"), str(tmp_path / "new" / "a.png")])
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")


def test_ratios_are_of_the_same_number_of_bits(capsys: pytest.CaptureFixture[str]) -> None:
    names = {"ours int8 cpu": 1.0, "ours int4 cpu": 0.5, "llama.cpp q8_0": 3.0, "llama.cpp q4_0": 2.0}
    peers: Any = [FakePeer(name, ms) for name, ms in names.items()]
    found = decode_peers.measure(peers, 1, rounds=2, tokens=4, prefill=8)
    assert found["ratios"] == {
        "decode ours int8 cpu / llama.cpp q8_0": pytest.approx(3),
        "decode ours int4 cpu / llama.cpp q4_0": pytest.approx(4),
        "prefill ours int8 cpu / llama.cpp q8_0": pytest.approx(3),
        "prefill ours int4 cpu / llama.cpp q4_0": pytest.approx(4),
    }
    assert found["rows"][0]["percent_of_bandwidth"] == pytest.approx(50)  # 1 MB in 1 ms, of 2 GB/s
    decode_peers.show(found)
    assert "decode ours int8 cpu / llama.cpp q8_0: 3.00" in capsys.readouterr().out


def test_a_peer_that_computes_something_else_is_refused() -> None:
    peers: Any = [FakePeer("ours int8 cpu", 1.0, logits=(1, 2)), FakePeer("llama.cpp q8_0", 1.0, logits=(1.1, 2))]
    assert decode_peers.compare_logits(peers, "ours int8")["llama.cpp q8_0"] == pytest.approx(0.1 / 5**0.5)
    for wrong in ((2, 1), (float("nan"), 2)):
        peers[1] = FakePeer("llama.cpp q8_0", 1.0, logits=wrong)
        with pytest.raises(ParityError, match="not the same model"):
            decode_peers.compare_logits(peers, "ours int8")


def test_devices_of_ours() -> None:
    assert decode_peers.ours_devices("cpu") == ["cpu"]
    assert decode_peers.ours_devices(None)


def test_a_device_that_is_not_there_is_left_out_of_several(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(name: str, module: str, bundle: Path, device: str, threads: int) -> FakePeer:
        if device == "native":
            raise TargetUnavailable("no compiler was there")
        return FakePeer(name, 1.0)

    monkeypatch.setattr(decode_peers, "Peer", start)
    (peer,) = decode_peers.open_ours(Path("x"), "ours int8", ["native", "onnxruntime"], 1)
    assert peer.name == "ours int8 onnxruntime"
    assert "without native: no compiler was there" in capsys.readouterr().err
    with pytest.raises(TargetUnavailable):
        decode_peers.open_ours(Path("x"), "ours int8", ["native"], 1)


def test_neighbours_run_only_when_they_shall() -> None:
    def state(pid: int) -> str:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]

    def wait_for(pids: Sequence[int], wanted: str) -> bool:
        return any(all(state(pid) in wanted for pid in pids) for _ in range(100_000))

    before = children()
    with contention.neighbours(2) as run:
        mine = sorted(children() - before)
        assert len(mine) == 2
        assert wait_for(mine, "T")
        run(True)
        assert wait_for(mine, "RSD")
        run(False)
        assert wait_for(mine, "T")
    assert not any(Path(f"/proc/{pid}").exists() for pid in mine)


def children() -> set[int]:
    """Processes that this one started."""
    listed = Path("/proc/self/task").glob("*/children")
    return {int(pid) for file in listed for pid in file.read_text(encoding="utf-8").split()}


def test_contention_measures_both_ways_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    peer: Any = FakePeer("ours", 1.0)
    rows = contention.measure([peer], 1, rounds=2, tokens=5)
    assert rows == [
        {
            "name": "ours",
            "threads": 1,
            "quiet_tokens_s": pytest.approx(1000),
            "busy_tokens_s": pytest.approx(1000),
            "busy_over_quiet": pytest.approx(1),
        }
    ]
    assert len(peer.calls) == 6


def test_official_decoding_reads_the_whole_sequence_again(
    monkeypatch: pytest.MonkeyPatch, demo_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    official_decoding.main([str(demo_bundle), "--contexts", "3,20", "--rounds", "1"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["context"] for row in result["rows"]] == [3, 20]
    assert all(row["times"] > 0 for row in result["rows"])
    fake = FakePeer("ours", 1.0)
    monkeypatch.setattr(official_decoding, "Peer", lambda *_, **__: fake)
    rows = official_decoding.measure(demo_bundle, (9,), 1, 1, "auto")
    assert ("rerun", 10) in fake.calls  # the token's own position included
    assert rows == [
        {"context": 9, "rerun_ms": pytest.approx(10), "step_ms": pytest.approx(1), "times": pytest.approx(10)}
    ]
