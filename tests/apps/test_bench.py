"""`python -m apps.bench`: what it measures, what it refuses, and what it says."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.bench import __main__ as command
from apps.bench import parity
from apps.bench.measure import Plan, measure, read_per_token
from apps.bench.report import compare, figures, read_earlier, table
from apps.bench.stages import STAGES, FirstToken
from runtime import VisualRWKV
from runtime.engine import Encoded, Engine
from runtime.errors import ConfigError, InputError, VisualRWKVError

GREEN = {"backend": "b", "rows": [{"what": "cut into pieces", "error": 1e-6, "limit": 0.05}], "green": True}
RED = {"backend": "b", "rows": [{"what": "against onnxruntime", "error": 0.7, "limit": 0.05}], "green": False}
SMALL = Plan(contexts=(0, 20), rounds=2, tokens=2, bandwidth_s=0.0, prefill=8)


@pytest.fixture(scope="module")
def measured(demo_bundle: Path) -> dict[str, Any]:
    """The demo model, measured briefly."""
    return measure(demo_bundle, SMALL, threads=1)


def test_every_stage_and_context_has_a_figure(measured: dict[str, Any]) -> None:
    stages = measured["first_token_ms"]
    assert set(stages) == {*STAGES, "total"}
    assert all(0 <= stages[name]["low"] <= stages[name]["median"] <= stages[name]["high"] for name in stages)
    assert set(measured["decode_tokens_s"]) == {"0", "20"}
    assert measured["first_token_positions"]["image"] == 16 and measured["first_token_positions"]["prompt"] > 0
    assert measured["memory_mb"]["rss"] > measured["memory_mb"]["anon"] > 0
    assert json.loads(json.dumps(measured)) == measured


def test_the_limit_follows_from_bytes_and_bandwidth(measured: dict[str, Any], demo_bundle: Path) -> None:
    read = measured["read_per_token_bytes"]
    manifest = json.loads((demo_bundle / "manifest.json").read_text(encoding="utf-8"))
    assert 0 < read["weights"] <= manifest["budget"]["weights"]  # the native step leaves out what is multiplied by 0
    with VisualRWKV.load(demo_bundle, "onnxruntime", threads=1) as model:
        dense = read_per_token(model, model.engine.new_state())
    assert dense["weights"] == manifest["budget"]["weights"]
    assert read["state"] == manifest["budget"]["state_per_session"] / 2  # both buffer sets are declared, one is read
    wanted = measured["bandwidth_gb_s"]["median"] * 1e9 / read["total"]
    assert measured["limit_tokens_s"] == pytest.approx(wanted)
    share = measured["decode_tokens_s"]["20"]["median"] / wanted
    assert measured["percent_of_limit"]["20"] == pytest.approx(100 * share)


def test_stages_sum_to_the_whole_and_each_holds_what_is_slow(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, advance = Engine.encode_with_features, Engine.advance

    def slow_encode(self: Engine, views: Mapping[str, np.ndarray]) -> Encoded:
        time.sleep(0.3)
        return encode(self, views)

    def slow_advance(self: Engine, *args: Any) -> np.ndarray:
        time.sleep(0.2)
        return advance(self, *args)

    with VisualRWKV.load(demo_bundle, threads=1) as model:
        first = FirstToken(model)
        monkeypatch.setattr(Engine, "encode_with_features", slow_encode)
        monkeypatch.setattr(Engine, "advance", slow_advance)
        found = first()
        assert sum(found[name] for name in STAGES) == pytest.approx(found["total"])
        assert found["vision"] >= 300
        assert found["prefill"] >= 400  # the picture, and the question behind it
        assert first()["vision"] >= 300  # the next frame is another: no cache answers


def test_what_people_read(measured: dict[str, Any]) -> None:
    text = table(measured)
    for words in ("preprocess", "vision", "prefill of 8", "decode at 20", "limit of decoding", "resident memory"):
        assert words in text
    told = {**measured, "energy": {"source": "RAPL", "joules_per_token": {"median": 0.5, "low": 0.4, "high": 0.6}}}
    assert "0.5000" in table(told) and "RAPL" in table(told)


def test_a_measurement_against_itself_is_all_ones(measured: dict[str, Any]) -> None:
    text, ratios = compare(measured, measured)
    assert set(ratios) == set(figures(measured)) and set(ratios.values()) == {1.0}
    assert "CAUTION" not in text and "better" not in text and "worse" not in text


def test_slower_is_called_worse_and_other_machines_are_named(measured: dict[str, Any]) -> None:
    then = json.loads(json.dumps(measured))
    then["decode_tokens_s"]["20"]["median"] *= 2
    then["first_token_ms"]["total"]["median"] *= 2
    text, ratios = compare(measured, then)
    lines = {line.split(",")[0]: line for line in text.splitlines()}
    assert ratios["decode at 20, tokens/s"] == 0.5 and lines["decode at 20"].endswith("worse")
    assert ratios["first token, ms"] == 0.5 and lines["first token"].endswith("better")
    then["machine"]["cpu"], then["threads"] = "another", 7
    text, _ = compare(measured, then)
    assert text.count("CAUTION") == 2


def test_the_command_line(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "check_apart", lambda *_: GREEN)
    json_file, chart = tmp_path / "a.json", tmp_path / "a.png"
    options = [str(demo_bundle), "--threads", "1", "--contexts", "0,20", "--rounds", "1", "--tokens", "2"]
    assert command.main([*options, "--json", str(json_file), "--plot", str(chart)]) == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1]) == json.loads(json_file.read_text(encoding="utf-8"))
    assert chart.read_bytes().startswith(b"\x89PNG")
    printed = tmp_path / "log.txt"
    printed.write_text(out, encoding="utf-8")
    assert read_earlier(printed) == read_earlier(json_file)
    assert command.main([*options, "--compare", str(printed)]) == 0
    out = capsys.readouterr().out
    assert "now/then" in out and "decode at 20, tokens/s" in json.loads(out.splitlines()[-1])["ratios"]


def test_red_parity_prints_no_figure(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "check_apart", lambda *_: RED)
    monkeypatch.setattr(command, "measure", lambda *_, **__: pytest.fail("measured something wrong"))
    assert command.main([str(demo_bundle)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "against onnxruntime: error 7.0e-01, limit 5e-02" in err


@pytest.mark.parametrize(
    ("wrong", "green"), [(lambda x: x, True), (lambda x: x + x.std(), False), (lambda x: x * np.nan, False)]
)
def test_parity_compares(wrong: Any, green: bool, demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that is off in one call, but not when the call is cut."""
    honest = parity.logits_of

    def logits_of(path: Path, device: str, threads: int | None, cuts: tuple[int, ...]) -> tuple[str, np.ndarray]:
        name, rows = honest(path, device, threads, cuts)
        return name, wrong(rows) if len(cuts) == 1 else rows

    monkeypatch.setattr(parity, "logits_of", logits_of)
    found = parity.check(demo_bundle, "auto", 1)
    assert found["green"] is green
    assert (found["rows"][0]["error"] <= 0.05) is green


