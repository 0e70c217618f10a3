"""Official state-tuning files become personas: the same numbers in the bundle's axes, swapped with every session."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from export.persona import convert, main
from export.warm import bake
from runtime import VisualRWKV
from runtime.bundle import Bundle
from runtime.errors import CheckpointError, StateError
from tests.runtime.fake_bundle import write_fake_bundle
from tests.runtime.fake_model import bits, say

LAYERS, HEADS, SIZE = 4, 2, 64  # of the demo model


def tuned(seed: int = 0, layers: int = LAYERS, size: int = SIZE) -> dict[str, torch.Tensor]:
    """A state-tuning file's content, [head, value, key] per layer."""
    generator = torch.Generator().manual_seed(seed)
    return {f"blocks.{i}.att.time_state": torch.randn(HEADS, size, size, generator=generator) for i in range(layers)}


@pytest.mark.parametrize("kind", [".pth", ".safetensors"])
def test_the_matrices_are_transposed_to_key_value(demo_bundle: Path, tmp_path: Path, kind: str) -> None:
    source, out, content = tmp_path / f"tuned{kind}", tmp_path / "persona.safetensors", tuned()
    save_file(content, source) if kind == ".safetensors" else torch.save(content, source)
    assert main([str(source), str(out), "--bundle", str(demo_bundle)]) == 0
    with VisualRWKV.load(demo_bundle, threads=1) as model:
        arrays = model.session(persona=out).snapshot().state.arrays
        assert arrays["wkv"].shape == (LAYERS, 1, HEADS, SIZE, SIZE)
        for layer in range(LAYERS):
            stored = content[f"blocks.{layer}.att.time_state"].numpy()
            for key, value in ((0, 1), (3, 60), (63, 0)):
                np.testing.assert_array_equal(arrays["wkv"][layer, 0, :, key, value], stored[:, value, key])
        assert not arrays["att_shift"].any() and not arrays["ffn_shift"].any()


def test_personas_are_swapped_without_a_rebuild(demo_bundle: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        torch.save({key: value.bfloat16() for key, value in tuned(seed).items()}, tmp_path / f"{name}.pth")
        convert(tmp_path / f"{name}.pth", tmp_path / name, Bundle.open(demo_bundle))
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with VisualRWKV.load(demo_bundle, threads=1) as model:
        states = []
        for persona in (None, "a", "b", None, "a", "b"):
            session = model.session(persona=tmp_path / persona if persona else None)
            begin = bits(session)
            session.see(picture)
            say(session, "Is it day or night?")
            states.append(bits(session))
            session.reset()
            assert bits(session) == begin
            assert session.tokens == 0
        assert states[:3] == states[3:]
        assert states[0] != states[1] != states[2] != states[0]
        session = model.session(persona=tmp_path / "a")
        session.see(picture)
        session.save(tmp_path / "saved")
        again = model.session(tmp_path / "saved", persona=tmp_path / "a")
        assert say(again, "How many?") == say(session, "How many?")
        again.reset()
        session.reset()
        assert bits(again) == bits(session)


def test_a_persona_in_front_of_a_baked_prompt(demo_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(demo_bundle, tmp_path / "warm")
    bundle = bake(Bundle.open(tmp_path / "warm"), "Be brief.", threads=1)
    torch.save(tuned(), tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "a", bundle)
    with VisualRWKV.load(tmp_path / "warm", threads=1) as model:
        session = model.session(persona=tmp_path / "a")
        *_, last = session.ask("How many?")
        assert bundle.manifest.warm is not None and last.stats is not None
        question = len(model.tokenizer.encode("User: How many?\n\n")) + len(model.tokenizer.encode("Assistant:"))
        assert last.stats.prompt_tokens == question + bundle.manifest.warm.tokens


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (tuned(layers=3), "3 layers"),
        (tuned(size=32), "32"),
        ({"emb.weight": torch.zeros(3, 3)}, "0 layers"),
        ({**tuned(), "blocks.2.att.time_state": torch.full((HEADS, SIZE, SIZE), torch.nan)}, "not finite"),
        ({**tuned(), "blocks.4.att.time_state": torch.zeros(HEADS, SIZE, SIZE)}, "5 layers"),
    ],
)
def test_files_of_another_model_are_refused(
    demo_bundle: Path, tmp_path: Path, content: dict[str, torch.Tensor], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(content, tmp_path / "tuned.pth")
    with pytest.raises(CheckpointError, match=text):
        convert(tmp_path / "tuned.pth", tmp_path / "out", Bundle.open(demo_bundle))
    assert main([str(tmp_path / "tuned.pth"), str(tmp_path / "out"), "--bundle", str(demo_bundle)]) == 1
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class Sly:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def test_nothing_in_a_file_is_executed(demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sly.pth").write_bytes(pickle.dumps({"blocks.0.att.time_state": Sly()}))
    with pytest.raises(CheckpointError):
        convert(tmp_path / "sly.pth", tmp_path / "out", Bundle.open(demo_bundle))
    assert "executed" not in capsys.readouterr().out


def test_a_persona_must_fit(demo_bundle: Path, tmp_path: Path) -> None:
    torch.save(tuned(), tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "a", Bundle.open(demo_bundle))
    with pytest.raises(CheckpointError, match="no recurrent matrices"):
        convert(tmp_path / "a.pth", tmp_path / "b", Bundle.open(write_fake_bundle(tmp_path / "fake")))
    with VisualRWKV.load(demo_bundle, threads=1) as model:
        model.session().save(tmp_path / "session")
        for path, text in (
            (tmp_path / "session", "'visualrwkv-session' file"),
            (tmp_path / "a.pth", "not a state file"),
        ):
            with pytest.raises(StateError, match=text):
                model.session(persona=path)
        with pytest.raises(StateError, match="'visualrwkv-persona' file"):
            model.session(tmp_path / "a")
