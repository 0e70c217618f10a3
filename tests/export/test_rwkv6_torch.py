"""The RWKV-6 module against the official implementation's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.arch.rwkv6 import RWKV6, Block, reorderings
from export.checkpoint import Checkpoint
from export.weights import materialise
from runtime.scan import scan_positions
from runtime.spec import ScanOrder
from tests.export.numpy_rwkv6 import Layer, blocks, logits
from tests.export.rwkv6_models import (
    BIDIRECTIONAL,
    EXACT,
    MULTIDIRECTIONAL,
    TOLERANCE,
    Model,
    assert_logits,
    assert_state,
    built,
    open_model,
    random_checkpoint,
    spec_of,
)

BATCH, LENGTH = torch.export.Dim("B", min=1, max=64), torch.export.Dim("T", min=1, max=1 << 16)
CASES = [
    *(f"{position}_{grid}" for position in ("first", "last", "middle") for grid in ("g2", "gm1")),
    "middle_g0",
    "middle_g1",
    "start_gm1",
    "noimg_gm1",
]


@pytest.fixture(scope="module")
def text(golden: Path) -> Model:
    return open_model(RWKV6, golden / "rwkv6_text.pth", spec_of(golden, "rwkv6_text.pth"))


@pytest.fixture(scope="module")
def v60(golden: Path) -> Model:
    return open_model(RWKV6, golden / "v60.pth", spec_of(golden, "v60.pth", scan=BIDIRECTIONAL))


def scan(orders: Sequence[ScanOrder], length: int, start: int = 0, stop: int = 0) -> torch.Tensor:
    return torch.from_numpy(scan_positions(orders, length, start, stop))


def v60_prompt(model: Model, data: Any) -> tuple[torch.Tensor, int, int]:
    """The embeddings of a golden prompt [T, C], and the span that is read in the layers' orders."""
    ids, features = torch.from_numpy(data["input_ids"]), model.ln0(data["image_features"])
    start, stop = int(data["img_start"]), int(data["img_end"])
    assert len(features) == stop - start + 1
    holes = (ids < 0).nonzero().flatten().tolist()
    rows = [model.table[ids[:start]], features, model.table[ids[start + len(holes) :]]]
    assert holes in ([], [start]) and sum(map(len, rows)) == len(data["logits"])
    return torch.cat(rows), start, stop


def tolerance(case: str) -> float:
    return 5e-4 if case.startswith("noimg") else TOLERANCE  # equal zero rows: the official float32 is good to 8e-5


def test_text_model_in_one_go(text: Model, golden: Path) -> None:
    data = np.load(golden / "rwkv6_text.npz")
    x = text.table[torch.from_numpy(data["input_ids"])]
    assert_logits(text.hidden_logits(x, text.zeros()), data["logits"])
    with torch.no_grad():
        found, *state = text.module(x[None], *text.zeros())
    assert_logits(found, data["logits"][-1:])
    assert_state(state, data)


@pytest.mark.parametrize("cuts", [[1] * 33, [17, 16], [16, 1, 16], [32, 1]])
def test_cuts_do_not_matter(text: Model, golden: Path, cuts: list[int]) -> None:
    data = np.load(golden / "rwkv6_text.npz")
    state, position = text.zeros(), 0
    for part in text.table[torch.from_numpy(data["input_ids"])].split(cuts):
        with torch.no_grad():
            found, *state = text.module(part[None], *state)
        position += len(part)
        assert_logits(found, data["logits"][position - 1 : position])
    assert_state(state, data)


def test_greedy_continuation(text: Model, golden: Path) -> None:
    data = np.load(golden / "rwkv6_text.npz")
    with torch.no_grad():
        found, *state = text.module(text.table[torch.from_numpy(data["input_ids"])][None], *text.zeros())
        assert_greedy(text, found, state, data)


