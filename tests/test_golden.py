"""Official outputs, through the exported bundle and the runtime: `pytest tests/test_golden.py --golden DIR`.

Every array file of the folder that belongs to a checkpoint (whose name begins its name) is exported with that
checkpoint and the sizes its arrays tell, in float32. Its prompt is then fed as a session feeds it, in the largest
segments the model allows, and token by token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from export.config import ExportConfig
from export.variants import SCANS
from runtime.backends.ort import OrtBackend
from runtime.bundle import Bundle
from runtime.context import pack
from runtime.engine import Engine
from runtime.image import load_image, prepare
from runtime.prompt import ImageSlot, Turn, conversation_pieces, tokenise
from runtime.spec import ImagePosition, Manifest, PromptSpec, ScanSpec, ViewSpec
from runtime.state import State
from runtime.tokenizer import Tokenizer

LOGITS = STATE = FEATURES = 1e-4  # absolute; the one tolerance of this file (reference: golden/README.md)
ZERO_BLOCK = 5e-4  # identical zero embeddings in front are ill-conditioned: the official fp32 itself is good to 1e-4
PIXELS = 1e-5
SLOTS = ("att_shift", "ffn_shift", "wkv")

Span = tuple[int, int] | None

# Tests that are about some files only, and the arrays of which such a file has one.
NEEDS = {
    "test_image_embeddings": ("image_features", "image_features_pooled"),
    "test_image_state": ("image_states",),
    "test_padded_once": ("num_pad_left", "logits_leftpad16"),
    "test_scan_ablations": ("logits_unidir", "logits_multidir"),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder: Path = metafunc.config.getoption("golden")
    if "arrays" in metafunc.fixturenames:
        needs = NEEDS.get(metafunc.function.__name__)
        files = sorted(path for path in folder.glob("*.npz") if checkpoint_of(path))
        files = [path for path in files if needs is None or not set(needs).isdisjoint(np.load(path).files)]
        metafunc.parametrize("arrays", files, ids=[path.stem for path in files])
    if "picture" in metafunc.fixturenames:
        files = sorted(folder.glob("pre_*.npz"))
        metafunc.parametrize("picture", files, ids=[path.stem for path in files])


def checkpoint_of(arrays: Path) -> Path | None:
    """The checkpoint whose name begins the array file's, the longest of several."""
    found = [path for path in arrays.parent.glob("*.pth") if arrays.stem.startswith(path.stem)]
    return max(found, key=lambda path: len(path.stem), default=None)


def test_every_checkpoint_has_arrays_and_every_array_file_a_checkpoint(golden: Path) -> None:
    known = {checkpoint_of(path) for path in golden.glob("*.npz") if not path.stem.startswith("pre_")}
    assert known == set(golden.glob("*.pth"))
    assert len(known) >= 5


