"""What a bundle is: frozen dataclasses and their strict JSON form, the manifest.

This is the single source of names, shapes and dtypes. The exporter writes it and the runtime reads it; neither knows
a tensor that is not declared here. Reading is strict: an unknown key, a missing key or a value of the wrong type
raises `SchemaError` with the path of the offending value.

Axes of a shape are integers, or a letter for a size known only at run time: "B" batch, "T" tokens of a segment,
"I" images.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from runtime.errors import SchemaError

SCHEMA_VERSION = 2
MANIFEST_FILE = "manifest.json"

Axis = int | str
ImagePosition = Literal["first", "last", "middle"]
Padding = Literal["none", "left16"]
ScanOrder = Literal["natural", "reversed", "transposed", "transposed_reversed"]
TextOnly = Literal["plain", "zero_block", "black_picture"]


@dataclass(frozen=True)
class TensorSpec:
    """One graph input or output."""

    name: str
    dtype: str  # NumPy name: "float32", "uint8", "int64"
    shape: tuple[Axis, ...]

    def resolve(self, **sizes: int) -> tuple[int, ...]:
        """Return the concrete shape, taking lettered axes from `sizes`, e.g. `resolve(B=1, T=16)`."""
        return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in self.shape)


@dataclass(frozen=True)
class SlotSpec:
    """One tensor carried between calls of the step graph. Graph input `name`, graph output `name + "_out"`."""

    name: str
    dtype: str
    shape: tuple[Axis, ...]  # e.g. (12, "B", 12, 64, 64)
    axes: tuple[str, ...]  # e.g. ("layer", "batch", "head", "key", "value")
    role: Literal["carried", "context"]  # a context slot (an image state) is read, never written

    def resolve(self, batch: int) -> tuple[int, ...]:
        """Return the concrete shape for a batch size."""
        return tuple(axis if isinstance(axis, int) else batch for axis in self.shape)


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX file. `name` is "step", "vision", "context" (image features -> image state) or "compressor"."""

    name: str
    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    custom_ops: tuple[str, ...]  # "vrwkv::WKV7": nodes with a function body, or a plugin


@dataclass(frozen=True)
class EmbeddingSpec:
    """The token embedding table, outside the graphs, row-major, with ln0 already applied to every row."""

    file: str
    dtype: Literal["float32", "float16"]
    rows: int
    width: int
    zero_row: int | None = None  # what ln0 makes of a zero vector, where the model is fed such (v6.0 without a picture)


@dataclass(frozen=True)
class ViewSpec:
    """One image the vision graph wants, made from a picture; the graph input has the same name, [I, 3, height, width].

    pixel = (resized / 255 - mean) / std, RGB. A "stretch" ignores the aspect; "crop" resizes the short side, then
    crops the centre. `kind` "features" means the graph takes precomputed features instead of pixels.
    """

    name: str
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["bicubic", "bilinear", "lanczos"]
    fit: Literal["stretch", "crop"]
    kind: Literal["pixels", "features"]
    tile: tuple[int, int, int] = (1, 0, 0)  # (n, row, column): one cell of the picture cut n x n, sizes rounded down


@dataclass(frozen=True)
class RegionSpec:
    """Cutting a picture into regions, each encoded as an image of its own (v7.02 to v7.04).

    `waste` is what the choice of a canvas minimises: "fit", |canvas area - area of the picture fitted into it|, or
    "fit_and_area", that plus |canvas area - area of the picture|.
    """

    size: int
    interpolation: Literal["bicubic", "bilinear", "lanczos"]
    waste: Literal["fit", "fit_and_area"] = "fit"


@dataclass(frozen=True)
class ScanSpec:
    """The order in which layers read an image: layer i takes `orders[i % len(orders)]`.

    An image is then fed in one call of the step graph, whose input "scan" [len(orders), T] int64 holds the positions
    of the segment in each order. The last `fixed` tokens of an image keep their place (v6.0: the class token).
    """

    orders: tuple[ScanOrder, ...]
    fixed: int


@dataclass(frozen=True)
class ContextSpec:
    """How the pictures of a turn become the context slot (HM's image state).

    The vision graph has a second output "context_features" [I, cells, width]. The pictures' features are pooled to a
    common number of tokens t, packed into [n t, width] and run through the graph "context" [B, T, width] -> `slot`.
    Exactly one of `max_tokens` (t = the largest square <= max_tokens / n, or all cells if they fit) and `tokens` (t) is
    set.
    `chunks` > 1 packs zeros to the left up to a multiple and encodes that many chunks apart, one per layer ("fold").
    """

    slot: str
    cells: int
    max_tokens: int | None
    tokens: int | None
    chunks: int


@dataclass(frozen=True)
class CompressorSpec:
    """Compressing all regions of a picture together (v7.03, v7.04).

    The vision graph's embeddings go as one sequence [1, T, width] through the graph "compressor", whose second input
    "pooling" [P, T] averages them to P tokens: `tokens` for a picture, or for each of its regions.
    """

    tokens: int
    per: Literal["picture", "region"]
    pad_to: int  # zero vectors are put in front up to a multiple of this; their outputs are not pooled


@dataclass(frozen=True)
class VisionSpec:
    """How pictures become image embeddings: views -> vision graph -> [I, tokens, width]."""

    views: tuple[ViewSpec, ...]
    tokens: int
    regions: RegionSpec | None
    scan: ScanSpec | None = None
    context: ContextSpec | None = None
    compressor: CompressorSpec | None = None