def assert_greedy(
    model: Model, found: torch.Tensor, state: list[torch.Tensor], data: Any, *scan: torch.Tensor, limit: float = 1e-4
) -> None:
    """Sixteen tokens, one by one, from the logits of a prompt."""
    tokens = []
    for wanted in data["gen_logits"]:
        assert_logits(found, wanted[None], limit)
        tokens.append(int(found.argmax()))
        found, *state = model.module(model.table[tokens[-1]][None, None], *state, *scan)
    assert tokens == data["gen_tokens"].tolist()


@pytest.mark.parametrize("case", CASES)
def test_visual_model_in_one_go(v60: Model, golden: Path, case: str) -> None:
    data = np.load(golden / f"v60_{case}.npz")
    x, start, stop = v60_prompt(v60, data)
    orders = scan(BIDIRECTIONAL, len(x), start, stop)
    assert_logits(v60.hidden_logits(x, v60.zeros(), orders), data["logits"], tolerance(case))
    with torch.no_grad():
        found, *state = v60.module(x[None], *v60.zeros(), orders)
    assert_logits(found, data["logits"][-1:], tolerance(case))
    if "state_wkv" in data:
        assert_state(state, data)


@pytest.mark.parametrize("case", CASES)
def test_visual_model_in_segments(v60: Model, golden: Path, case: str) -> None:
    """Text token by token, the picture as one block, the rest and the answer token by token."""
    data = np.load(golden / f"v60_{case}.npz")
    x, start, stop = v60_prompt(v60, data)
    state, one = v60.zeros(), scan(BIDIRECTIONAL, 1)
    ends = sorted({*range(1, start + 1), stop, *range(stop + 1, len(x) + 1)} - {0})
    begin = 0
    with torch.no_grad():
        for end in ends:
            picture = begin == start < stop
            orders = scan(BIDIRECTIONAL, end - begin, 0, end - begin) if picture else one
            assert picture or end == begin + 1
            found, *state = v60.module(x[None, begin:end], *state, orders)
            assert_logits(found, data["logits"][end - 1 : end], tolerance(case))
            begin = end
        if "state_wkv" in data:
            assert_state(state, data)
        assert_greedy(v60, found, state, data, one, limit=tolerance(case))


def test_block_by_block(v60: Model, golden: Path) -> None:
    """The residual stream after every block, each block given its own order by hand."""
    data = np.load(golden / "v60_middle_g2.npz")
    x, (att, ffn, wkv) = v60.ln0(data["inputs_embeds"])[None], v60.zeros()
    orders = scan(BIDIRECTIONAL, x.shape[1], int(data["img_start"]), int(data["img_end"]))
    with Checkpoint.open(golden / "v60.pth") as checkpoint, torch.no_grad():
        for layer in range(v60.spec.n_layer):
            with torch.device("meta"):
                block = Block(v60.spec, f"rwkv.blocks.{layer}.")
            materialise(block, checkpoint)
            order = orders[layer]
            x[:, order] = block(x[:, order], att[layer], ffn[layer], wkv[layer])[0]
            assert (x[0] - torch.from_numpy(data["block_out"][layer])).abs().max() <= TOLERANCE


def test_other_scan_orders_of_the_same_weights(v60: Model, golden: Path) -> None:
    """One graph serves every scanning: the orders are an input."""
    data = np.load(golden / "v60_middle_gm1.npz")
    x, start, stop = v60_prompt(v60, data)
    for orders, name in ((MULTIDIRECTIONAL[:1] * 4, "logits_unidir"), (MULTIDIRECTIONAL, "logits_multidir")):
        found = v60.hidden_logits(x, v60.zeros(), scan(orders, len(x), start, stop))
        assert_logits(found, data[name])
    assert_logits(v60.hidden_logits(x, v60.zeros()), data["logits_unidir"])


