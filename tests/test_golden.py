"""Official outputs, through the exported bundle and the runtime: `pytest tests/test_golden.py --golden DIR`.

Every `rwkv7_text*` and `v700*` array file of the folder is exported with its checkpoint (the checkpoint whose name
begins its name) and the sizes its arrays tell, in float32, and then fed both in one segment and token by token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from export.config import ExportConfig
from runtime.backends.ort import OrtBackend
from runtime.bundle import Bundle
from runtime.engine import Engine
from runtime.image import load_image, prepare
from runtime.prompt import ImageSlot, Turn, conversation_pieces, tokenise
from runtime.spec import PromptSpec, ViewSpec
from runtime.state import State
from runtime.tokenizer import Tokenizer

FAMILIES = ("rwkv7_text", "v700")
LOGITS = STATE = FEATURES = 1e-4  # absolute; the one tolerance of this file (reference: golden/README.md)
PIXELS = 1e-5
SLOTS = ("att_shift", "ffn_shift", "wkv")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder: Path = metafunc.config.getoption("golden")
    if "arrays" in metafunc.fixturenames:
        files = sorted(path for family in FAMILIES for path in folder.glob(f"{family}*.npz"))
        metafunc.parametrize("arrays", files, ids=[path.stem for path in files])
    if "picture" in metafunc.fixturenames:
        files = sorted(folder.glob("pre_*.npz"))
        metafunc.parametrize("picture", files, ids=[path.stem for path in files])


def test_the_folder_is_not_empty(golden: Path) -> None:
    for family in FAMILIES:
        assert list(golden.glob(f"{family}*.npz")), f"no {family}*.npz in {golden}"


class Case:
    """One array file with its exported model."""

    def __init__(self, arrays: Path, golden: Path, export: Callable[..., Path]) -> None:
        self.data = dict(np.load(arrays))
        self.checkpoint = max(
            (path for path in golden.glob("*.pth") if arrays.stem.startswith(path.stem)),
            key=lambda path: len(path.stem),
        )
        options = json.loads((golden / "configs.json").read_text(encoding="utf-8"))[self.checkpoint.name]
        if "num_token_per_image" in self.data:
            options["num_token_per_image"] = int(self.data["num_token_per_image"])
        if "tower_features" in self.data:
            _, cells, width = self.data["tower_features"].shape
            options["vision"] = {"type": "features", "cells": cells, "width": width}
        config = ExportConfig.from_dict(options)
        self.engine = Engine(Bundle.open(export(self.checkpoint, config=config)), OrtBackend(threads=2))
        self.ids = [int(i) for i in self.data["input_ids"].reshape(-1)]
        self.images = self._images()
        self.embeddings = self._prompt()

    def _images(self) -> np.ndarray | None:
        vision = self.engine.manifest.vision
        if "image_features" not in self.data or vision is None:
            return None
        pixels = {key.removeprefix("pixel_"): value for key, value in self.data.items() if key.startswith("pixel_")}
        features = {"features": self.data["tower_features"]} if "tower_features" in self.data else pixels
        return self.engine.encode({name: array.astype(np.float32) for name, array in features.items()})

    def _prompt(self) -> np.ndarray:
        """Embeddings of the whole prompt [T, C], images in place of their ids."""
        rows = self.engine.embed(self.ids)
        if self.images is not None:
            image_id = int(self.data["image_token_id"])
            places = [i for i, token in enumerate(self.ids) if token == image_id]
            rows[places] = self.images.reshape(-1, rows.shape[1])
        return rows

    def pads(self, count: int) -> np.ndarray:
        return self.engine.embed([self.engine.manifest.tokenizer.pad_id] * count)


@pytest.fixture
def case(arrays: Path, golden: Path, export: Callable[..., Path]) -> Iterator[Case]:
    case = Case(arrays, golden, export)
    yield case
    case.engine.close()


def check_states(case: Case, state: State, suffix: str) -> None:
    for slot in SLOTS:
        key = f"state_{slot}{suffix}"
        if key in case.data:
            np.testing.assert_allclose(state.array(slot)[:, 0], case.data[key], atol=STATE, rtol=0, err_msg=key)


def check_stepping(case: Case, embeddings: np.ndarray, logits: np.ndarray, skip: int = 0) -> State:
    """Feed one embedding at a time; every position's logits must match."""
    state = case.engine.new_state()
    for position, row in enumerate(embeddings):
        found = case.engine.advance(row[None], state)
        if position >= skip:
            wanted = logits[position - skip]
            np.testing.assert_allclose(found, wanted, atol=LOGITS, rtol=0, err_msg=f"position {position}")
            assert found.argmax() == wanted.argmax()
    return state


def check_prefill(case: Case, embeddings: np.ndarray, wanted: np.ndarray) -> State:
    state = case.engine.new_state()
    found = case.engine.advance(embeddings, state)
    np.testing.assert_allclose(found, wanted, atol=LOGITS, rtol=0)
    return state


def check_greedy(case: Case, embeddings: np.ndarray, tokens: np.ndarray, logits: np.ndarray) -> None:
    state = case.engine.new_state()
    found = case.engine.advance(embeddings, state)
    for token, wanted in zip(tokens.reshape(-1), logits, strict=True):
        np.testing.assert_allclose(found, wanted, atol=LOGITS, rtol=0)
        assert int(found.argmax()) == int(token)
        found = case.engine.advance([int(token)], state)


