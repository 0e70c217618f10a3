"""Saved conversations: one file with the state, what was said, and whose state it is.

The file is one of `runtime.tensorfile`: tensors `slot.NAME` (and `slot.NAME.scale` where compressed), `picture.N` for
pictures that wait for their question, `feature.N`. Its metadata, all text:

    sha256       of the file with this digest as zeros; first, so that it has a fixed place
    format       "visualrwkv-session"
    version      of this format, "1"
    fingerprint  of the bundle: only that very bundle opens the file
    bundle, precision, backend, tokens, frames, created_by    for people and for `tools`
    session      JSON of `Saved`: the rest of the conversation

Numbers are stored as they are, so the same bundle on the same backend goes on bit for bit. On another backend it goes
on from the same numbers, but rounds its own way: allowed, with a warning in the log. Nothing in a file is executed.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from runtime.cache import extend
from runtime.errors import ConfigError, SchemaError, StateError
from runtime.memory import snapshot_bytes
from runtime.progress import Picture, Progress, Queued, SessionSnapshot
from runtime.prompt import Turn
from runtime.spec import Manifest, Padding, SlotSpec, parse
from runtime.state import Snapshot
from runtime.tensorfile import TensorFile, read_tensors, write_tensors

FORMAT, VERSION = "visualrwkv-session", 1
PICTURES_LIMIT = 256 << 20  # bytes of waiting pictures that a file may hold

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedItem:
    """One item of the queue: token ids, or the number of a picture."""

    ids: tuple[int, ...]
    picture: int | None


@dataclass(frozen=True)
class Saved:
    """A session besides its state, as JSON."""

    padding: Padding
    history: tuple[Turn, ...]
    tokens: int
    frames: int
    pictures: int
    queue: tuple[SavedItem, ...]
    waiting: dict[str, int]  # index in the turn -> number of a picture
    features: int
    seen: int  # pictures given for the coming question
    placed: int
    prompt_tokens: int
    image_tokens: int
    cached_tokens: int


def save(path: Path, snapshot: SessionSnapshot, manifest: Manifest, backend: str, compress: str | None = None) -> None:
    """Write a snapshot; `Session.save` tells what may be raised."""
    if compress not in (None, "int8"):
        raise ConfigError(f"compress is {compress!r}", wanted="None or 'int8'")
    tensors: dict[str, np.ndarray] = {}
    for name, array in snapshot.state.arrays.items():
        if compress and _is_matrix(_slot(manifest, name)):
            tensors[f"slot.{name}"], tensors[f"slot.{name}.scale"] = quantise(array)
        else:
            tensors[f"slot.{name}"] = array
    saved, pictures = _describe(snapshot)
    tensors.update({f"picture.{n}": picture.embeddings for n, picture in enumerate(pictures)})
    tensors.update({f"feature.{n}": array for n, array in enumerate(snapshot.progress.features)})
    about = {
        "format": FORMAT,
        "version": str(VERSION),
        "fingerprint": manifest.fingerprint,
        "bundle": manifest.name,
        "precision": manifest.precision,
        "backend": backend,
        "tokens": str(saved.tokens),
        "frames": str(saved.frames),
        "created_by": f"visualrwkv-edge {_version()}",
        "session": json.dumps(dataclasses.asdict(saved), separators=(",", ":")),
    }
    write_tensors(path, tensors, about)


def load(path: Path, manifest: Manifest, backend: str) -> SessionSnapshot:
    """Read what `save` wrote.

    Raises:
        StateError: no such file; truncated, changed, too large or malformed; of a newer version; or of another bundle.
    """
    file = read_tensors(path, limit=2 * snapshot_bytes(manifest.slots) + PICTURES_LIMIT)
    check_format(path, file, FORMAT, VERSION)
    about = file.metadata
    if about.get("fingerprint") != manifest.fingerprint:
        raise StateError(
            f"{path} is a state of {about.get('bundle')!r} ({about.get('precision')}), "
            f"fingerprint {str(about.get('fingerprint'))[:16]}…",
            wanted=f"{manifest.name!r} ({manifest.precision}), fingerprint {manifest.fingerprint[:16]}…",
            hint="open the bundle it was saved with: a state means nothing to another model or precision",
        )
    if about.get("backend") != backend:
        _log.warning(
            "%s was saved on backend %s and goes on on %s: the same numbers, but not bit for bit the same answers",
            path,
            about.get("backend"),
            backend,
        )
    try:
        saved = parse(Saved, json.loads(about.get("session", "")), "session")
        return _restore(saved, file, manifest)
    except (SchemaError, ValueError, KeyError, OverflowError, RecursionError) as error:
        reason = error.found if isinstance(error, SchemaError) else error
        raise StateError(f"{path} is malformed: {reason}", hint="save the session again") from None


def load_slots(path: Path, kind: str, slots: tuple[SlotSpec, ...]) -> dict[str, np.ndarray]:
    """Read initial values of slots: a persona, or a bundle's baked state.

    Args:
        path: a file with tensors named as slots, of the shape and dtype of one sequence.
        kind: the format its metadata must name.
        slots: those of the model.

    Raises:
        StateError: the file cannot be used, or has a tensor that is no carried slot of this model.
    """
    file = read_tensors(path, limit=snapshot_bytes(slots))
    check_format(path, file, kind, VERSION)
    wanted = {s.name: (np.dtype(s.dtype), s.resolve(1)) for s in slots}
    found = {name: (array.dtype, array.shape) for name, array in file.tensors.items()}
    if not found or any(wanted.get(name) != what for name, what in found.items()):
        raise StateError(
            f"{path} holds {_shapes(found)}",
            wanted=f"some of {_shapes(wanted)}",
            hint="was it made for another model? convert it for this bundle with python -m export.persona",
        )
    _check_finite(file.tensors, path.name)
    return file.tensors


def check_format(path: Path, file: TensorFile, wanted: str, version: int) -> None:
    """Raise `StateError` unless a file says to be of this format, and of a version that can be read."""
    kind, found = file.metadata.get("format"), file.metadata.get("version", "")
    if kind != wanted:
        raise StateError(f"{path} is a {kind!r} file", wanted=wanted, hint="check the path")
    if found != str(version):
        newer = found.isdecimal() and int(found[:9]) > version
        raise StateError(
            f"{path} has version {found!r}",
            wanted=f"version {version}",
            hint="upgrade visualrwkv-edge" if newer else "save the session again with this version",
        )


def quantise(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 values and the float32 scale of every row (the last axis): array ~ values * scale."""
    scale = np.abs(array).max(-1, keepdims=True).astype(np.float32) / np.float32(127)
    scale[scale == 0] = 1
    return np.rint(array / scale).astype(np.int8), scale


