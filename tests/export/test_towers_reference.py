"""Every vision design, as a torch module and as a graph in onnxruntime, against the plain NumPy reference."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from export.archspec import ArchSpec
from export.checkpoint import Checkpoint
from export.towers.compressor import Compressor
from export.towers.vision import VisionModel
from export.trace import fill, finish, trace
from export.weights import Loadable, load_weight
from quant.fused import fuse
from tests.export import numpy_towers as reference
from tests.export import tower_models as tiny

RELATIVE = 1e-5
WINDOWS = [3, 0]

Array = np.ndarray
Pixels = dict[str, Array]


def clip_tokens(w: reference.Weights, pixels: Pixels) -> Array:
    return reference.clip(w, pixels["clip"], 2, 2)


def v610_cells(w: reference.Weights, pixels: Pixels) -> Array:
    return reference.hf_siglip(w, pixels["siglip"], 2, 2)


def pair_cells(w: reference.Weights, pixels: Pixels) -> Array:
    towers = [
        reference.timm(w, f"vit.{name}_featurizer.", pixels[name], 2, heads)
        for name, heads in (("dino", 3), ("siglip", 2))
    ]
    return np.concatenate(towers, -1)


def three(w: reference.Weights, pixels: Pixels, suffix: str = "") -> list[Array]:
    dino, siglip, sam = (pixels[f"{name}{suffix}"] for name in ("dino", "siglip", "sam"))
    return [
        reference.timm(w, "vit.dino_featurizer.", dino, 2, 3),
        reference.timm(w, "vit.siglip_featurizer.", siglip, 2, 2),
        reference.sam(w, sam, WINDOWS, 2),
    ]


def fused_cells(w: reference.Weights, pixels: Pixels) -> Array:
    return np.concatenate(three(w, pixels), -1)


def uhd_cells(w: reference.Weights, pixels: Pixels) -> Array:
    return reference.uhd([three(w, pixels, suffix) for suffix in ("", "_tl", "_tr", "_bl", "_br")])


@dataclass
class Case:
    version: str
    shapes: tiny.Shapes
    tower: Callable[[reference.Weights, Pixels], Array]
    form: str
    width: int
    pool: Callable[[Array], Array] = lambda x: x
    tokens: int = 16
    config: tuple[str, dict[str, Any]] = ("sam+dino+siglip", tiny.TIMM)
    changes: dict[str, Any] = field(default_factory=dict)

    def open(self, folder: Path) -> tuple[Checkpoint, ArchSpec]:
        family = "rwkv7" if self.version.startswith("7") else "rwkv6"
        shapes = tiny.language(family) | self.shapes | tiny.projector(self.form, self.width)
        checkpoint = tiny.saved(shapes, folder)
        config = tiny.config(*self.config)
        spec = tiny.specification(checkpoint, config, self.version, num_token_per_image=self.tokens, **self.changes)
        return checkpoint, spec


def clip_case(version: str, side: int, grid: int | None, tokens: int) -> Case:
    return Case(
        version,
        tiny.hugging_face(24, side, 3, 2, clip=True),
        clip_tokens,
        "linear",
        48 if version == "6.01" else 24,
        lambda x: (reference.mirrored if version == "6.01" else np.asarray)(
            reference.grid_pooling(x, -1 if grid is None else grid)
        ),
        tokens,
        ("clip", tiny.HF),
        {"grid_size": grid},
    )


PAIR = tiny.timm("dino", 24, 4, 2, 2) | tiny.timm("siglip", 16, 4, 3, 2)
CASES = {
    "v6.0, every patch": clip_case("6.00", 4, None, 17),
    "v6.0, class token": clip_case("6.00", 4, 0, 1),
    "v6.0, mean": clip_case("6.00", 4, 1, 2),
    "v6.0, grid 2 of 4": clip_case("6.00", 4, 2, 5),
    "v6.0, grid 3 of 5": clip_case("6.00", 5, 3, 26),  # squares of one patch: 5 x 5, not 3 x 3
    "v6.0, grid 2 of 5": clip_case("6.00", 5, 2, 5),  # the last row and column are left out
    "v6.01": clip_case("6.01", 4, -1, 17),
    "v6.01, grid 2": clip_case("6.01", 4, 2, 5),
    "v6.10": Case(
        "6.10",
        tiny.hugging_face(16, 3, 4, 2, clip=False),
        v610_cells,
        "linear",
        16,
        lambda x: np.concatenate([x, x.mean(0, keepdims=True)]),
        10,
        ("siglip", tiny.HF | {"image_size": 14}),  # as 384 = 27 * 14 + 6: the rest is left out
    ),
    "v6.11": Case("6.11", PAIR, pair_cells, "linear", 40, config=("dino+siglip", tiny.TIMM)),
    "HD": Case("6.12", tiny.fused(), fused_cells, "mlp-hd", 52),
    "HD, linear": Case("6.12", tiny.fused(), fused_cells, "linear", 52),
    "UHD": Case("6.13", tiny.fused(), uhd_cells, "mlp-uhd", 104),
    "UHD, linear": Case("6.13", tiny.fused(), uhd_cells, "linear", 104),
    "v6.20": Case("6.20", tiny.fused(), fused_cells, "mlp-hd", 52, lambda x: reference.adaptive(x, 2), 4),
    "HM": Case(
        "6.21",
        tiny.fused(),
        fused_cells,
        "mlp-hd",
        52,
        lambda x: reference.adaptive(x, 3),
        9,
        changes={"state_encoder": tiny.HM},
    ),
    "HM v6.22, linear": Case("6.22", tiny.fused(), fused_cells, "linear", 52, changes={"state_encoder": tiny.HM}),
    "v7.03": Case(
        "7.03",
        tiny.hugging_face(16, 3, 4, 2, clip=False),
        v610_cells,
        "mlp",
        16,
        tokens=4,  # of a picture, after the compressor: the vision graph makes one for every cell
        config=("siglip", tiny.HF),
        changes={"compressor_layers": 3},
    ),
}


def graph(module: Loadable, checkpoint: Checkpoint, inputs: dict[str, Array], outputs: Sequence[str], dims: Any) -> Any:
    """The outputs of a module's ONNX graph, traced without weights as the exporter does."""
    return running(traced(module, checkpoint, inputs, outputs, dims), list(inputs), outputs)