def test_image_embeddings(case: Case) -> None:
    if case.images is None:
        assert "image_features" not in case.data
        return
    weights = torch.load(case.checkpoint, weights_only=True)
    norm = [weights[f"rwkv.blocks.0.ln0.{name}"].float() for name in ("weight", "bias")]
    official = torch.from_numpy(case.data["image_features"].astype(np.float32))
    wanted = torch.nn.functional.layer_norm(official, official.shape[-1:], *norm)
    np.testing.assert_allclose(case.images, wanted.numpy().reshape(case.images.shape), atol=FEATURES, rtol=0)


def test_without_padding(case: Case) -> None:
    data = case.data
    suffix = "_nopad" if "logits_nopad" in data else ""
    logits = data[f"logits{suffix}"]
    check_states(case, check_stepping(case, case.embeddings, logits), suffix)
    check_states(case, check_prefill(case, case.embeddings, logits[-1]), suffix)
    check_greedy(case, case.embeddings, data[f"gen_tokens{suffix}"], data[f"gen_logits{suffix}"])


def test_padded_once(case: Case) -> None:
    data = case.data
    logits = data["logits"] if "num_pad_left" in data else data["logits_leftpad16"]
    count = -len(case.ids) % 16
    if "num_pad_left" in data:
        assert count == int(data["num_pad_left"])
        assert case.engine.manifest.tokenizer.pad_id == int(data["pad_token_id"])
    padded = np.concatenate([case.pads(count), case.embeddings])
    check_stepping(case, padded, logits, skip=count)
    check_prefill(case, padded, logits[-1])
    if "gen_tokens_fixedpad" in data:
        check_greedy(case, padded, data["gen_tokens_fixedpad"], data["gen_logits_fixedpad"])


def test_official_generate(case: Case) -> None:
    """The official loop runs the whole, freshly padded sequence for every token; so can the engine."""
    data = case.data
    rows = case.embeddings
    if "num_pad_left" not in data:
        return check_greedy(case, rows, data["gen_tokens"], data["gen_logits"])
    for token, wanted in zip(data["gen_tokens"].reshape(-1), data["gen_logits"], strict=True):
        padded = np.concatenate([case.pads(-len(rows) % 16), rows])
        found = case.engine.advance(padded, case.engine.new_state())
        np.testing.assert_allclose(found, wanted, atol=LOGITS, rtol=0)
        assert int(found.argmax()) == int(token)
        rows = np.concatenate([rows, case.engine.embed([int(token)])])


@pytest.fixture(scope="session")
def world() -> Tokenizer:
    from export.vocabulary import vocabulary_file

    return Tokenizer(vocabulary_file(ExportConfig()))


def test_tokenizer(golden: Path, world: Tokenizer) -> None:
    cases = json.loads((golden / "tokenizer.json").read_text(encoding="utf-8"))["cases"]
    assert len(cases) >= 50
    for case in cases:
        assert world.encode(case["text"]) == case["ids"], case["text"]


def test_prompts(golden: Path, world: Tokenizer) -> None:
    cases = json.loads((golden / "prompts.json").read_text(encoding="utf-8"))["cases"]
    assert len(cases) >= 20
    for case in cases:
        position = case.get("image_position", "first")
        prompt = PromptSpec("User: ", "Assistant:", "\n\n", "first" if position == "none" else position, "\n")
        turns = [
            Turn(question, question.count("<image>"), answer or None)
            for question, answer in zip(case["turns"][::2], case["turns"][1::2], strict=True)
        ]
        image = [case["image_token_id"]] * (case.get("num_token_per_image") or 1)
        pieces = tokenise(world, conversation_pieces(prompt, turns))
        ids = [token for piece in pieces for token in (image if isinstance(piece, ImageSlot) else piece)]
        assert ids == case["ids"], case["text"]


VIEWS = {
    "clip": ((336, 336), "crop", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "dino": ((448, 448), "stretch", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "siglip": ((448, 448), "stretch", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "sam": ((1024, 1024), "stretch", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_preprocessing(picture: Path, name: str) -> None:
    data = np.load(picture)
    (height, width), fit, mean, std = VIEWS[name]
    view = ViewSpec(name, height, width, mean, std, "bicubic", fit, "pixels")  # type: ignore[arg-type]
    found = prepare(load_image(picture.with_suffix(".png")), view)
    assert found.dtype == np.float32 and found.shape == tuple(data[f"{name}_shape"])
    stride = int(data[f"{name}_stride"])
    sums = {
        "sub": found[:, ::stride, ::stride],
        "mean": found.mean((1, 2), dtype=np.float64),
        "std": found.std((1, 2), dtype=np.float64),
        "row_mean": found.mean((0, 2), dtype=np.float64),
        "col_mean": found.mean((0, 1), dtype=np.float64),
    }
    for key, value in sums.items():
        np.testing.assert_allclose(value, data[f"{name}_{key}"], atol=PIXELS, rtol=0, err_msg=key)