def test_parity_in_a_process_of_its_own(demo_bundle: Path, tmp_path: Path) -> None:
    assert parity.check_apart(demo_bundle, "auto", 1)["green"]
    with pytest.raises(VisualRWKVError, match=r"manifest\.json"):
        parity.check_apart(tmp_path, "auto", 1)


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--rounds", "0"], 2, "rounds is 0"),
        (["--contexts=-1"], 2, "contexts are [-1]"),
        (["--json", "no/such/folder/x.json"], 1, "there is no folder"),
        (["--compare", "no-such-file.json"], 1, "is no measurement"),
    ],
)
def test_wrong_commands_say_so_before_anything_is_measured(
    options: list[str],
    status: int,
    said: str,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "check_apart", lambda *_: pytest.fail("went on"))
    assert command.main([str(bundle), *options]) == status
    assert said in capsys.readouterr().err


def test_a_file_that_is_no_measurement(tmp_path: Path) -> None:
    for text in ("", "{}", '{"first_token_ms": 3}', "[1]", "not JSON"):
        file = tmp_path / "x.json"
        file.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match="is no measurement"):
            read_earlier(file)


def test_plans() -> None:
    with pytest.raises(ConfigError):
        Plan(contexts=())
    with pytest.raises(ConfigError):
        Plan(tokens=0)
