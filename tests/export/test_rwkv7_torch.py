"""The RWKV-7 module against the official implementation's outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from export.arch.language import Head, embedding_table
from export.arch.rwkv7 import RWKV7, Block
from export.archspec import ArchSpec
from export.weights import materialise
from tests.export.torch_models import config_of, language_model, ln0, open_model, zero_state

TOLERANCE = 1e-4


def run(module: RWKV7, spec: ArchSpec, embeddings: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits of every position [T, V] by one-token steps, and the state after the last."""
    state, logits = list(zero_state(spec)), []
    with torch.no_grad():
        for row in embeddings:
            out, *state = module(row[None, None], *state)
            logits.append(out[0])
    return torch.stack(logits), state


def assert_logits(found: torch.Tensor, wanted: np.ndarray) -> None:
    expected = torch.from_numpy(wanted)
    assert (found - expected).abs().max() <= TOLERANCE
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


def test_text_model_at_every_position(golden: Path) -> None:
    checkpoint, spec = open_model(golden / "rwkv7_text.pth", config_of(golden, "rwkv7_text.pth"))
    module, table = language_model(checkpoint, spec)
    data = np.load(golden / "rwkv7_text.npz")
    ids = torch.from_numpy(data["input_ids"])
    logits, state = run(module, spec, table[ids])
    assert_logits(logits, data["logits"])
    for found, name in zip(state, ("state_att_shift", "state_ffn_shift", "state_wkv"), strict=True):
        assert (found[:, 0] - torch.from_numpy(data[name])).abs().max() <= TOLERANCE

    pads = torch.full((-len(ids) % 16,), spec.stop_token_id)
    logits, _ = run(module, spec, table[torch.cat([pads, ids])])
    assert_logits(logits[len(pads) :], data["logits_leftpad16"])


def test_greedy_continuation(golden: Path) -> None:
    checkpoint, spec = open_model(golden / "rwkv7_text.pth", config_of(golden, "rwkv7_text.pth"))
    module, table = language_model(checkpoint, spec)
    data = np.load(golden / "rwkv7_text.npz")
    with torch.no_grad():
        logits, *state = module(table[torch.from_numpy(data["input_ids"])][None], *zero_state(spec))
        tokens = []
        for wanted in data["gen_logits"]:
            assert_logits(logits, wanted[None])
            tokens.append(int(logits.argmax()))
            logits, *state = module(table[tokens[-1]][None, None], *state)
    assert tokens == data["gen_tokens"].tolist()


@pytest.mark.parametrize("case", ["feat1", "feat2", "text", "tower"])
@pytest.mark.parametrize("padded", [False, True])
def test_visual_model_from_image_features(golden: Path, case: str, padded: bool) -> None:
    checkpoint, spec = open_model(golden / "v700.pth", config_of(golden, "v700.pth"))
    module, table = language_model(checkpoint, spec)
    data = np.load(golden / f"v700_{case}.npz")
    ids = torch.from_numpy(data["input_ids"])
    embeddings = table[ids]
    if case != "text":
        features = ln0(checkpoint, spec, data["image_features"])
        embeddings[ids == int(data["image_token_id"])] = features.reshape(-1, spec.n_embd)
    pads = table[int(data["pad_token_id"])].expand(int(data["num_pad_left"]) if padded else 0, -1)
    logits, state = run(module, spec, torch.cat([pads, embeddings]))
    assert_logits(logits[len(pads) :], data["logits" if padded else "logits_nopad"])
    if case == "feat1" and not padded:
        for found, name in zip(state, ("att_shift", "ffn_shift", "wkv"), strict=True):
            assert (found[:, 0] - torch.from_numpy(data[f"state_{name}_nopad"])).abs().max() <= TOLERANCE


def test_blocks_one_at_a_time(golden: Path) -> None:
    """Layer by layer gives the residual stream after every block, and the head its logits."""
    checkpoint, spec = open_model(golden / "v700.pth", config_of(golden, "v700.pth"))
    data = np.load(golden / "v700_feat1.npz")
    x = v_first = ln0(checkpoint, spec, data["inputs_embeds"])[None]
    att, ffn, wkv = zero_state(spec)
    with torch.no_grad():
        for layer in range(spec.n_layer):
            with torch.device("meta"):
                block = Block(spec, layer)
            materialise(block, checkpoint)
            x, v_first, *_ = block(x, v_first, att[layer], ffn[layer], wkv[layer])
            assert (x[0] - torch.from_numpy(data["block_out_nopad"][layer])).abs().max() <= TOLERANCE
        head = Head(spec)
        materialise(head, checkpoint)
        assert_logits(head(x)[0], data["logits_nopad"])


@pytest.mark.parametrize("cuts", [[33], [17, 16], [1] * 33, [16, 1, 16], [32, 1]])
def test_cuts_do_not_matter(golden: Path, cuts: list[int]) -> None:
    checkpoint, spec = open_model(golden / "rwkv7_text.pth", config_of(golden, "rwkv7_text.pth"))
    module, table = language_model(checkpoint, spec)
    data = np.load(golden / "rwkv7_text.npz")
    state: list[torch.Tensor] = list(zero_state(spec))
    with torch.no_grad():
        for part in table[torch.from_numpy(data["input_ids"])].split(cuts):
            logits, *state = module(part[None], *state)
    assert_logits(logits, data["logits"][-1:])
    for found, name in zip(state, ("state_att_shift", "state_ffn_shift", "state_wkv"), strict=True):
        assert (found[:, 0] - torch.from_numpy(data[name])).abs().max() <= TOLERANCE


def test_a_batch_is_its_rows(golden: Path) -> None:
    """Sequences of a batch don't see each other."""
    checkpoint, spec = open_model(golden / "rwkv7_text.pth", config_of(golden, "rwkv7_text.pth"))
    module, table = language_model(checkpoint, spec)
    ids = torch.from_numpy(np.load(golden / "rwkv7_text.npz")["input_ids"])
    rows = torch.stack([table[ids[:12]], table[ids[12:24]]])
    with torch.no_grad():
        together = module(rows, *zero_state(spec, 2))
        for index in range(2):
            alone = module(rows[index : index + 1], *zero_state(spec))
            assert (together[0][index] - alone[0][0]).abs().max() <= TOLERANCE
            for many, one in zip(together[1:], alone[1:], strict=True):
                assert (many[:, index] - one[:, 0]).abs().max() <= TOLERANCE


def test_table_comes_in_pieces(golden: Path) -> None:
    """Pieces of any size make the same table, and every row is normalised."""
    checkpoint, spec = open_model(golden / "rwkv7_text.pth", config_of(golden, "rwkv7_text.pth"))
    pieces = list(embedding_table(checkpoint, spec, rows=200))
    assert [len(piece) for piece in pieces] == [200, 200, 112]
    wanted = ln0(checkpoint, spec, checkpoint.tensor("emb.weight").float().numpy())
    assert torch.equal(torch.cat(pieces), wanted)
