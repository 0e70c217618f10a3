"""Opening checkpoints, telling what they are, and refusing what they are not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from export.checkpoint import Checkpoint
from export.config import ExportConfig
from export.infer import infer
from export.models import model_sources
from export.variants import version_of
from export.weights import load_weight
from runtime.errors import CheckpointError, ConfigError
from tests.export.torch_models import Tensors, config_of, open_model, read, write

TEXT = ExportConfig()


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def test_golden_models_are_inferred(golden: Path) -> None:
    for name, entry in json.loads((golden / "configs.json").read_text()).items():
        _, spec = open_model(golden / name, config_of(golden, name))
        lm = entry["lm"]
        assert (
            spec.n_layer,
            spec.n_embd,
            spec.n_head,
            spec.head_size,
            spec.dim_ffn,
            spec.vocab_size,
        ) == tuple(lm[key] for key in ("n_layer", "n_embd", "n_head", "head_size", "dim_ffn", "vocab_size"))
        assert spec.ranks == lm["lora"]
        assert spec.version == version_of(entry["family"])
        assert spec.stop_token_id == entry["stop_token_id"]
        assert spec.image_token_id == (None if spec.version == "6.00" else entry.get("image_token_id"))


def test_defaults_without_a_configuration(golden: Path) -> None:
    _, spec = open_model(golden / "rwkv7_text.pth", TEXT)
    assert (spec.version, spec.padding, spec.image_token_id) == ("text", "none", None)
    with pytest.raises(ConfigError, match=r"vision\.dino\.num_heads"):
        open_model(golden / "v700.pth", TEXT)


def test_safetensors_equals_pth(golden: Path, tmp_path: Path) -> None:
    path = tmp_path / "v700.safetensors"
    save_file(read(golden / "v700.pth"), path)
    config = config_of(golden, "v700.pth")
    (pth, spec), (safe, other) = open_model(golden / "v700.pth", config), open_model(path, config)
    assert spec == other
    assert pth.shapes == safe.shapes
    assert pth.dtypes == safe.dtypes
    assert all(torch.equal(pth.tensor(key), safe.tensor(key)) for key in pth.shapes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_float_types_load_to_the_same_weights(golden: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = read(golden / "rwkv7_text.pth")
    _, spec = open_model(golden / "rwkv7_text.pth", TEXT)
    path = write({key: x.to(dtype) for key, x in tensors.items()}, tmp_path / "m.pth")
    with Checkpoint.open(path) as checkpoint:
        assert infer(checkpoint, TEXT) == spec
        for source in model_sources(spec).values():
            weight = load_weight(checkpoint, source)
            assert weight.dtype == torch.float32
            assert weight.is_contiguous()
        key = tensors["blocks.1.att.key.weight"]
        assert torch.equal(
            load_weight(checkpoint, model_sources(spec)["step.blocks.1.att.key"]), key.to(dtype).float().T
        )


def test_sha256_and_progress(golden: Path) -> None:
    import hashlib

    path, seen = golden / "rwkv7_text.pth", []
    digest = Checkpoint.open(path).sha256(lambda done, total: seen.append((done, total)))
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)


def test_one_wrapping_is_undone(golden: Path, tmp_path: Path) -> None:
    tensors = read(golden / "rwkv7_text.pth")
    path = write({"state_dict": tensors, "epoch": 3}, tmp_path / "trained.pth")
    assert Checkpoint.open(path).shapes == Checkpoint.open(golden / "rwkv7_text.pth").shapes


def test_old_torch_format_is_read(golden: Path, tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save(read(golden / "rwkv7_text.pth"), path, _use_new_zipfile_serialization=False)
    assert Checkpoint.open(path).shapes == Checkpoint.open(golden / "rwkv7_text.pth").shapes


def test_split_checkpoint(golden: Path, tmp_path: Path) -> None:
    """The official export script's halves: the language model without prefix, and the rest."""
    tensors = read(golden / "v700.pth")
    language = {key[5:]: x for key, x in tensors.items() if key.startswith("rwkv.")}
    rest = {key: x for key, x in tensors.items() if not key.startswith("rwkv.")}
    files = write(language, tmp_path / "lm.pth"), write(rest, tmp_path / "rest.pth")
    spec = infer(Checkpoint.open(files[0], [files[1]]), config_of(golden, "v700.pth", n_keys=None))
    assert (spec.prefix, spec.version, spec.has_vision) == ("", "7.00", True)
    with pytest.raises(CheckpointError, match="already has"):
        Checkpoint.open(golden / "v700.pth", [files[1]])


