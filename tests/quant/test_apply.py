"""Float bundle -> quantised bundle, and back to what its codes stand for."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from quant.apply import quantise
from quant.dequantised import coded, twin
from quant.folder import destination
from quant.recipe import RECIPES
from quant.report import product_error, read_per_token, rows, tensor_table
from quant.weights import FORMATS, dequantize, quantize
from runtime.bundle import Bundle
from runtime.errors import BundleError, ExportError


def weights(bundle: Bundle) -> dict[str, Any]:
    model = ir.load(bundle.file("step.onnx"))
    return {name: value.const_value for name, value in model.graph.initializers.items()}


def test_the_exporter_makes_the_same_bundle(
    golden: Path, export: Callable[..., Path], float_text: Bundle, tmp_path: Path
) -> None:
    exported = Bundle.open(export(golden / "rwkv7_text.pth", precision="int8"))
    tmp_path.joinpath("made").mkdir()
    made = quantise(float_text, tmp_path / "made", RECIPES["int8"], name="made")
    assert Bundle.open(made.path).manifest == made.manifest
    assert made.manifest.precision_map == exported.manifest.precision_map
    assert made.manifest.provenance == exported.manifest.provenance
    for name in set(made.manifest.files) - {"quality.json"}:
        assert made.manifest.files[name] == exported.manifest.files[name], name


def test_only_a_float_bundle_can_be_quantised(demo_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="in int8 already"):
        quantise(Bundle.open(demo_bundle), tmp_path, RECIPES["int4"], name="x")


def test_the_twin_holds_what_the_codes_stand_for(float_demo: Bundle, tmp_path: Path) -> None:
    for name in ("small", "twin"):
        (tmp_path / name).mkdir()
    small = quantise(float_demo, tmp_path / "small", RECIPES["int4"], name="small")
    back = twin(small, tmp_path / "twin")
    assert Bundle.open(back.path).manifest == back.manifest
    exact, found = weights(float_demo), weights(back)
    assert set(found) == set(exact)
    formats = {one.name: one.format for one in coded(ir.load(small.file("step.onnx")))}
    assert {fmt.name for fmt in formats.values()} == {"int4-b32", "int8-b32"}
    for name, fmt in formats.items():
        weight = exact[name].numpy()
        wanted = dequantize(quantize(weight, fmt), len(weight), fmt)
        np.testing.assert_array_equal(found[name].numpy(), wanted)


def test_every_matrix_is_told(float_demo: Bundle, tmp_path: Path) -> None:
    small = quantise(float_demo, tmp_path, RECIPES["int4"], name="small")
    found = {row.name: row for row in rows(small, float_demo)}
    stored = {rule.format: 0 for rule in small.manifest.precision_map}
    for row in found.values():
        stored[row.format] += row.bytes
    for fmt in FORMATS:
        assert stored.get(fmt, 0) == sum(r.bytes for r in small.manifest.precision_map if r.format == fmt)
    assert read_per_token(small) < 0.5 * read_per_token(float_demo)
    assert found["blocks.0.att.key"].snr > 35 > 25 > found["blocks.3.att.key"].snr > 15
    table = tensor_table(list(found.values()), 3).splitlines()
    assert len(table) == 5 and table[-1] == f"and {len(found) - 3} more (--all shows them)"


def test_product_error_is_that_of_the_products() -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((50, 48)), rng.standard_normal((48, 8))
    error = 0.1 * rng.standard_normal((48, 8))
    wanted = np.linalg.norm(x @ error) / np.linalg.norm(x @ weight)
    assert product_error(weight, error, [x.T @ x]) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("failure", "raised", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ExportError, "full"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_nothing_half_written_stays(
    float_text: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    raised: type[BaseException],
    text: str | None,
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        (tmp_path / "witness").touch()
        raise failure

    monkeypatch.setattr("quant.apply.ir.save", fail)
    with pytest.raises(raised, match=text), destination(tmp_path / "out", overwrite=False) as folder:
        quantise(float_text, folder, RECIPES["int8"], name="out")
    assert [path.name for path in tmp_path.iterdir()] == ["witness"]