@dataclass(frozen=True)
class PromptSpec:
    """The conversation template: `user` text `turn_end`, then `assistant`, from which the model goes on.

    `text_only` is what stands in for the picture of a conversation that begins without one: nothing, an image of zero
    vectors in front of everything (v6.0), or a black picture (HM).
    """

    user: str
    assistant: str
    turn_end: str
    image_position: ImagePosition
    image_separator: str
    text_only: TextOnly = "plain"
    left_out: str = "Answer the question using a single word or phrase."  # of the first half of a sandwich


@dataclass(frozen=True)
class TokenizerSpec:
    """World vocabulary file and the ids with a meaning."""

    file: str
    stop_ids: tuple[int, ...]
    image_id: int | None  # the placeholder replaced by image embeddings; never embedded itself
    pad_id: int
    padding: Padding  # what is put before the first prompt of a session


@dataclass(frozen=True)
class PrecisionRule:
    """Why a group of weights has the format it has."""

    tensors: str
    format: str
    count: int
    bytes: int
    reason: str


@dataclass(frozen=True)
class Budget:
    """Memory in bytes: what stays resident, and what each session adds."""

    weights: int
    vision: int
    embedding_table: int  # memory-mapped: only rows in use are resident
    state_per_session: int  # both buffer sets


@dataclass(frozen=True)
class WarmSpec:
    """The state after a system prompt, with which every session starts (`export.warm`)."""

    file: str  # tensors by slot name, in the format of `runtime.tensorfile`
    prompt: str  # what was fed, as text, padding not included
    tokens: int  # how many positions that were, padding included


@dataclass(frozen=True)
class FileSpec:
    """Size and digest of one file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Provenance:
    """Where a bundle comes from."""

    exporter: str
    source: str
    source_sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything the runtime knows about a model."""

    schema: int
    name: str
    family: str  # for people and logs; the runtime does not branch on it
    target: str
    precision: str
    fingerprint: str
    vocab_size: int
    width: int
    slots: tuple[SlotSpec, ...]
    graphs: tuple[GraphSpec, ...]
    embedding: EmbeddingSpec
    vision: VisionSpec | None
    prompt: PromptSpec
    tokenizer: TokenizerSpec
    precision_map: tuple[PrecisionRule, ...]
    budget: Budget
    provenance: Provenance
    files: dict[str, FileSpec]
    warm: WarmSpec | None = None

    def graph(self, name: str) -> GraphSpec:
        """Return the graph called `name`; raises `SchemaError` when the bundle has none."""
        for graph in self.graphs:
            if graph.name == name:
                return graph
        raise SchemaError(f"the bundle has no graph {name!r}", wanted=", ".join(g.name for g in self.graphs))

    def to_json(self) -> str:
        """Return the manifest as indented JSON, ending in a newline."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse a manifest; raises `SchemaError` naming the path of the first thing that is wrong."""
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise SchemaError(f"{MANIFEST_FILE} is not JSON: {error}", hint="export the bundle again") from None
        if isinstance(data, dict):
            schema = data.get("schema")
            if schema != SCHEMA_VERSION:
                newer = type(schema) is int and schema > SCHEMA_VERSION
                raise SchemaError(
                    f"{MANIFEST_FILE} has schema {schema!r}",
                    wanted=f"schema {SCHEMA_VERSION}",
                    hint="upgrade visualrwkv-edge" if newer else "export the bundle again with this version",
                )
        manifest: Manifest = parse(cls, data, MANIFEST_FILE)
        return manifest


Spec = TypeVar("Spec")


def parse(kind: type[Spec], value: Any, path: str) -> Spec:
    """Turn decoded JSON into `kind` (a dataclass or any annotation used above), strictly.

    Raises `SchemaError` with `path` where a key is unknown or missing, or a value has another type.
    """
    return typing.cast(Spec, _parse(kind, value, path))


def _parse(kind: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise _wrong(path, value, "an object")
        hints = typing.get_type_hints(kind)
        names = {field.name for field in dataclasses.fields(kind)}
        unknown, missing = sorted(set(value) - names), sorted(names - set(value))
        if unknown or missing:
            raise SchemaError(
                f"{path}: unknown keys {unknown}, missing keys {missing}",
                wanted=f"exactly {sorted(names)}",
                hint="export the bundle again with this version",
            )
        return typing.cast(Any, kind)(**{name: _parse(hints[name], value[name], f"{path}.{name}") for name in names})
    if origin is Literal:
        if value not in args or type(value) not in {type(a) for a in args}:
            raise _wrong(path, value, " or ".join(map(repr, args)))
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        for option in args:
            if dataclasses.is_dataclass(option) or type(value) is option:
                return _parse(option, value, path)
        raise _wrong(path, value, str(kind))
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(path, value, "a list")
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise _wrong(path, value, f"a list of {len(args)}")
        return tuple(_parse(args[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(path, value, "an object")
        return {key: _parse(args[1], item, f"{path}.{key}") for key, item in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise _wrong(path, value, kind.__name__)
    return value


def _wrong(path: str, value: Any, wanted: str) -> SchemaError:
    return SchemaError(f"{path} is {str(value)[:80]!r}", wanted=wanted, hint="export the bundle again")