@pytest.mark.parametrize("layers", [1, 4, 6])
@pytest.mark.parametrize("orders", [BIDIRECTIONAL, MULTIDIRECTIONAL, MULTIDIRECTIONAL[::-1]])
def test_random_models_against_numpy(tmp_path: Path, golden: Path, layers: int, orders: tuple[ScanOrder, ...]) -> None:
    """Other depths and heads than the golden models have, with what is carried after a segment."""
    sizes = {"n_layer": layers, "n_embd": 24, "n_head": 3, "head_size": 8, "dim_ffn": 40, "vocab_size": 32}
    spec = spec_of(golden, "v60.pth", **sizes, ranks={"maa": 4, "decay": 5}, scan=orders)
    path = tmp_path / "random.pth"
    with torch.device("meta"):
        weights = random_checkpoint(path, [RWKV6(spec)], spec, seed=layers)
    model = open_model(RWKV6, path, spec).double()
    raw = np.random.default_rng(1).standard_normal((13, 24))
    positions = scan_positions(orders, 13, 2, 11)
    reference = [Layer(24, 3) for _ in range(layers)]
    rows = [positions[layer % 4] for layer in range(layers)]
    wanted = logits(blocks(raw, reference, weights, "rwkv.blocks.", orders=rows), weights, "rwkv.")

    x, index = model.ln0(raw), torch.from_numpy(positions)
    assert_logits(model.hidden_logits(x, model.zeros(), index), wanted, EXACT)
    with torch.no_grad():
        last, att, ffn, wkv = model.module(x[None], *model.zeros(), index)
    assert_logits(last, wanted[-1:], EXACT)
    for layer, carried in enumerate(reference):
        for found, name in ((att, "att_shift"), (ffn, "ffn_shift"), (wkv, "wkv")):
            assert np.abs(found[layer, 0].numpy() - getattr(carried, name)).max() <= EXACT


def test_a_batch_is_its_rows(v60: Model) -> None:
    """Sequences of a batch don't see each other."""
    rows = v60.table[torch.arange(24)].reshape(2, 12, -1)
    orders = scan(BIDIRECTIONAL, 12, 3, 9)
    with torch.no_grad():
        together = v60.module(rows, *v60.zeros(2), orders)
        for index in range(2):
            alone = v60.module(rows[index : index + 1], *v60.zeros(), orders)
            assert (together[0][index] - alone[0][0]).abs().max() <= TOLERANCE
            for many, one in zip(together[1:], alone[1:], strict=True):
                assert (many[:, index] - one[:, 0]).abs().max() <= TOLERANCE


def test_reorderings_lead_from_order_to_order() -> None:
    generator = torch.Generator().manual_seed(3)
    orders = torch.stack([torch.randperm(9, generator=generator) for _ in range(4)])
    steps, backs = reorderings(orders)
    for row in range(4):
        assert torch.equal(orders[row][steps[row]], orders[(row + 1) % 4])
        assert torch.equal(orders[row][backs[row]], torch.arange(9))


def test_traces_with_any_batch_and_length(golden: Path) -> None:
    """One program for one token and for segments, whatever their order; it can be made without any weights."""
    spec = spec_of(golden, "v60.pth", n_layer=2, scan=BIDIRECTIONAL)
    with torch.device("meta"):
        empty = RWKV6(spec)
        example = [torch.empty(2, 17, spec.n_embd), *(torch.empty(slot.resolve(2)) for slot in empty.slots)]
        example.append(torch.empty(4, 17, dtype=torch.int64))
    dynamic = ({0: BATCH, 1: LENGTH}, *({1: BATCH} for _ in empty.slots), {1: LENGTH})
    torch.export.export(empty, tuple(example), dynamic_shapes=dynamic)

    with Checkpoint.open(golden / "v60.pth") as checkpoint:
        module = built(RWKV6, checkpoint, spec)
    program = torch.export.export(
        module, tuple(torch.zeros_like(x, device="cpu") for x in example), dynamic_shapes=dynamic
    ).module()
    for rows, positions in ((1, 1), (3, 5)):
        x = torch.linspace(-2, 2, rows * positions * spec.n_embd).reshape(rows, positions, -1)
        state = [torch.zeros(slot.resolve(rows)) for slot in module.slots]
        orders = scan(BIDIRECTIONAL, positions, 0, positions - 1)
        with torch.no_grad():
            results = zip(program(x, *state, orders), module(x, *state, orders), strict=True)
        for found, wanted in results:
            assert torch.allclose(found, wanted, atol=1e-5)