class Case:
    """One array file with its exported model."""

    def __init__(self, arrays: Path, golden: Path, export: Callable[..., Path]) -> None:
        self.data = dict(np.load(arrays))
        checkpoint = checkpoint_of(arrays)
        assert checkpoint is not None
        self.checkpoint = checkpoint
        bundle = Bundle.open(export(checkpoint, config=self._config(golden)))
        self.engine = Engine(bundle, OrtBackend(threads=2))
        self.tolerance = ZERO_BLOCK if "pixel_values" in self.data and not self.data["pixel_values"].any() else LOGITS
        self.ids = [int(i) for i in self.data["input_ids"].reshape(-1)]
        self.images: np.ndarray | None = None
        self.features: np.ndarray | None = None
        if views := self._views():
            self.images, self.features = self.engine.encode_with_features(views)
        self.embeddings = self._prompt()
        self.span: Span = (int(self.data["img_start"]), int(self.data["img_end"])) if "img_start" in self.data else None

    def _config(self, golden: Path) -> ExportConfig:
        options = json.loads((golden / "configs.json").read_text(encoding="utf-8"))[self.checkpoint.name]
        for key in ("num_token_per_image", "grid_size"):
            if key in self.data:
                options[key] = int(self.data[key])
        for key in ("state_encoder_max_feature_len", "state_encoder_num_token_per_image"):
            if self.data.get(key):
                options[key] = int(self.data[key])
        if "strategy" in self.data:
            options["state_encoder_strategy"] = "fold" if str(self.data["strategy"]) == "fold" else "single"
        if "tower_features" in self.data:
            _, cells, width = self.data["tower_features"].shape
            options["vision"] = {"type": "features", "cells": cells, "width": width}
        return ExportConfig.from_dict(options)

    def _views(self) -> dict[str, np.ndarray]:
        """What the vision graph takes, or nothing for a text prompt."""
        if self.engine.manifest.vision is None:
            return {}
        if "tower_features" in self.data:
            views = {"features": self.data["tower_features"]}
        elif "pixel_values" in self.data:  # [1, crops, 3, S, S]; one of zeros stands for no image at all
            pixels = self.data["pixel_values"]
            views = {"clip": pixels[0]} if pixels.any() else {}
        else:
            views = {key.removeprefix("pixel_"): x for key, x in self.data.items() if key.startswith("pixel_")}
        return {name: array.astype(np.float32) for name, array in views.items()}

    def _prompt(self) -> np.ndarray:
        """Embeddings of the whole prompt [T, C], images in place of their ids."""
        if self.images is None and "image_features" in self.data:  # the zero block in front of a text prompt
            return np.concatenate([self.zero_block(), self.engine.embed(self.ids)])
        if self.images is None:
            return self.engine.embed(self.ids)
        image_id = int(self.data["image_token_id"]) if "image_token_id" in self.data else -200
        rows = self.images.reshape(-1, self.images.shape[-1])
        each = len(rows) // self.ids.count(image_id)  # one id for each vector, or one for all of them
        out, used = [], 0
        for token in self.ids:
            if token == image_id:
                out.append(rows[used : used + each])
                used += each
            else:
                out.append(self.engine.embed([token]))
        return np.concatenate(out)

    def zero_block(self) -> np.ndarray:
        assert self.engine.manifest.prompt.text_only == "zero_block"
        assert self.engine.manifest.vision is not None
        return self.engine.zero_embeddings(self.engine.manifest.vision.tokens)

    def pads(self, count: int) -> np.ndarray:
        return self.engine.embed([self.engine.manifest.tokenizer.pad_id] * count)

    def state(self) -> State:
        """The state before the first position, image state included."""
        state = self.engine.new_state()
        if self.features is not None:
            for slot, array in self.engine.context(self.features).items():
                state.write(slot, array)
        return state

    def calls(self, rows: np.ndarray, *, stepping: bool) -> Iterator[tuple[int, int, Span]]:
        """Cut the prompt: a scanned image in one call, everything else in one or position by position."""
        position = 0
        if self.span and self.span[1] > self.span[0]:
            start, stop = self.span
            if stepping:
                yield from ((i, i + 1, None) for i in range(start))
                yield start, stop, (0, stop - start)
            else:
                yield 0, stop, (start, stop)
            position = stop
        if stepping:
            yield from ((i, i + 1, None) for i in range(position, len(rows)))
        elif position < len(rows):
            yield position, len(rows), None

    def feed(self, rows: np.ndarray, state: State, *, stepping: bool = False) -> Iterator[tuple[int, np.ndarray]]:
        """Feed the prompt; yield (position, logits there) after every call."""
        for start, stop, image in self.calls(rows, stepping=stepping):
            yield stop - 1, self.engine.advance(rows[start:stop], state, image)


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
    state = case.state()
    for position, found in case.feed(embeddings, state, stepping=True):
        if position >= skip:
            wanted = logits[position - skip]
            np.testing.assert_allclose(found, wanted, atol=case.tolerance, rtol=0, err_msg=f"position {position}")
            assert found.argmax() == wanted.argmax()
    return state


def check_prefill(case: Case, embeddings: np.ndarray, wanted: np.ndarray) -> State:
    state = case.state()
    *_, (_, found) = case.feed(embeddings, state)
    np.testing.assert_allclose(found, wanted, atol=case.tolerance, rtol=0)
    return state


