"""From pictures and text to what the step graph is fed: encoding, placing in the template, cutting into calls."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from runtime.cache import extend
from runtime.engine import PREFILL_SEGMENT, Encoded
from runtime.errors import InputError
from runtime.image import ImageSource, frame_hash, load_image, prepare_views, split_regions
from runtime.progress import Picture, Progress, Queued
from runtime.prompt import ImageSlot, Piece, turn_pieces
from runtime.scheduler import Scheduler
from runtime.shared import Shared
from runtime.spec import Manifest, Padding, VisionSpec
from runtime.state import State
from runtime.tokenizer import Tokenizer

PAD_TO = 16  # chunk length of the official training kernel, to which its forward pads on the left

Call = tuple[np.ndarray, tuple[int, int] | None]
"""Embeddings [T, C] of one call of the engine, and the positions of the image among them that is scanned."""


def feeds_at_once(manifest: Manifest, padding: Padding, progress: Progress) -> bool:
    """Whether pictures can be fed before the question is known.

    Not where the template has text in front of them, where the first prompt is padded as a whole, or where all
    pictures of a turn together make the context that every position reads.
    """
    vision = manifest.vision
    padded = padding == "none" or progress.tokens > 0
    return padded and manifest.prompt.image_position == "first" and not (vision and vision.context)


class Feeder:
    """Prepares what a session feeds, and feeds it; changes only the `Progress` and the state it is given."""

    def __init__(self, scheduler: Scheduler, tokenizer: Tokenizer, shared: Shared | None = None) -> None:
        self._scheduler, self._tokenizer = scheduler, tokenizer
        self._manifest = scheduler.manifest
        self._shared = shared or Shared()

    def look(self, progress: Progress, images: Sequence[ImageSource]) -> None:
        """Encode pictures, and queue them if the template puts them before the text.

        Raises `InputError` for a picture that cannot be used, or where the model takes none.
        """
        for source in images:
            vision = self._manifest.vision
            if vision is None:
                raise InputError("this model takes no pictures", hint="ask without an image, or load another bundle")
            start = time.perf_counter()
            self._take(progress, *self._encode(load_image(source), vision))
            progress.frames += 1
            progress.vision_s += time.perf_counter() - start
        if self._manifest.prompt.image_position == "first" and images:
            pieces = turn_pieces(self._manifest.prompt, "", progress.pictures, placed=progress.placed)
            self.place(progress, pieces[:-2])  # without the question

    def place(self, progress: Progress, pieces: Sequence[Piece]) -> None:
        """Queue the pieces of the coming turn that come next."""
        for piece in pieces:
            if isinstance(piece, ImageSlot):
                picture = progress.waiting.pop(piece.index)
                progress.queue.append(picture)
                progress.image_tokens += len(picture)
            else:
                ids = self._tokenizer.encode(piece)
                progress.queue.append(ids)
                progress.prompt_tokens += len(ids)
        progress.placed += len(pieces)

    def stand_in(self, progress: Progress) -> None:
        """Put what the model was trained with in place of the picture that a new conversation lacks."""
        vision, text_only = self._manifest.vision, self._manifest.prompt.text_only
        if vision is None or progress.history or progress.pictures:
            return
        if text_only == "zero_block":
            progress.queue.append(Picture(self._scheduler.zero_embeddings(vision.tokens), b"zero block"))
            progress.image_tokens += vision.tokens
        elif text_only == "black_picture":
            self._take(progress, self._scheduler.encode(_black(vision)), b"black picture")

    def pad(self, progress: Progress) -> None:
        """Pad the first prompt on the left, as the official evaluation does."""
        pads = -sum(map(len, progress.queue)) % PAD_TO
        progress.queue.insert(0, [self._manifest.tokenizer.pad_id] * pads)
        progress.prompt_tokens += pads

    def feed(self, progress: Progress, state: State, padding: Padding) -> np.ndarray | None:
        """Feed the queue, pictures first and what follows them apart; return the logits [V] after the last position.

        The cut behind the last picture is what lets its state be cached; it is made without a cache, too, so that
        both compute the same. Returns None where nothing follows a picture.
        """
        if padding == "left16" and progress.tokens == 0:
            self.pad(progress)
        pictures = [index for index, item in enumerate(progress.queue) if isinstance(item, Picture)]
        cut = pictures[-1] + 1 if pictures else 0
        if cut:
            self._feed_pictures(progress, progress.queue[:cut], state)
        logits = self._compute(progress, progress.queue[cut:], state)
        progress.queue, progress.features = [], []
        return logits

    def calls(self, queue: Sequence[Queued]) -> Iterator[Call]:
        """Cut a queue into calls of the engine: pictures that are scanned end theirs, all else is joined."""
        scan = self._manifest.vision.scan if self._manifest.vision else None
        rows: list[np.ndarray] = []
        for item in queue:
            if not isinstance(item, Picture):
                rows += [self._scheduler.embed(item)] if item else []
            elif scan is None:
                rows.append(item.embeddings)
            else:
                stop = len(item) - scan.fixed
                before = np.concatenate(rows) if rows else item.embeddings[:0]
                cut = len(before) // PREFILL_SEGMENT * PREFILL_SEGMENT  # a scanned picture's call is not cut again
                if cut:
                    yield before[:cut], None
                joined = np.concatenate([before[cut:], item.embeddings[:stop]])
                if len(joined):
                    yield joined, (len(joined) - stop, len(joined)) if stop else None
                rows = [item.embeddings[stop:]]
        rest = np.concatenate(rows) if rows else np.zeros((0, self._manifest.width), np.float32)
        if len(rest):
            yield rest, None

    def _feed_pictures(self, progress: Progress, items: Sequence[Queued], state: State) -> None:
        """Feed a queue that ends in a picture, or find the state after it in the cache."""
        cache = self._shared.cache
        if progress.key is None or not cache.enabled:
            self._compute(progress, items, state)
            return
        key = extend(progress.key, map(_identity, items))
        with cache.alone(key):
            found = cache.get(key)
            if found is None:
                self._compute(progress, items, state)
                # The first pictures of a conversation may well be asked about again, the thousandth frame of a
                # camera will not: later ones are kept when they come a second time.
                first = not progress.history and _pictures(items) == progress.pictures
                wanted = first or cache.asked_before(key)
                if wanted and self._shared.watchdog.fault(state) is None:  # a bad state must not spread
                    snapshot = state.snapshot()
                    cache.put(key, snapshot, snapshot.nbytes)
            else:
                state.restore(found)
                progress.tokens += sum(map(len, items))
                progress.cached_tokens += sum(map(len, items))
        progress.key = key

    def _compute(self, progress: Progress, items: Sequence[Queued], state: State) -> np.ndarray | None:
        if progress.features and _pictures(items):
            for slot, array in self._scheduler.context(np.stack(progress.features)).items():
                state.write(slot, array)
        logits = None
        for rows, image in self.calls(items):
            logits = self._scheduler.advance(rows, state, image)
            progress.tokens += len(rows)
        return logits

    def _encode(self, picture: np.ndarray, vision: VisionSpec) -> tuple[Encoded, bytes]:
        """Encode a picture [H, W, 3], unless it was encoded before; return its key, too."""

        def encode() -> Encoded:
            parts = split_regions(picture, vision.regions) if vision.regions else [picture]
            return self._scheduler.encode(prepare_views(parts, vision))

        cache = self._shared.cache
        if not cache.enabled:
            return encode(), b""
        key = b"picture " + frame_hash(picture).encode()
        with cache.alone(key):
            encoded: Encoded | None = cache.get(key)
            if encoded is None:
                encoded = encode()
                if np.isfinite(encoded.embeddings).all():
                    cache.put(key, encoded, sum(array.nbytes for array in encoded if array is not None))
        return encoded, key

    def _take(self, progress: Progress, encoded: Encoded, key: bytes) -> None:
        embeddings = encoded.embeddings.reshape(-1, encoded.embeddings.shape[-1])
        progress.waiting[progress.pictures] = Picture(embeddings, key)
        if encoded.features is not None:
            progress.features = [*progress.features, *encoded.features]
        progress.pictures += 1


def _pictures(items: Sequence[Queued]) -> int:
    return sum(isinstance(item, Picture) for item in items)


def _identity(item: Queued) -> bytes:
    return item.key if isinstance(item, Picture) else b"ids " + np.asarray(item, np.int64).tobytes()


def _black(vision: VisionSpec) -> dict[str, np.ndarray]:
    """A picture that is zero in normalised space, as the official loader's."""
    shapes = {v.name: (3, v.height, v.width) if v.kind == "pixels" else (v.height, v.width) for v in vision.views}
    return {name: np.zeros((1, *shape), np.float32) for name, shape in shapes.items()}