def traced(
    module: Loadable, checkpoint: Checkpoint, inputs: dict[str, Array], outputs: Sequence[str], dims: Any
) -> ir.Model:
    with torch.device("meta"):
        examples = {name: torch.empty(x.shape) for name, x in inputs.items()}
    model = trace(module, examples, outputs, dims)
    sources = module.sources()
    fill(model, lambda name: load_weight(checkpoint, sources[name]).numpy())
    finish(model)
    return model


def running(model: ir.Model, inputs: list[str], outputs: Sequence[str]) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    assert [item.name for item in session.get_inputs()] == inputs
    return lambda feeds: session.run(list(outputs), feeds)


def close(found: Any, wanted: Array) -> None:
    found = np.asarray(found)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= RELATIVE * np.abs(wanted).max()


def pixels_of(spec: ArchSpec, count: int) -> tuple[VisionModel, Pixels]:
    with torch.device("meta"):
        module = VisionModel(spec)
    random = np.random.default_rng(3)
    shapes = {view.name: (count, 3, view.height, view.width) for view in module.view_specs()}
    return module, {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def expected(case: Case, spec: ArchSpec, checkpoint: Checkpoint, pixels: Pixels) -> list[Array]:
    """What the reference makes of a batch: embeddings, and features with a state encoder."""
    w, images = tiny.weights(checkpoint), []
    for index in range(len(next(iter(pixels.values())))):
        cells = case.tower(w, {view: x[index].astype(np.float64) for view, x in pixels.items()})
        embeddings = reference.project(w, case.pool(cells), case.form)
        embeddings = embeddings if spec.compressor_layers else reference.ln0(w, embeddings)
        images.append([embeddings] + ([reference.project(w, cells, case.form)] if spec.state_encoder else []))
    return [np.stack(parts) for parts in zip(*images, strict=True)]


@pytest.mark.parametrize("name", CASES)
def test_module(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    checkpoint, spec = case.open(tmp_path)
    module, pixels = pixels_of(spec, 2)
    wanted = expected(case, spec, checkpoint, pixels)
    assert [output.name for output in module.outputs] == ["embeddings", "context_features"][: len(wanted)]
    assert [output.shape for output in module.outputs] == [("I", *x.shape[1:]) for x in wanted]
    with torch.no_grad():
        found = tiny.loaded(VisionModel, spec, checkpoint)(*map(torch.from_numpy, pixels.values()))
    for ours, theirs in zip(found if len(wanted) > 1 else [found], wanted, strict=True):
        close(ours, theirs)


@pytest.mark.parametrize(
    "name",
    [
        "v6.0, grid 2 of 5",
        "v6.01",
        "v6.10",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("v6.11", "HD", "UHD", "v6.20", "HM")),
    ],
)
def test_graph(name: str, tmp_path: Path) -> None:
    """One graph of each design, plain and as a CPU gets it, for a batch and for one image of it."""
    case = CASES[name]
    checkpoint, spec = case.open(tmp_path)
    module, pixels = pixels_of(spec, 2)
    wanted = expected(case, spec, checkpoint, pixels)
    images = torch.export.Dim("I", min=1, max=64)
    outputs = [output.name for output in module.outputs]
    model = traced(module, checkpoint, pixels, outputs, {view: {0: images} for view in pixels})
    runs = [running(model, list(pixels), outputs)]
    blocks = sum(node.op_type == "Softmax" for node in model.graph)
    assert fuse(model) == blocks > 0
    plain = {"Softmax", "Erf", "Tanh", *(["Sigmoid"] if case.form == "linear" else [])}  # a gate has one of its own
    assert not plain & {node.op_type for node in model.graph}
    runs.append(running(model, list(pixels), outputs))
    for run, start in itertools.product(runs, (0, 1)):
        found = run({view: x[start:] for view, x in pixels.items()})
        for ours, theirs in zip(found, wanted, strict=True):
            close(ours, theirs[start:])


@pytest.mark.parametrize("layers", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_compressor(layers: int, tmp_path: Path) -> None:
    shapes = tiny.language("rwkv7") | tiny.hugging_face(16, 3, 4, 1, clip=False) | tiny.projector("mlp", 16)
    checkpoint = tiny.saved(shapes | tiny.compressor(layers), tmp_path)
    config = tiny.config("siglip", tiny.HF)
    spec = tiny.specification(checkpoint, config, "7.03", compressor_layers=layers)
    random = np.random.default_rng(4)
    w = tiny.weights(checkpoint)
    module = tiny.loaded(Compressor, spec, checkpoint)

    def given(tokens: int, pooled: int, pads: int) -> tuple[dict[str, Array], Array]:
        x = random.standard_normal((1, tokens, tiny.WIDTH)).astype(np.float32)
        x[:, :pads] = 0  # zero vectors in front, which no average takes
        pooling = np.zeros((pooled, tokens), np.float32)
        for row in range(pooled):
            start, stop = row * (tokens - pads) // pooled, -(-(row + 1) * (tokens - pads) // pooled)
            pooling[row, pads + start : pads + stop] = 1 / (stop - start)
        wanted = reference.compressor(w, x[0].astype(np.float64), layers, pooling.astype(np.float64))
        return {"embeddings": x, "pooling": pooling}, wanted[None]

    cases = [given(16, 4, 7), given(48, 9, 3), given(33, 33, 0)]
    for inputs, wanted in cases:
        with torch.no_grad():
            close(module(*map(torch.from_numpy, inputs.values())), wanted)
    if layers == 1:
        return
    with torch.device("meta"):
        empty = Compressor(spec)
    length, pooled = torch.export.Dim("T", min=1, max=1 << 16), torch.export.Dim("P", min=1, max=1 << 16)
    dims = {"embeddings": {1: length}, "pooling": {0: pooled, 1: length}}
    run = graph(empty, checkpoint, cases[0][0], ["embeddings_out"], dims)
    for inputs, wanted in cases:
        close(run(inputs)[0], wanted)


def test_odd_layers_of_the_compressor_read_backwards(tmp_path: Path) -> None:
    """With two layers a late token changes what an early one becomes; with one it does not."""
    for layers, reached in ((1, False), (2, True)):
        shapes = tiny.language("rwkv7") | tiny.hugging_face(16, 3, 4, 1, clip=False) | tiny.projector("mlp", 16)
        checkpoint = tiny.saved(shapes | tiny.compressor(layers), tmp_path)
        config = tiny.config("siglip", tiny.HF)
        spec = tiny.specification(checkpoint, config, "7.04", compressor_layers=layers)
        module = tiny.loaded(Compressor, spec, checkpoint)
        x = torch.randn(1, 8, tiny.WIDTH, generator=torch.Generator().manual_seed(5))
        changed = x.clone()
        changed[:, -1, 0] += 1
        with torch.no_grad():
            difference = (module(x, torch.eye(8)) - module(changed, torch.eye(8)))[:, :7].abs().max()
        assert (difference > 1e-3) == reached