BROKEN: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "missing": (lambda golden, tmp: tmp / "none.pth", "does not exist"),
    "directory": (lambda golden, tmp: tmp, "is a directory"),
    "empty": (lambda golden, tmp: _bytes(tmp, b""), "is empty"),
    "text": (lambda golden, tmp: _bytes(tmp, b"<html>not found</html>"), "not a checkpoint"),
    "lfs": (
        lambda golden, tmp: _bytes(tmp, b"version https://git-lfs.example/spec/v1\noid sha256:0\n"),
        "LFS pointer",
    ),
    "truncated": (
        lambda golden, tmp: _bytes(tmp, (golden / "v700.pth").read_bytes()[:-500]),
        "truncated, damaged",
    ),
    "beheaded": (
        lambda golden, tmp: _bytes(tmp, (golden / "v700.pth").read_bytes()[500:]),
        "truncated, damaged",
    ),
    "half safetensors": (lambda golden, tmp: _half_safetensors(tmp), "truncated, damaged"),
    "code": (lambda golden, tmp: write({"a": _Code()}, tmp / "m.pth"), "code besides tensors.*not executed"),
    "whole module": (lambda golden, tmp: write(torch.nn.Linear(2, 2), tmp / "m.pth"), "code besides tensors"),
    "list": (lambda golden, tmp: write([1, 2], tmp / "m.pth"), "holds a list"),
    "no tensors": (lambda golden, tmp: write({}, tmp / "m.pth"), "an empty state dict"),
    "values": (lambda golden, tmp: write({"a": torch.ones(2), "b": 3}, tmp / "m.pth"), r"'b' \(int\)"),
    "optimiser": (
        lambda golden, tmp: write({"state": {}, "param_groups": []}, tmp / "m.pth"),
        "an optimiser",
    ),
    "int weights": (lambda golden, tmp: _recast(golden, tmp, torch.int8), "unsupported type: .*int8"),
    "float64": (lambda golden, tmp: _recast(golden, tmp, torch.float64), "unsupported type: .*float64"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused(golden: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, message = BROKEN[case]
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(make(golden, tmp_path))
    assert not (tmp_path / "executed").exists()


WRONG: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "v6.23": (lambda t: t.update({"cross_blocks.0.att.query.weight": torch.ones(1)}), "v6.23"),
    "mixed": (lambda t: t.update({"blocks.0.att.time_maa_w1": torch.ones(1)}), "time_faaaa is missing"),
    "rwkv4": (
        lambda t: (t.pop("blocks.0.att.r_k"), t.update({"blocks.0.att.time_mix_k": torch.ones(1)})),
        "RWKV-5 or",
    ),
    "other": (lambda t: t.pop("blocks.0.att.r_k"), "no RWKV model known here"),
    "missing": (
        lambda t: (t.pop("blocks.1.att.w1"), t.pop("head.weight")),
        "2 tensors are missing: blocks.1.att.w1",
    ),
    "extra": (
        lambda t: t.update({"blocks.1.att.time_state": torch.ones(1)}),
        "1 are unknown: blocks.1.att.time_state",
    ),
    "shape": (
        lambda t: t.update({"head.weight": torch.ones(5, 64)}),
        r"head.weight \[5, 64\] instead of \[512, 64\]",
    ),
    "transposed": (
        lambda t: t.update({"blocks.2.ffn.key.weight": torch.ones(64, 256)}),
        "1 have a wrong shape",
    ),
    "gap": (lambda t: t.update({"blocks.1000000.ln1.weight": torch.ones(64)}), "without number 3"),
    "heads": (lambda t: t.update({"blocks.0.att.r_k": torch.ones(3, 7)}), "3 heads of 7 channels"),
    "v7.10": (lambda t: t.update({"vrwkv.a": torch.ones(1)}), "v7.10"),
    "projector only": (lambda t: t.update({"proj.weight": torch.ones(64, 96)}), "no vision tower"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_models_are_refused(golden: Path, tmp_path: Path, case: str) -> None:
    tensors = read(golden / "rwkv7_text.pth")
    change, message = WRONG[case]
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        open_model(write(tensors, tmp_path / "m.pth"), TEXT)


def test_dead_tensors_are_tolerated(golden: Path, tmp_path: Path) -> None:
    """Other trainers leave unused v0 v1 v2 in block 0."""
    tensors = read(golden / "rwkv7_text.pth")
    tensors.update({f"blocks.0.att.v{i}": tensors[f"blocks.1.att.v{i}"] for i in range(3)})
    _, spec = open_model(write(tensors, tmp_path / "m.pth"), TEXT)
    assert spec.n_layer == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_is_found_when_loaded(golden: Path, tmp_path: Path, value: float) -> None:
    tensors = read(golden / "rwkv7_text.pth")
    tensors["blocks.1.ffn.key.weight"][3, 4] = value
    checkpoint, spec = open_model(write(tensors, tmp_path / "m.pth"), TEXT)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.ffn\.key\.weight holds NaN or Inf"):
        load_weight(checkpoint, model_sources(spec)["step.blocks.1.ffn.key"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"vesion": "7.00"}, "unknown key vesion"),
        ({"version": "7.05"}, "version is '7.05'"),
        ({"padding": "left8"}, "padding is 'left8'"),
        ({"stop_token_id": "261"}, "stop_token_id is '261'"),
        ({"stop_token_id": True}, "stop_token_id is 'True'"),
        ({"num_token_per_image": 0}, "num_token_per_image is '0'"),
        ({"vision": {"type": "resnet"}}, "vision.type is 'resnet'"),
        ({"vision": {"type": "features", "width": -1}}, "vision.width is '-1'"),
        ({"vision": {"type": "sam+dino+siglip", "dino": {"heads": 3}}}, r"unknown key vision\.dino\.heads"),
        ({"lm": {"n_layers": 3}}, r"unknown key lm\.n_layers"),
        ([], "the configuration is"),
    ],
)
def test_wrong_configurations_are_refused(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExportConfig.from_dict(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"lm": {"n_layer": 4}}, r"lm\.n_layer is 4 .* 3"),
        ({"lm": {"lora": {"g": 97}}}, r"lm\.lora\.g is 97"),
        ({"n_keys": 5}, "n_keys is 5"),
        ({"stored_dtype": "float16"}, "stored_dtype is 'float16'"),
        ({"family": "v6.0"}, "has no projector"),
        ({"family": "RWKV-4"}, "family is 'RWKV-4'"),
        ({"version": "7.00"}, "has no projector"),
        ({"vision": {"type": "features"}}, "has no projector"),
        ({"image_token_id": 5}, "text model"),
        ({"stop_token_id": 512}, "stop_token_id is 512"),
    ],
)
def test_configuration_is_held_against_the_checkpoint(golden: Path, data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_model(golden / "rwkv7_text.pth", ExportConfig.from_dict(data))


def test_configuration_file(golden: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"version": "7.02", "vocabulary": "v.txt"}))
    assert ExportConfig.load(path, "m.pth").vocabulary == tmp_path / "v.txt"
    with pytest.raises(ConfigError, match=r"no entry for other\.pth"):
        ExportConfig.load(golden / "configs.json", "other.pth")
    path.write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        ExportConfig.load(path, "m.pth")
    with pytest.raises(ConfigError, match="cannot be read"):
        ExportConfig.load(tmp_path / "none.json", "m.pth")


def _bytes(folder: Path, content: bytes) -> Path:
    path = folder / "m.pth"
    path.write_bytes(content)
    return path


def _half_safetensors(folder: Path) -> Path:
    path = folder / "m.safetensors"
    save_file({"a": torch.ones(64)}, path)
    path.write_bytes(path.read_bytes()[:-8])
    return path


def _recast(golden: Path, folder: Path, dtype: torch.dtype) -> Path:
    return write({key: x.to(dtype) for key, x in read(golden / "rwkv7_text.pth").items()}, folder / "m.pth")
