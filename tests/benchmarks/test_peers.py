"""Processes and environments of the peers, and measuring in turns."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.peers import environments, process
from benchmarks.peers.gguf_rwkv7 import MIXES, renamed
from benchmarks.peers.process import Peer
from benchmarks.peers.rounds import ratio, take_turns
from benchmarks.peers.tensors import iterate_tensors, read_tensors
from runtime import VisualRWKV
from runtime.errors import TargetUnavailable


def test_our_worker_answers_and_its_logits_are_the_engines(demo_bundle: Path) -> None:
    with Peer("ours", "benchmarks.peers.ours", demo_bundle, "auto", threads=1) as peer:
        assert peer.ready["read_per_token"] > 1_000_000 and peer.ready["format"] == "int8"
        assert peer("decode", tokens=2) > 0 and peer("feed", tokens=5) > 0
        found = peer("logits", tokens=[5, 6, 7])
        again = peer("logits", tokens=[5, 6, 7])
        assert found == again  # from the beginning, whatever was decoded before
        assert peer.memory_mb()["anon"] > 1
        with pytest.raises(TargetUnavailable, match="no embedding"):
            peer("logits", tokens=[10**6])
        assert peer("decode", tokens=1) > 0  # an error ends the call, not the process
        pid = peer._process.pid
    assert not Path(f"/proc/{pid}").exists()
    with VisualRWKV.load(demo_bundle, threads=1) as model:
        assert np.allclose(model.engine.advance([5, 6, 7], model.engine.new_state()), found, rtol=1e-4, atol=1e-4)


def test_a_peer_that_dies_says_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(TargetUnavailable, match=r"(?s)died.*manifest\.json"):
        Peer("ours", "benchmarks.peers.ours", tmp_path, "auto", threads=1)


def test_turns_are_interleaved_and_the_first_round_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.peers.rounds.REST_S", 0.0)
    order: list[str] = []

    def call(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = take_turns({"a": lambda: call("a"), "b": lambda: call("b")}, rounds=2)
    assert "".join(order) == "ababab"
    assert found == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_a_ratio_is_taken_round_by_round() -> None:
    assert ratio([1.0, 20.0, 300.0], [2.0, 10.0, 100.0]) == 2.0


def test_an_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        (tmp_path / "llama.cpp").mkdir(exist_ok=True)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(environments.subprocess, "run", run)
    python = environments.environment("llama.cpp", tmp_path)
    assert python == tmp_path / "llama.cpp" / "bin" / "python"
    assert commands[0][1:3] == ["-m", "venv"] and commands[1][-2:] == list(environments.REQUIREMENTS["llama.cpp"])
    environments.environment("llama.cpp", tmp_path)
    assert len(commands) == 2
    monkeypatch.setitem(environments.REQUIREMENTS, "llama.cpp", ("llama-cpp-python==9",))
    environments.environment("llama.cpp", tmp_path)
    assert len(commands) == 4  # another version: installed again


def test_an_environment_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(environments.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(TargetUnavailable, match="failed with 1"):
        environments.environment("torch", tmp_path)
    assert not (tmp_path / "torch" / "peers.txt").exists()


def test_llama_cpp_is_compiled_without_amx_and_with_all_else() -> None:
    assert "-DGGML_NATIVE=OFF" in environments.llama_options("flags : avx2 avx512f amx_tile amx_int8\n")
    assert "-DGGML_NATIVE=OFF" not in environments.llama_options("flags : avx2 avx512f\n")


def test_tensors_are_read_without_torch(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a": torch.randn((3, 5), generator=generator).bfloat16(),
        "b": torch.randn((4,), generator=generator),
        "c": torch.randn((2, 1, 2), generator=generator).half(),
    }
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    found = read_tensors(tmp_path / "x.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == np.float32 and np.array_equal(found[name], tensor.float().numpy())
    save_file({"ids": torch.arange(3)}, tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match="ids is I64"):
        read_tensors(tmp_path / "y.safetensors")


@pytest.fixture(scope="module")
def official(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden RWKV-7 language model as .safetensors."""
    path = tmp_path_factory.mktemp("gguf") / "text.safetensors"
    tensors = torch.load(golden / "rwkv7_text.pth", weights_only=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def test_llama_cpp_gets_the_tensors_it_asks_for(official: Path) -> None:
    source = read_tensors(official)
    layers = sum(name.endswith("ffn.key.weight") for name in source)
    found = dict(renamed(iterate_tensors(official)))
    mixing = (*(letter + digit for letter in "wavg" for digit in "012"), "lerp_fused", "k_k", "k_a", "r_k")
    mixing = (*mixing, "key", "value", "receptance", "output", "ln")
    block = {f"time_mix_{name}.weight" for name in mixing if name != "g0"} | {"time_mix_ln.bias"}
    block |= {f"channel_mix_{name}.weight" for name in ("lerp_k", "key", "value")}
    block |= {f"{norm}.{part}" for norm in ("attn_norm", "attn_norm_2") for part in ("weight", "bias")}
    whole = ("token_embd", "token_embd_norm", "output_norm", "output")
    wanted = {f"blk.{i}.{name}" for i in range(layers) for name in block}
    wanted |= {f"{name}.weight" for name in whole} | {"token_embd_norm.bias", "output_norm.bias"}
    assert set(found) == wanted
    assert np.array_equal(found["blk.1.time_mix_w1.weight"], source["blocks.1.att.w1"].T)
    assert np.array_equal(found["blk.0.time_mix_v2.weight"], found["blk.0.time_mix_a2.weight"])  # never read
    assert np.array_equal(found["blk.1.time_mix_r_k.weight"], source["blocks.1.att.r_k"].reshape(-1))
    fused = found["blk.1.time_mix_lerp_fused.weight"]
    assert fused.shape == (6, 1, 1, source["emb.weight"].shape[1])
    for row, letter in enumerate(MIXES):
        assert np.array_equal(fused[row, 0, 0], source[f"blocks.1.att.x_{letter}"].reshape(-1))


def test_another_model_is_not_renamed() -> None:
    with pytest.raises(ValueError, match="no tensor of an RWKV-7"):
        list(renamed(iter([("model.layers.0.mlp.weight", np.zeros(2))])))


def test_what_libraries_print_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os; from benchmarks.peers.worker import serve\nprint('noise')\n"
    code += "serve({'ready': lambda: {}, 'f': lambda x: os.system('echo noise') or x + 1})"
    (tmp_path / "noisy.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr("benchmarks.peers.process.REPOSITORY", f"{process.REPOSITORY}{os.pathsep}{tmp_path}")
    with Peer("noisy", "noisy", threads=1) as peer:
        assert peer("f", x=4) == 5
        assert peer("f", x=5) == 6


def test_commands_end_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise TargetUnavailable("no compiler", hint="install one")

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="error: no compiler\n  try: install one"):
        process.run(fails)
    with pytest.raises(SystemExit) as stopped:
        process.run(interrupted)
    assert stopped.value.code == 130 and "nothing was written" in capsys.readouterr().err