def compression_loss(snapshot: Snapshot, manifest: Manifest) -> dict[str, float]:
    """Relative RMS error that `compress="int8"` makes in every slot of this state; 0 for slots it keeps exact.

    Measured on the demo model in 50 conversations with a picture: 0.8 % in `wkv` (0.93 % at most), the file 3.4 times
    smaller, and the same answer to 150 of 150 questions that followed.
    """
    loss = {}
    for name, array in snapshot.arrays.items():
        loss[name] = 0.0
        if _is_matrix(_slot(manifest, name)) and array.any():
            values, scale = quantise(array)
            loss[name] = float(np.sqrt(np.mean((values * scale - array) ** 2) / np.mean(array**2)))
    return loss


def _describe(snapshot: SessionSnapshot) -> tuple[Saved, list[Picture]]:
    progress = snapshot.progress
    pictures: list[Picture] = []

    def number(picture: Picture) -> int:
        pictures.append(picture)
        return len(pictures) - 1

    queue = tuple(
        SavedItem((), number(item)) if isinstance(item, Picture) else SavedItem(tuple(map(int, item)), None)
        for item in progress.queue
    )
    waiting = {str(index): number(picture) for index, picture in progress.waiting.items()}
    saved = Saved(
        padding=snapshot.padding,
        history=tuple(progress.history),
        tokens=progress.tokens,
        frames=progress.frames,
        pictures=len(pictures),
        queue=queue,
        waiting=waiting,
        features=len(progress.features),
        seen=progress.pictures,
        placed=progress.placed,
        prompt_tokens=progress.prompt_tokens,
        image_tokens=progress.image_tokens,
        cached_tokens=progress.cached_tokens,
    )
    return saved, pictures


