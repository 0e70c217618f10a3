"""The ablation's models train, are what the exporter exports, and are compared as they should be."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from apps.demo.ablation import kernels
from apps.demo.ablation.data import VOCABULARY, Features, collate, draw_rows, prompt_of
from apps.demo.ablation.measure import answer, bundle_of, guess, paired, read, scores, table, verdict
from apps.demo.ablation.model import AblationModel
from apps.demo.ablation.train import Plan, Training, write_checkpoint
from apps.demo.ablation.variants import CLAIMS, VARIANTS, Sizes, export_config
from apps.demo.dataset import Words
from apps.demo.scenes import scene_of
from export.config import ExportConfig
from runtime import VisualRWKV
from runtime.prompt import ImageSlot, Turn, conversation_pieces
from runtime.tokenizer import Tokenizer

WORDS = Words(VOCABULARY)
SMALL = Sizes(WORDS.rows, layers=2, mix_rank=8, decay_rank=8)
TOLERANCE = 1e-3
needs_kernel = pytest.mark.skipif(kernels.library() is None, reason="no C++ compiler")


def material(scenes: int, seed: int = 0) -> Features:
    """Scenes with made-up features."""
    tokens = torch.randn(scenes, SMALL.tokens, SMALL.features, generator=torch.Generator().manual_seed(seed))
    return Features([scene_of(s) for s in range(scenes)], tokens)


def lively(name: str, sizes: Sizes = SMALL) -> AblationModel:
    """A model that is random everywhere it may be: an initial model's zero matrices would hide mistakes."""
    torch.manual_seed(3)
    net = AblationModel(sizes, VARIANTS[name]).eval()
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.05)
    return net


