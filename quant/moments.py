"""What the matrices of a model are multiplied with: X^T X of the inputs that real prompts bring, in bounded memory.

The float bundle runs in onnxruntime as always; beside its outputs it is asked for what enters every product with a
weight. Weights can be used where they lie in the file, so a big model takes the memory of the moments alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from quant.conversation import QUESTIONS, Gallery, talk
from quant.edited import EditedBackend, is_large
from quant.gptq import compensate
from quant.graph import Rounding, matrices
from quant.recipe import Recipe
from quant.weights import BlockFormat, quantize
from runtime.bundle import Bundle
from runtime.engine import Engine
from runtime.errors import InputError
from runtime.tokenizer import Tokenizer

TURNS = 64  # each a picture, a question and the model's own answer
TURNS_TOGETHER = 4  # in one conversation
LIMIT = 2 << 30  # bytes of moments; where blocks of 1024 inputs would take more, smaller ones are kept
_BLOCK, _SMALLEST = 1024, 128  # inputs whose dependence on each other is learned; multiples of every format's block
_SAMPLES = 4  # rows per input, below which dependence is not learned but made up

Moments = dict[str, list[np.ndarray]]
"""Matrix -> blocks [b, b] float32 of the diagonal of X^T X, as `quant.gptq.compensate` takes them."""
Progress = Callable[[str, int, int], None]


def collect(
    bundle: Bundle,
    recipe: Recipe,
    gallery: Gallery,
    *,
    turns: int = TURNS,
    threads: int | None = None,
    questions: Sequence[str] = QUESTIONS,
    progress: Progress = lambda stage, done, total: None,
) -> Moments:
    """Let the float model talk about pictures, and note what its matrices are multiplied with.

    Args:
        bundle: a float32 bundle.
        recipe: only matrices it quantises are noted.
        gallery: pictures; may be empty for a text model.
        turns: how many questions are asked, about one picture each.
        threads: compute threads.
        questions: what is asked.
        progress: called with ("calibrate", turns done, turns).

    Returns:
        Moments by initializer of the step graph. The same pictures give the same moments.

    Raises:
        InputError: the model gives NaN or Inf for the pictures.
    """
    listener = _Listener(recipe)
    backend = EditedBackend("step", listener.edit, threads=threads, mapped=is_large(bundle))
    backend.hear = listener.hear
    engine = Engine(bundle, backend)
    try:
        tokenizer = Tokenizer(bundle.file(bundle.manifest.tokenizer.file))
        said = talk(engine, tokenizer, gallery, questions=questions, fresh=TURNS_TOGETHER)
        progress("calibrate", 0, turns)
        for done, _ in enumerate(itertools.islice(said, turns)):
            progress("calibrate", done + 1, turns)
    finally:
        engine.close()
    if not all(np.isfinite(block).all() for sums in listener.sums.values() for block in sums):
        raise InputError("the model gives NaN or Inf for these pictures", hint="does it answer? ask it one of them")
    return {name: _trusted(listener.sums[source], listener.rows[source]) for name, source in listener.sources.items()}


def calibrated(moments: Moments) -> Rounding:
    """Return the rounding that makes up for errors where moments are known, and is plain elsewhere."""

    def rounding(name: str, weight: np.ndarray, fmt: BlockFormat) -> tuple[np.ndarray, ...]:
        return compensate(weight, moments[name], fmt) if name in moments else quantize(weight, fmt)

    return rounding


def block_size(widths: Sequence[int], limit: int = LIMIT) -> int:
    """Return how many inputs a block of moments has, so that all matrices with so many inputs stay in `limit` bytes."""
    size = _BLOCK
    while size > _SMALLEST and sum(4 * width * min(size, width) for width in widths) > limit:
        size //= 2
    return size


def _trusted(sums: list[np.ndarray], rows: int) -> list[np.ndarray]:
    """Cut blocks so small that there were several rows for every input."""
    size = _BLOCK
    while size > _SMALLEST and rows < _SAMPLES * size:
        size //= 2
    cuts = [(block, i) for block in sums for i in range(0, len(block), size)]
    return [np.ascontiguousarray(block[i : i + size, i : i + size]) for block, i in cuts]


class _Listener:
    """Makes what enters products an output of the step graph, and sums its moments."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.sources: dict[str, str] = {}  # matrix -> what it is multiplied with
        self.sums: dict[str, list[np.ndarray]] = {}
        self.rows: dict[str, int] = {}

    def edit(self, model: ir.Model) -> None:
        widths: dict[str, int] = {}
        for name, value in matrices(model, self._recipe).items():
            sources = [node.inputs[0] for node, _ in value.uses()]
            source = sources[0]
            if any(other is not source for other in sources):  # in several products: rounded plainly
                continue
            assert source is not None and source.name is not None and value.const_value is not None
            self.sources[name] = source.name
            if source.name not in widths:
                widths[source.name] = value.const_value.shape.numpy()[0]
                source.type = ir.TensorType(ir.DataType.FLOAT)
                model.graph.outputs.append(source)
        size = block_size(list(widths.values()))
        for name, width in widths.items():
            sides = [min(size, width - i) for i in range(0, width, size)]
            self.sums[name], self.rows[name] = [np.zeros((side, side), np.float32) for side in sides], 0

    def hear(self, name: str, array: np.ndarray) -> None:
        """Add rows [.., K] to the moments of an input."""
        rows = array.reshape(-1, array.shape[-1])
        self.rows[name] += len(rows)
        start = 0
        for block in self.sums[name]:
            part = rows[:, start : start + len(block)]
            block += part.T @ part
            start += len(block)
