"""The model that is trained is the function that is exported: same logits for a picture and a question."""

from __future__ import annotations

import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from apps.demo.checkpoint import VOCABULARY, export_config, official, write_model
from apps.demo.dataset import Words, collate, draw_items, row_of
from apps.demo.model import DemoModel, Shape
from apps.demo.questions import WEIGHTS
from apps.demo.scenes import draw, scene_of
from runtime import GenerateOptions, VisualRWKV
from runtime.errors import CheckpointError
from runtime.prompt import ImageSlot, Turn, closing_ids, conversation_pieces, turn_pieces
from runtime.spec import PromptSpec
from runtime.tokenizer import Tokenizer

ROWS = Words(VOCABULARY).rows
ANSWER = 12  # greedy tokens compared
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def model() -> DemoModel:
    """Random everywhere (an initial model's zero matrices would hide mistakes), float16-rounded."""
    torch.manual_seed(5)
    model = DemoModel(Shape(ROWS, width=128, layers=3))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    model.load_state_dict({k: x.float() for k, x in official(model.state_dict()).items()}, strict=False)
    return model.eval()


@pytest.fixture(scope="module")
def bundle(model: DemoModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from export.build import export_bundle
    from export.config import ExportConfig

    folder = tmp_path_factory.mktemp("parity")
    weights, config = write_model(model.state_dict(), folder)
    (folder / VOCABULARY.name).write_bytes(VOCABULARY.read_bytes())
    out = folder / "bundle"
    export_bundle(weights, out, precision="fp32", config=ExportConfig.load(config, weights.name))
    return out


@torch.no_grad()
def torch_logits(model: DemoModel, ids: list[int], pictures: list[np.ndarray]) -> np.ndarray:
    """Logits [T, V] of a whole text; `ids` hold 16 image tokens for each picture (BGR [64, 64, 3])."""
    rgb = np.stack([cv2.cvtColor(p, cv2.COLOR_BGR2RGB) for p in pictures])
    row = torch.tensor([ids])
    at = row == ROWS - 1
    x = model.rwkv.emb(row).masked_scatter(at[..., None], model.proj(model.features(torch.from_numpy(rgb))[1]))
    return model.logits(model.rwkv(x, model.rwkv.start(1))[0][-1])[0].numpy()


def turn_ids(loaded: VisualRWKV, question: str, pictures: int) -> list[int]:
    pieces = turn_pieces(loaded.manifest.prompt, question, pictures)
    image = [ROWS - 1] * 16
    return [i for p in pieces for i in (image if isinstance(p, ImageSlot) else loaded.tokenizer.encode(p))]


@pytest.mark.slow
def test_a_conversation_has_the_trained_models_greedy_answers(model: DemoModel, bundle: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [draw(scene_of(3), 1), rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)]
    fed: list[int] = []
    seen: list[np.ndarray] = []
    words = set()
    with VisualRWKV.load(bundle) as loaded:
        session = loaded.session()
        for shown, question in (
            (1, "What colour is the circle?"),
            (2, "红色圆形在哪里？"),
            (0, "Is it day or night?"),
        ):
            if shown:
                session.see(*pictures[:shown])
            seen += pictures[:shown]
            fed += turn_ids(loaded, question, shown)
            chunks = list(session.ask(question, options=GenerateOptions(max_tokens=ANSWER)))
            said = [token for chunk in chunks for token in chunk.token_ids]
            ours = torch_logits(model, fed + said[:-1], seen)[len(fed) - 1 :].copy()
            ours[:, ROWS - 1] = -np.inf  # the session never says the image token
            assert ours.argmax(1).tolist() == said
            fed += said[:-1] + closing_ids(loaded.tokenizer, loaded.manifest.prompt, said)
            words |= set(said)
    assert len(words) > ANSWER // 2  # not one token again and again


@pytest.mark.slow
def test_two_pictures_have_the_trained_models_logits(model: DemoModel, bundle: Path) -> None:
    pictures = [draw(scene_of(3), 1), draw(scene_of(4), 1)]
    with VisualRWKV.load(bundle) as loaded:
        engine = loaded.engine
        state = engine.new_state()
        image = np.stack([p[..., ::-1] for p in pictures]).transpose(0, 3, 1, 2) / np.float32(127.5) - 1
        embeddings = engine.encode({"siglip": np.ascontiguousarray(image, np.float32)})
        ids = turn_ids(loaded, "What changed?", 2)
        rows, at = engine.embed(ids), np.flatnonzero(np.array(ids) == ROWS - 1)
        rows[at] = embeddings.reshape(-1, rows.shape[1])
        theirs = [engine.advance(rows, state).copy()]
        greedy = [int(theirs[0].argmax())]
        for _ in range(ANSWER - 1):
            theirs.append(engine.advance(greedy[-1:], state).copy())
            greedy.append(int(theirs[-1].argmax()))
    ours = torch_logits(model, ids + greedy[:-1], pictures)[len(ids) - 1 :]
    assert np.abs(ours).max() > 1
    np.testing.assert_allclose(np.stack(theirs), ours, atol=TOLERANCE, rtol=0)


def test_reading_in_forks_is_reading_the_transcript(model: DemoModel) -> None:
    """Training reads "User: " and the picture once, then many texts; the runtime reads one transcript."""
    scene, words = scene_of(11), Words(VOCABULARY)
    picture = draw(scene, 1)
    rgb = torch.from_numpy(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))[None]
    items = draw_items(scene, 6, random.Random(2), dict(WEIGHTS))
    batch = collate([row_of(words, 0, items[i : i + 2], ["\n", "User: "][: len(items) - i]) for i in (0, 2, 4)])
    opening = words.ids("User: ")
    with torch.no_grad():
        state, _ = model.look([model.features(rgb)[1]], opening, [])
        forked = model.logits(model.read(batch.ids, state, batch.scene)[-1])
    for i, row in enumerate(batch.rows):
        whole = torch_logits(model, [*opening, *[ROWS - 1] * 16, *row.ids], [picture])[-len(row.ids) :]
        np.testing.assert_allclose(forked[i, : len(row.ids)].numpy(), whole, atol=TOLERANCE, rtol=0)


