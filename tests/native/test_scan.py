"""Pictures that layers read in different orders: against onnxruntime, and whatever else is in the same call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from runtime.backends.native import NativeBackend
from runtime.backends.ort import OrtBackend
from runtime.bundle import Bundle
from runtime.engine import Engine
from runtime.native.step import unavailable
from runtime.scan import scan_positions
from runtime.spec import ScanOrder, ScanSpec
from runtime.state import State
from tests.native.feeding import SLOTS, apart, new_state, same, tokens

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=f"{unavailable()}: pip install -e . with a C++ compiler")
BOTH: tuple[ScanOrder, ...] = ("natural", "reversed") * 2
FOUR: tuple[ScanOrder, ...] = ("natural", "reversed", "transposed", "transposed_reversed")
LOGITS = STATE = 1e-4  # absolute, float32 weights: the tolerance of tests/test_golden.py


def reading(bundle: Bundle, orders: tuple[ScanOrder, ...]) -> Bundle:
    """The same model with other orders in its manifest."""
    vision = bundle.manifest.vision
    assert vision is not None
    return replace(bundle, manifest=replace(bundle.manifest, vision=replace(vision, scan=ScanSpec(orders, 0))))


@pytest.mark.parametrize("orders", [BOTH, FOUR], ids=["both", "four"])
def test_pictures_are_onnxruntimes(orders: tuple[ScanOrder, ...], bundle: Callable[..., Bundle]) -> None:
    model = reading(bundle("fp32", "v60"), orders)
    mine, theirs = Engine(model, NativeBackend(2, required=True)), Engine(model, OrtBackend(1))
    states = new_state(mine), new_state(theirs)
    for length, image in ((3, None), (40, (4, 29)), (301, (7, 296)), (1, None), (9, (0, 9))):
        fed = tokens(mine, length, seed=length)
        found = mine.advance(fed, states[0], image)
        wanted = theirs.advance(fed, states[1], image)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=LOGITS)
        assert apart(*states) < STATE
    mine.close()
    theirs.close()


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_text_beside_a_picture_changes_no_bit(precision: str, native: Callable[..., Engine]) -> None:
    engine, threaded = native(precision, "v60"), native(precision, "v60", threads=3)
    fed, (start, stop) = tokens(engine, 330), (17, 306)
    whole, cut, threads = new_state(engine), new_state(engine), new_state(threaded)
    wanted = engine.advance(fed, whole, (start, stop)).copy()
    engine.advance(fed[:start], cut)
    engine.advance(fed[start:stop], cut, (0, stop - start))
    np.testing.assert_array_equal(engine.advance(fed[stop:], cut), wanted)
    np.testing.assert_array_equal(threaded.advance(fed, threads, (start, stop)), wanted)
    assert same(cut, whole)
    assert same(threads, whole)
    natural = new_state(engine)
    assert np.abs(engine.advance(fed, natural) - wanted).max() > 100 * LOGITS


def test_pictures_in_a_batch_have_the_bits_of_one_alone(native: Callable[..., Engine]) -> None:
    engine, batch, length = native("int8", "v60"), 3, 60
    scan = engine.backend.allocate((4, length), "int64")
    scan.write(scan_positions(BOTH, length, 5, 55))

    def run(rows: np.ndarray) -> tuple[np.ndarray, State]:
        state = new_state(engine, len(rows))
        x, logits = (engine.backend.allocate(shape, "float32") for shape in (rows.shape, (len(rows), 512)))
        x.write(rows)
        step = engine.backend.step  # type: ignore[attr-defined]
        step.run({"embeddings": x, "scan": scan, **state.inputs}, {"logits": logits, **state.outputs})
        state.swap()
        return logits.read(), state

    rows = np.stack([engine.embed(tokens(engine, length, seed=i)) for i in range(batch)])
    together, shared = run(rows)
    for lane in range(batch):
        alone, state = run(rows[lane : lane + 1])
        np.testing.assert_array_equal(together[lane], alone[0])
        for slot in SLOTS:
            np.testing.assert_array_equal(shared.array(slot)[:, lane], state.array(slot)[:, 0])
