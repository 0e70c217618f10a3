"""The hybrid models and their state encoder, against the official implementation and the NumPy reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.arch.hybrid import CrossState, Hybrid
from export.arch.state_encoder import StateEncoder, unused_keys
from export.archspec import ArchSpec
from export.checkpoint import Checkpoint
from runtime.context import pack
from runtime.spec import ContextSpec
from tests.export.numpy_rwkv6 import Layer, blocks, image_state, logits
from tests.export.rwkv6_models import (
    EXACT,
    TOLERANCE,
    Model,
    assert_logits,
    assert_state,
    built,
    encoder_spec,
    open_model,
    random_checkpoint,
    spec_of,
)

BATCH, LENGTH = torch.export.Dim("B", min=1, max=64), torch.export.Dim("T", min=1, max=1 << 16)
SINGLE, FOLD = ["single_1img", "single_2img"], ["fold_1img", "fold_2img"]
SMALL = {"n_layer": 3, "n_embd": 24, "n_head": 3, "head_size": 8, "dim_ffn": 40, "vocab_size": 32}


def strategy_of(case: str) -> str:
    return case.split("_")[0]


def hm_spec(golden: Path, strategy: str) -> ArchSpec:
    return spec_of(golden, "hm621.pth", version="6.21", state_encoder=encoder_spec(strategy))


@pytest.fixture(scope="module")
def models(golden: Path) -> dict[str, Model]:
    path = golden / "hm621.pth"
    return {name: open_model(Hybrid, path, hm_spec(golden, name)) for name in ("single", "fold")}


@pytest.fixture(scope="module")
def encoder(golden: Path) -> StateEncoder:
    with Checkpoint.open(golden / "hm621.pth") as checkpoint:
        return built(StateEncoder, checkpoint, hm_spec(golden, "single"))


def slot_of(data: Any) -> torch.Tensor:
    """The golden image states as the context slot, [1 or L, 1, H, N, N]."""
    states = torch.from_numpy(data["image_states"])
    return states[:, None] if states.ndim == 4 else states[None, None]


def prompt(model: Model, data: Any) -> torch.Tensor:
    ids = torch.from_numpy(data["input_ids"])
    x = model.table[ids]
    x[ids == int(data["image_token_id"])] = model.ln0(data["image_features_pooled"]).reshape(-1, model.spec.n_embd)
    return x


def projected(checkpoint: Checkpoint, features: np.ndarray) -> np.ndarray:
    """The HD-form projector, by hand: [n, cells, in] -> [n, cells, C]."""
    proj, gate, output = (checkpoint.tensor(f"proj.{name}.weight").float() for name in ("proj", "gate", "o_proj"))
    z = torch.from_numpy(features.astype(np.float32)) @ proj.T
    return ((z * torch.sigmoid(z @ gate.T)) @ output.T).numpy()


@pytest.mark.parametrize("case", SINGLE + FOLD)
def test_features_become_image_states(encoder: StateEncoder, golden: Path, case: str) -> None:
    """From the tower's features: projected, packed, encoded; the slot's layer axis is the chunks."""
    data = np.load(golden / f"hm621_{case}.npz")
    most, tokens = int(data["state_encoder_max_feature_len"]), int(data["state_encoder_num_token_per_image"])
    chunks = 2 if strategy_of(case) == "fold" else 1
    spec = ContextSpec("image_state", 64, most or None, tokens or None, chunks)
    with Checkpoint.open(golden / "hm621.pth") as checkpoint:
        packed = pack(projected(checkpoint, data["tower_features"]), spec)
    flat, wanted = packed.reshape(-1, packed.shape[-1]), data["packed_image_features"]
    assert np.abs(flat[len(flat) - len(wanted) :] - wanted).max() <= TOLERANCE
    assert len(flat) - len(wanted) < chunks and not flat[: len(flat) - len(wanted)].any()
    with torch.no_grad():
        states = encoder(torch.from_numpy(packed))[:, None]
    assert states.shape == slot_of(data).shape
    assert (states - slot_of(data)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("case", SINGLE + FOLD)
def test_prompt_and_answer(models: dict[str, Model], golden: Path, case: str) -> None:
    """In one go and token by token, then greedily."""
    data, model = np.load(golden / f"hm621_{case}.npz"), models[strategy_of(case)]
    x, image = prompt(model, data), slot_of(data)
    assert [slot.name for slot in model.module.slots] == ["att_shift", "ffn_shift", "wkv", "image_state"]
    assert tuple(image.shape) == model.module.slots[-1].resolve(1)
    assert_logits(model.hidden_logits(x, [*model.zeros(), image]), data["logits"])
    with torch.no_grad():
        found, *state = model.module(x[None], *model.zeros(), image)
        assert_logits(found, data["logits"][-1:])
        stepped = model.zeros()
        for row, wanted in zip(x, data["logits"], strict=True):
            found, *stepped = model.module(row[None, None], *stepped, image)
            assert_logits(found, wanted[None])
        if "state_wkv" in data:
            assert_state(state, data)
            assert_state(stepped, data)
        tokens = []
        for wanted in data["gen_logits"]:
            assert_logits(found, wanted[None])
            tokens.append(int(found.argmax()))
            found, *stepped = model.module(model.table[tokens[-1]][None, None], *stepped, image)
    assert tokens == data["gen_tokens"].tolist()


def test_block_by_block(models: dict[str, Model], golden: Path) -> None:
    data, model = np.load(golden / "hm621_single_1img.npz"), models["single"]
    x, (att, ffn, wkv), image = model.ln0(data["inputs_embeds"])[None], model.zeros(), slot_of(data)[0]
    with torch.no_grad():
        for layer, block in enumerate(model.module.blocks):
            x, *_ = block(x, att[layer], ffn[layer], wkv[layer], image)
            assert (x[0] - torch.from_numpy(data["block_out"][layer])).abs().max() <= TOLERANCE


def test_every_stored_tensor_is_read_or_named_unused(models: dict[str, Model], golden: Path) -> None:
    spec = hm_spec(golden, "single")
    with torch.device("meta"):
        modules = [Hybrid(spec), StateEncoder(spec)]
    used = {key for module in modules for source in module.sources().values() for key in source.keys}
    used |= {"rwkv.emb.weight", "rwkv.blocks.0.ln0.weight", "rwkv.blocks.0.ln0.bias"}
    with Checkpoint.open(golden / "hm621.pth") as checkpoint:
        stored = {key for key in checkpoint.shapes if not key.startswith("proj.")}
    assert stored - used == unused_keys(spec)
    assert used <= stored


@pytest.mark.parametrize("depth", [1, 3])
def test_state_encoder_against_numpy(tmp_path: Path, golden: Path, depth: int) -> None:
    """Other depths and heads; with strong decay, and zero vectors in front."""
    spec = spec_of(
        golden, "hm621.pth", **SMALL, ranks={"maa": 4, "decay": 5}, state_encoder=encoder_spec("fold", depth)
    )
    path = tmp_path / "random.pth"
    with torch.device("meta"):
        weights = random_checkpoint(path, [Hybrid(spec), StateEncoder(spec)], spec, seed=depth)
    last = f"state_encoder.blocks.{depth - 1}."
    weights[f"{last}att.time_decay"] += np.linspace(-6, 6, 24)  # half-lives from hundreds of tokens to none
    torch.save({key: torch.from_numpy(value).float() for key, value in weights.items()}, path)
    weights = {key: value.astype(np.float32).astype(np.float64) for key, value in weights.items()}
    features = np.random.default_rng(2).standard_normal((2, 30, 24))
    features[0, :7] = 0
    full = dict(weights)  # what the last block does not need, the reference still computes
    shapes = {"receptance": (24, 24), "gate": (24, 24), "output": (24, 24)}
    full.update({f"{last}att.{name}.weight": np.ones(shape) for name, shape in shapes.items()})
    full.update({f"{last}att.time_maa_{name}": np.zeros(24) for name in "rg"})
    full[f"{last}att.time_faaaa"] = np.zeros((3, 8))
    for norm in ("att.ln_x", "ln2"):
        full.update({f"{last}{norm}.weight": np.ones(24), f"{last}{norm}.bias": np.zeros(24)})
    full.update({f"{last}ffn.time_maa_{name}": np.zeros(24) for name in "kr"})
    for name, shape in (("key", (40, 24)), ("value", (24, 40)), ("receptance", (24, 24))):
        full[f"{last}ffn.{name}.weight"] = np.zeros(shape)
    with Checkpoint.open(path) as checkpoint:
        encoder = built(StateEncoder, checkpoint, spec)
    with torch.no_grad():
        rough = encoder(torch.from_numpy(features).float()).numpy()
        found = encoder.double()(torch.from_numpy(features)).numpy()
    for row in range(2):
        wanted = image_state(features[row], full, depth, heads=3)
        assert np.abs(found[row] - wanted).max() <= EXACT
        assert np.abs(rough[row] - wanted).max() <= TOLERANCE


@pytest.mark.parametrize("strategy", ["single", "fold"])
@pytest.mark.parametrize("kind", ["relu", "sigmoid", "cross"])
def test_variants_against_numpy(tmp_path: Path, golden: Path, kind: str, strategy: str) -> None:
    """Both gates of v6.21, and v6.22: every position, then what is carried, in one go and in two segments."""
    version = "6.22" if kind == "cross" else "6.21"
    spec = spec_of(golden, "hm621.pth", **SMALL, ranks={"maa": 4, "decay": 5}, version=version)
    spec = replace(spec, state_encoder=encoder_spec(strategy))
    module, options = (CrossState, {}) if kind == "cross" else (Hybrid, {"sigmoid_gate": kind == "sigmoid"})
    path = tmp_path / "random.pth"
    with torch.device("meta"):
        weights = random_checkpoint(path, [module(spec, **options)], spec, seed=5)
    model = open_model(module, path, spec, **options).double()
    rng = np.random.default_rng(6)
    raw = rng.standard_normal((11, 24))
    images = rng.standard_normal((3 if strategy == "fold" else 1, 3, 8, 8))
    reference = [Layer(24, 3) for _ in range(3)]
    of_layers = [images[layer % len(images)] for layer in range(3)]
    wanted = logits(blocks(raw, reference, weights, "rwkv.blocks.", of_layers), weights, "rwkv.")

    names = ["att_shift", "ffn_shift", "wkv", *(["cross_shift"] if kind == "cross" else [])]
    assert [slot.name for slot in model.module.slots] == [*names, "image_state"]
    x, image = model.ln0(raw), torch.from_numpy(images)[:, None]
    assert_logits(model.hidden_logits(x, [*model.zeros(), image]), wanted, EXACT)
    with torch.no_grad():
        whole, *state = model.module(x[None], *model.zeros(), image)
        _, *half = model.module(x[None, :4], *model.zeros(), image)
        cut, *half = model.module(x[None, 4:], *half, image)
    assert_logits(whole, wanted[-1:], EXACT)
    assert_logits(cut, wanted[-1:], EXACT)
    for index, name in enumerate(names):
        for layer, carried in enumerate(reference):
            for found in (state[index], half[index]):
                assert np.abs(found[layer, 0].numpy() - getattr(carried, name)).max() <= EXACT


@pytest.mark.parametrize("kind", ["hybrid", "cross", "encoder"])
def test_traces_with_any_batch_and_length(golden: Path, kind: str) -> None:
    spec = replace(hm_spec(golden, "fold"), n_layer=1)
    with torch.device("meta"):
        if kind == "encoder":
            inputs = [torch.empty(2, 17, spec.n_embd)]
            dynamic = [{0: BATCH, 1: LENGTH}]
            program = torch.export.export(StateEncoder(spec), tuple(inputs), dynamic_shapes=tuple(dynamic))
            shapes = [(2, 2, 64, 64)]
        else:
            module = (CrossState if kind == "cross" else Hybrid)(spec)
            slots = module.slots
            inputs = [torch.empty(2, 17, spec.n_embd), *(torch.empty(slot.resolve(2)) for slot in slots)]
            dynamic = [{0: BATCH, 1: LENGTH}, *({1: BATCH} for _ in slots)]
            program = torch.export.export(module, tuple(inputs), dynamic_shapes=tuple(dynamic))
            shapes = [(2, spec.vocab_size), *(slot.resolve(2) for slot in slots if slot.role == "carried")]
    outputs = [spec.arg.name for spec in program.graph_signature.output_specs]
    found = [node.meta["val"] for node in program.graph.output_node().args[0]]
    assert len(outputs) == len(found) == len(shapes)
    for value, shape in zip(found, shapes, strict=True):
        assert [int(axis.node.hint) if isinstance(axis, torch.SymInt) else axis for axis in value.shape] == list(shape)