def _restore(saved: Saved, file: TensorFile, manifest: Manifest) -> SessionSnapshot:
    """Check everything: who can compute a digest can write any content.

    For the same reason cached states are kept under the digest of this very file from here on.
    """
    tensors, key = dict(file.tensors), extend(b"saved", [file.metadata["sha256"].encode()])
    arrays = {slot.name: _slot_array(slot, tensors) for slot in manifest.slots}
    width, vision = manifest.width, manifest.vision
    pictures = [
        Picture(_rows(tensors.pop(f"picture.{n}"), (None, width)), extend(key, [b"%d" % n]))
        for n in range(min(saved.pictures, len(tensors)))
    ]
    shape = (vision.context.cells, _feature_width(manifest)) if vision and vision.context else (0, 0)
    features = [_rows(tensors.pop(f"feature.{n}"), shape) for n in range(min(saved.features, len(tensors)))]
    if tensors or len(features) != saved.features or len(pictures) != saved.pictures:
        raise ValueError(f"{saved.pictures} pictures, {saved.features} features, and tensors {sorted(tensors)} besides")
    _check_finite(arrays, "the state")
    counts = (saved.tokens, saved.frames, saved.seen, saved.placed, saved.prompt_tokens, saved.image_tokens)
    if min(*counts, saved.cached_tokens) < 0:
        raise ValueError("a count below zero")
    if pictures and vision is None:
        raise ValueError("pictures for a model that takes none")
    queue: list[Queued] = []
    for item in saved.queue:
        if item.picture is None and not all(0 <= i < manifest.vocab_size for i in item.ids):
            raise ValueError("a token id outside the vocabulary")
        queue.append(list(item.ids) if item.picture is None else pictures[_index(item.picture, len(pictures))])
    waiting = {int(index): pictures[_index(n, len(pictures))] for index, n in saved.waiting.items()}
    first = manifest.prompt.image_position == "first"
    expected = (2 * saved.seen, 0) if first else (0, saved.seen)
    if (saved.placed, len(waiting)) != expected or set(waiting) != set(range(len(waiting))):
        raise ValueError(f"{saved.seen} pictures given, {saved.placed} pieces placed, {len(waiting)} waiting")
    progress = Progress(
        history=list(saved.history),
        tokens=saved.tokens,
        frames=saved.frames,
        key=key,
        queue=queue,
        pictures=saved.seen,
        waiting=waiting,
        features=features,
        placed=saved.placed,
        prompt_tokens=saved.prompt_tokens,
        image_tokens=saved.image_tokens,
        cached_tokens=saved.cached_tokens,
    )
    return SessionSnapshot(Snapshot(arrays), progress, saved.padding)


def _slot_array(slot: SlotSpec, tensors: dict[str, np.ndarray]) -> np.ndarray:
    array = tensors.pop(f"slot.{slot.name}")
    if f"slot.{slot.name}.scale" in tensors:
        scale = tensors.pop(f"slot.{slot.name}.scale")
        if array.dtype != np.int8 or scale.dtype != np.float32 or scale.shape != (*array.shape[:-1], 1):
            raise ValueError(f"slot {slot.name} has a scale of {scale.dtype} {list(scale.shape)}")
        array = (array * scale).astype(slot.dtype)
        array.flags.writeable = False
    if array.dtype != slot.dtype or array.shape != slot.resolve(1):
        raise ValueError(f"slot {slot.name} is {array.dtype} {list(array.shape)}, not {slot.dtype} {slot.resolve(1)}")
    return array


def _feature_width(manifest: Manifest) -> int:
    return int(manifest.graph("context").inputs[0].shape[-1])


def _rows(array: np.ndarray, shape: tuple[int | None, int]) -> np.ndarray:
    fits = array.ndim == 2 and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
    if array.dtype != np.float32 or not fits or not array.size:
        raise ValueError(f"an array of {array.dtype} {list(array.shape)} where float32 {list(shape)} belongs")
    _check_finite({"": array}, "a picture")
    return array


def _index(number: int, count: int) -> int:
    if not 0 <= number < count:
        raise ValueError(f"picture {number} of {count}")
    return number


def _check_finite(arrays: dict[str, np.ndarray], what: str) -> None:
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise StateError(f"{what} holds values that are not finite", hint="go back to an older save")


def _slot(manifest: Manifest, name: str) -> SlotSpec | None:
    return next((slot for slot in manifest.slots if slot.name == name), None)


def _is_matrix(slot: SlotSpec | None) -> bool:
    """Whether a slot is compressed: matrices are nearly all bytes of a state, and its vectors stay exact."""
    return slot is not None and slot.dtype == "float32" and len(slot.shape) > 3


def _shapes(tensors: dict[str, Any]) -> str:
    return ", ".join(f"{name} {dtype} {list(shape)}" for name, (dtype, shape) in tensors.items()) or "nothing"


def _version() -> str:
    try:
        return metadata.version("visualrwkv-edge")
    except metadata.PackageNotFoundError:
        return "(not installed)"