def check_greedy(case: Case, embeddings: np.ndarray, tokens: np.ndarray, logits: np.ndarray) -> None:
    """Greedy tokens; half way on, the rest also from a snapshot in another state."""
    state = case.state()
    *_, (_, found) = case.feed(embeddings, state)
    pairs = list(zip(tokens.reshape(-1).tolist(), logits, strict=True))
    snapshot, kept = None, found.copy()
    for index, (token, wanted) in enumerate(pairs):
        if index == len(pairs) // 2:
            snapshot, kept = state.snapshot(), found.copy()
        np.testing.assert_allclose(found, wanted, atol=case.tolerance, rtol=0)
        assert int(found.argmax()) == token
        found = case.engine.advance([token], state)
    assert snapshot is not None
    again = case.engine.new_state()
    again.restore(snapshot)
    for token, wanted in pairs[len(pairs) // 2 :]:
        np.testing.assert_allclose(kept, wanted, atol=case.tolerance, rtol=0)
        kept = case.engine.advance([token], again).copy()
    assert np.array_equal(kept, found)


def normed(case: Case, official: np.ndarray) -> np.ndarray:
    """Golden image features are from before ln0; ours from after it."""
    weights = torch.load(case.checkpoint, weights_only=True)
    norm = [weights[f"rwkv.blocks.0.ln0.{name}"].float() for name in ("weight", "bias")]
    rows = torch.from_numpy(official.astype(np.float32))
    return torch.nn.functional.layer_norm(rows, rows.shape[-1:], *norm).numpy()


def test_image_embeddings(case: Case) -> None:
    key = "image_features_pooled" if "image_features_pooled" in case.data else "image_features"
    found = case.zero_block() if case.images is None else case.images
    wanted = normed(case, case.data[key])
    np.testing.assert_allclose(found, wanted.reshape(found.shape), atol=FEATURES, rtol=0)


def test_image_state(case: Case) -> None:
    assert case.features is not None
    vision = case.engine.manifest.vision
    assert vision is not None
    assert vision.context is not None
    stride = -(-case.features.shape[1] // case.data["image_features_orig_rows"].shape[1])
    rows = case.features[:, ::stride]
    np.testing.assert_allclose(rows, case.data["image_features_orig_rows"], atol=FEATURES, rtol=0)
    packed = pack(case.features, vision.context).reshape(-1, case.features.shape[-1])
    official = case.data["packed_image_features"]  # before the zeros that "fold" puts in front
    np.testing.assert_allclose(packed[len(packed) - len(official) :], official, atol=FEATURES, rtol=0)
    assert not packed[: len(packed) - len(official)].any()
    states = case.engine.context(case.features)["image_state"][:, 0]
    np.testing.assert_allclose(states, case.data["image_states"].reshape(states.shape), atol=STATE, rtol=0)


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
    data, rows = case.data, case.embeddings
    for token, wanted in zip(data["gen_tokens"].reshape(-1), data["gen_logits"], strict=True):
        pads = case.pads(-len(rows) % 16) if "num_pad_left" in data else rows[:0]
        *_, (_, found) = case.feed(np.concatenate([pads, rows]), case.state())
        np.testing.assert_allclose(found, wanted, atol=case.tolerance, rtol=0)
        assert int(found.argmax()) == int(token)
        rows = np.concatenate([rows, case.engine.embed([int(token)])])


@pytest.mark.parametrize("name", ["unidirectional", "multidirectional"])
def test_scan_ablations(case: Case, name: str) -> None:
    """The same graph with another order of scanning in the manifest."""
    wanted = case.data[{"unidirectional": "logits_unidir", "multidirectional": "logits_multidir"}[name]]
    vision = case.engine.manifest.vision
    assert vision is not None
    assert vision.scan is not None
    case.engine.close()
    manifest: Manifest = replace(
        case.engine.manifest, vision=replace(vision, scan=ScanSpec(SCANS[name], vision.scan.fixed))
    )
    case.engine = Engine(replace(case.engine.bundle, manifest=manifest), OrtBackend(threads=2))
    check_stepping(case, case.embeddings, wanted)
    check_prefill(case, case.embeddings, wanted[-1])
    assert np.abs(wanted - case.data["logits"]).max() > 100 * LOGITS


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
        where: ImagePosition = "first" if position == "none" else position
        prompt = PromptSpec("User: ", "Assistant:", "\n\n", where, "\n")
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