def test_training_texts_are_the_runtimes_transcripts() -> None:
    words, tokenizer = Words(VOCABULARY), Tokenizer(VOCABULARY)
    prompt = PromptSpec("User: ", "Assistant:", "\n\n", "first", "\n")
    for seed in range(20):
        items = draw_items(scene_of(seed), 3, random.Random(seed), dict(WEIGHTS))
        row = row_of(words, 0, items, ["\n", "User: ", "User: "][: len(items)])
        turns = [Turn(item.question, int(i == 0), item.answer) for i, item in enumerate(items)]
        pieces = conversation_pieces(prompt, turns)
        assert [i for p in pieces[2:] for i in tokenizer.encode(str(p))] == row.ids
        for start, end, item in row.answers:
            assert tokenizer.decode(row.ids[start:end]) == f" {item.answer}\n\n"


def test_config_names_the_rows_with_a_meaning() -> None:
    config = export_config(Shape(ROWS))
    assert config["image_token_id"] == ROWS - 1
    assert Tokenizer(VOCABULARY).token_bytes(config["stop_token_id"]) == b"\n\n"


def test_a_state_that_will_not_do_is_refused(model: DemoModel) -> None:
    tensors = dict(model.state_dict())
    tensors["rwkv.emb.weight"] = tensors["rwkv.emb.weight"].clone()
    tensors["rwkv.emb.weight"][3, 3] = 1e6
    with pytest.raises(CheckpointError, match="float16"):
        official(tensors)
    del tensors["proj.gate.weight"]
    with pytest.raises(CheckpointError, match=r"proj\.gate\.weight"):
        official(tensors)
    with pytest.raises(CheckpointError, match="language model"):
        official({})