def recurrence(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, one position after the other."""
    batch, length, width = r.shape
    r, k, v, w = (x.view(batch, length, -1, kernels.SIZE) for x in (r, k, v, w))
    state, out = torch.zeros(batch, width // kernels.SIZE, kernels.SIZE, kernels.SIZE, dtype=r.dtype), []
    for t in range(length):
        new = k[:, t, :, :, None] * v[:, t, :, None]
        out.append(((state + u[..., None] * new) * r[:, t, :, :, None]).sum(2).reshape(batch, width))
        state = state * w[:, t].exp()[..., None] + new
    return torch.stack(out, 1), state


def inputs(length: int) -> list[Tensor]:
    """r, k, v (values that bf16 holds), log decays from almost none to almost all, and the bonus."""
    draw = torch.Generator().manual_seed(length)
    r, k, v, w = (torch.randn(2, length, 128, generator=draw) for _ in range(4))
    return [*(x.bfloat16().float() for x in (r, k, v)), -torch.exp(w * 2 - 1), torch.randn(2, 64, generator=draw)]


@pytest.mark.parametrize("length", [1, 16, 17, 37])
def test_the_training_form_is_the_recurrence(length: int) -> None:
    ours = [x.double().requires_grad_() for x in inputs(length)]
    wanted = [x.clone().detach().requires_grad_() for x in ours]
    for function, given in ((kernels.in_chunks, ours), (recurrence, wanted)):
        y, state = function(*given)
        (y.square().sum() + (3 * state).sin().sum()).backward()
    torch.testing.assert_close(kernels.in_chunks(*ours), recurrence(*wanted), rtol=1e-9, atol=1e-9)
    for x, z in zip(ours, wanted, strict=True):
        torch.testing.assert_close(x.grad, z.grad, rtol=1e-7, atol=1e-7)


@needs_kernel
@pytest.mark.parametrize("length", [1, 37])
def test_the_kernel_is_the_training_form(length: int) -> None:
    plain = [x.requires_grad_() for x in inputs(length)]
    fast = [x.clone().detach().requires_grad_() for x in plain]
    results = kernels.in_chunks(*plain), kernels.wkv6(*(x.bfloat16() for x in fast[:3]), *fast[3:])
    assert results[1][0].dtype == torch.bfloat16
    for y, state in results:
        ((y.float() * plain[0].detach()).sum() + state.sum()).backward()
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(results[1][0].float(), results[0][0], rtol=1e-2, atol=1e-2)
    for x, z in zip(fast, plain, strict=True):
        torch.testing.assert_close(x.grad, z.grad, rtol=1e-2, atol=1e-5 + 1e-2 * float(z.grad.abs().max()))


@needs_kernel
def test_the_other_kernels_are_their_torch_forms() -> None:
    h, gate = (torch.randn(2, 5, 128).bfloat16().float() for _ in range(2))
    moved = torch.randn(3, 10, 128).bfloat16().float()
    for function, given, half in (
        (kernels.lerp, [h, torch.rand(3, 128), moved], (0, 2)),
        (kernels.finish, [h, gate, torch.rand(128), torch.rand(128)], (0, 1)),
    ):
        plain = [x.clone().requires_grad_() for x in given]
        fast = [x.clone().requires_grad_() for x in given]
        wanted = function(*plain)
        got = function(*(x.bfloat16() if i in half else x for i, x in enumerate(fast)))
        torch.testing.assert_close(got.float(), wanted, rtol=1e-2, atol=1e-2)
        wanted.sin().sum().backward()
        got.backward(wanted.detach().cos().bfloat16())
        for x, z in zip(fast, plain, strict=True):
            torch.testing.assert_close(x.grad, z.grad, rtol=2e-2, atol=1e-5 + 1e-2 * float(z.grad.abs().max()))


@pytest.mark.parametrize("name", list(VARIANTS))
def test_steps_lower_the_loss_of_every_variant(name: str) -> None:
    plan = Plan(1.0, scenes=8, each=2)
    training = Training(VARIANTS[name], SMALL, plan, WORDS, material(8))
    with torch.no_grad():
        before = training.loss(list(range(8)), random.Random(1))
    for _ in range(12):
        training.step(0.0)
    with torch.no_grad():
        after = training.loss(list(range(8)), random.Random(1))
    assert all(bool(x.isfinite()) for x in after)
    assert after[0] < before[0] - 0.1 and after[1] < before[1] - 0.1
    assert training.seen > 12 * 8


def test_static_recurrence_stays_static() -> None:
    training = Training(VARIANTS["static"], SMALL, Plan(1.0, scenes=4, each=1), WORDS, material(4))
    for _ in range(3):
        training.step(0.0)
    low = {
        k: x for k, x in training.net.state_dict().items() if k.endswith(("maa_w1", "maa_w2", "decay_w1", "decay_w2"))
    }
    assert len(low) == 4 * SMALL.layers
    assert not any(bool(x.any()) for x in low.values())


def test_what_is_asked_does_not_depend_on_the_template() -> None:
    scenes = [scene_of(s) for s in range(10)]
    drawn = {p: draw_rows(WORDS, prompt_of(p), scenes, 3, random.Random(4), 16) for p in ("first", "middle", "last")}
    assert [r.item for r in drawn["first"]] == [r.item for r in drawn["middle"]] == [r.item for r in drawn["last"]]
    tokenizer = Tokenizer(VOCABULARY)
    for position, rows in drawn.items():
        for row in rows:
            pieces = conversation_pieces(prompt_of(position), [Turn(row.item.question, 1, row.item.answer)])
            whole = [
                i for p in pieces for i in ([WORDS.image] * 16 if isinstance(p, ImageSlot) else tokenizer.encode(p))
            ]
            assert row.ids == whole
            assert tokenizer.decode(row.ids[row.answer_at :]) == f" {row.item.answer}\n\n"
            assert row.ids[row.image_at : row.image_at + 16] == [WORDS.image] * 16


def test_padding_and_the_order_of_rows_change_nothing() -> None:
    net, seen = lively("sandwich"), material(6)
    rows = draw_rows(WORDS, prompt_of("middle"), seen.scenes, 2, random.Random(2), 16)
    with torch.no_grad():
        stream = net(collate(rows, seen.tokens))[-1]
        for i in (0, len(rows) - 1):
            alone = net(collate([rows[i]], seen.tokens))[-1][0]
            torch.testing.assert_close(stream[i, : len(alone)], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "matters"), [("sandwich", True), ("forward", False)])
def test_only_a_bidirectional_picture_is_read_backwards(name: str, matters: bool) -> None:
    """The first image token knows the last one only where odd layers read backwards."""
    net, seen = lively(name), material(1)
    row = draw_rows(WORDS, prompt_of("middle"), seen.scenes, 1, random.Random(2), 16)[0]
    other = seen.tokens.clone()
    other[:, -1] += 1
    with torch.no_grad():
        streams = [net(collate([row], tokens))[-1][0, row.image_at] for tokens in (seen.tokens, other)]
    assert bool((streams[0] - streams[1]).abs().max() > 1e-4) is matters


@pytest.mark.parametrize("name", list(VARIANTS))
def test_configurations_are_the_exporters(name: str) -> None:
    variant = VARIANTS[name]
    config = ExportConfig.from_dict(export_config(variant, SMALL, WORDS.ids("\n\n")[0], VOCABULARY.name))
    assert config.image_position == variant.position
    assert config.version == ("6.21" if name == "hm" else "6.00")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sandwich", "forward", "last", "hm"])
def test_a_bundle_has_the_trained_models_logits(name: str, tmp_path: Path) -> None:
    net, seen = lively(name), material(3)
    write_checkpoint(net, WORDS, tmp_path)
    row = draw_rows(WORDS, prompt_of(net.variant.position), seen.scenes[2:], 1, random.Random(0), 16)[0]
    with VisualRWKV.load(bundle_of(tmp_path, name), threads=1) as model:
        engine = model.engine
        state = engine.new_state()
        theirs = [read(model, seen.tokens[2].numpy(), row.item.question, state).copy()]
        greedy = [int(theirs[0].argmax())]
        for _ in range(5):
            theirs.append(engine.advance(greedy[-1:], state).copy())
            greedy.append(int(theirs[-1].argmax()))
        said = answer(model, seen.tokens[2].numpy(), row.item.question, longest=2)
        assert said == model.tokenizer.decode(greedy[:2]).split("\n\n")[0].strip()
    row.ids = row.ids[: row.answer_at] + greedy[:-1]
    with torch.no_grad():
        ours = net.logits(net(collate([row], seen.tokens[2:]))[-1])[0, row.answer_at - 1 :].numpy()
    assert np.abs(ours).max() > 1
    np.testing.assert_allclose(np.stack(theirs), ours, atol=TOLERANCE, rtol=0)


def test_a_difference_is_judged_over_scenes() -> None:
    rng = np.random.default_rng(0)
    worse = rng.random(400) < 0.5
    better = worse | (rng.random(400) < 0.2)
    apart = np.arange(400)
    mean, low, high = paired(better, worse, apart)
    assert mean == pytest.approx(float(better.mean() - worse.mean()))
    spread = (better.astype(float) - worse).std(ddof=1) / math.sqrt(400)
    assert (low, high) == pytest.approx((mean - 1.96 * spread, mean + 1.96 * spread))
    together = paired(np.repeat(better, 4), np.repeat(worse, 4), np.repeat(apart, 4))
    assert together == pytest.approx((mean, low, high))  # asking the same four times proves nothing more
    assert (verdict(low, high), verdict(-high, -low), verdict(-0.1, 0.1)) == ("holds", "does not hold", "undecided")


def test_the_table_names_every_variant_and_claim() -> None:
    scenes = [scene_of(s) for s in range(20)]
    rows = draw_rows(WORDS, prompt_of("first"), scenes, 3, random.Random(4), 16)
    right = np.arange(len(rows)) % 2 == 0
    found = {
        "guess": {"title": "guess", **scores(guess(rows), rows)},
        "variants": {n: {"title": v.title, **scores(right, rows)} for n, v in VARIANTS.items()},
        "claims": [
            {"says": c.says, "difference": 0.0, "low": -0.1, "high": 0.1, "verdict": "undecided"} for c in CLAIMS
        ],
    }
    text = table(found)
    assert all(v.title in text for v in VARIANTS.values()) and all(c.says in text for c in CLAIMS)
    assert f"{right.mean():.1%}" in text


def test_a_guess_is_the_most_frequent_answer_of_its_kind() -> None:
    rows = draw_rows(WORDS, prompt_of("first"), [scene_of(s) for s in range(40)], 4, random.Random(4), 16)
    told = guess(rows)
    for kind in ("exist", "shape"):
        said = [r.item.answer for r in rows if r.item.kind == kind]
        hits = told[[i for i, r in enumerate(rows) if r.item.kind == kind]]
        assert hits.sum() == max(said.count(a) for a in said)
