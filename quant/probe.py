"""What each matrix costs by itself: a float model in which single matrices are exchanged between runs.

The matrices become inputs of the graph, so one loaded model answers for every matrix and format. The error is that of
the weights alone; how the kernel rounds activations is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from quant.conversation import QUESTIONS, Gallery, Said, hear, talk
from quant.edited import EditedBackend
from quant.graph import Rounding, matrices
from quant.recipe import Recipe
from quant.weights import BlockFormat, dequantize
from runtime.bundle import Bundle
from runtime.cache import Cache
from runtime.engine import Engine
from runtime.tokenizer import Tokenizer

TURNS = 6
_CACHE = 64 << 20
Progress = Callable[[str, int, int], None]


class Probe:
    """A float bundle whose matrices can be exchanged. Close it, or use it in a `with` block.

    Args:
        bundle: a float32 bundle.
        recipe: which matrices can be exchanged: those it quantises.
        gallery: pictures that are asked about.
        turns: how many questions the logits are compared over.
        threads: compute threads.
        questions: what is asked.
    """

    def __init__(
        self,
        bundle: Bundle,
        recipe: Recipe,
        gallery: Gallery,
        *,
        turns: int = TURNS,
        threads: int | None = None,
        questions: Sequence[str] = QUESTIONS,
    ) -> None:
        self._recipe, self._gallery = recipe, gallery
        self.weights: dict[str, np.ndarray] = {}  # [K, N] float32 each, where they lie in the file
        self._backend = EditedBackend("step", self._edit, threads=threads)
        self._engine = Engine(bundle, self._backend)
        self._tokenizer = Tokenizer(bundle.file(bundle.manifest.tokenizer.file))
        self._cache = Cache(_CACHE)
        self._turns: list[Said] = []
        self._exact: list[np.ndarray] = []
        said = talk(self._engine, self._tokenizer, gallery, questions=questions, fresh=1, cache=self._cache)
        for _, turn, logits in said:
            self._turns.append(turn)
            self._exact += logits
            if len(self._turns) == turns:
                break

    def error(self, exchanged: dict[str, np.ndarray]) -> float:
        """Return the relative error of the logits with other values [K, N] for some matrices."""
        self._backend.inputs = {**self.weights, **exchanged}
        heard = hear(self._engine, self._tokenizer, self._gallery, self._turns, fresh=1, cache=self._cache)
        found = [one for _, logits in heard for one in logits]
        self._backend.inputs = self.weights
        difference = sum(
            float(np.square(a - b, dtype=np.float64).sum()) for a, b in zip(found, self._exact, strict=True)
        )
        scale = sum(float(np.square(a, dtype=np.float64).sum()) for a in self._exact)
        return float(np.sqrt(difference / max(scale, 1e-30)))

    def rounded(self, name: str, fmt: BlockFormat, rounding: Rounding) -> np.ndarray:
        """Return a matrix as a format would store it, [K, N] float32."""
        weight = self.weights[name]
        return dequantize(rounding(name, weight, fmt), len(weight), fmt)

    def close(self) -> None:
        """Release the model. Safe to call twice."""
        self._engine.close()

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _edit(self, model: ir.Model) -> None:
        for name, value in matrices(model, self._recipe).items():
            assert value.const_value is not None
            self.weights[name] = np.asarray(value.const_value.numpy())
            value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(self.weights[name].shape)
            del model.graph.initializers[name]
            value.const_value = None
            model.graph.inputs.append(value)
        self._backend.inputs = self.weights
