"""The public face of a bundle: load it, open sessions on it."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from runtime import memory, store
from runtime.bundle import Bundle
from runtime.cache import CACHE_BYTES, Cache, extend
from runtime.engine import Engine
from runtime.errors import StateError
from runtime.guard import Watchdog
from runtime.metrics import Metrics
from runtime.progress import Progress, Start
from runtime.scheduler import Scheduler
from runtime.session import Session
from runtime.shared import Shared
from runtime.spec import Manifest, Padding
from runtime.targets import open_backend
from runtime.tokenizer import Tokenizer
from runtime.undo import UNDO_BYTES

PERSONA, WARM = "visualrwkv-persona", "visualrwkv-warm"  # formats of `store.load_slots`


class VisualRWKV:
    """A loaded model. Use it as a context manager, or call `close()`.

    **Usage**

        with VisualRWKV.load("build/demo-int8-cpu") as model:
            session = model.session()
            session.see("kitchen.jpg")
            for chunk in session.ask("What colour is the ball?"):
                print(chunk.text, end="", flush=True)
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        cache_bytes: int = CACHE_BYTES,
        undo_bytes: int = UNDO_BYTES,
        memory_limit: int | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        """Take over an engine; most callers want `VisualRWKV.load`."""
        self.engine, self.tokenizer = engine, tokenizer
        self.scheduler = Scheduler(engine)
        self.cache = Cache(cache_bytes)
        self.metrics = Metrics()  # of all its sessions; `metrics.prometheus()` is text for a scraper
        self._shared = Shared(
            self.cache,
            undo_bytes,
            watchdog or Watchdog(),
            self.metrics,
            engine.backend.name,
            memory.MemoryLimit(memory_limit, self.budget).admit,
        )
        self._root = extend(engine.manifest.fingerprint.encode(), [engine.backend.name.encode()])
        self._warm = self._baked()
        self._closed = False

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "auto",
        *,
        threads: int | None = None,
        verify: bool = True,
        sessions: int = 1,
        memory_limit: int | str | None = None,
        cache_bytes: int = CACHE_BYTES,
        undo_bytes: int = UNDO_BYTES,
        watchdog: Watchdog | None = None,
    ) -> VisualRWKV:
        """Open a bundle.

        Args:
            path: the bundle folder.
            device: "auto"; "cpu" (the native step where it is built and knows the model, otherwise onnxruntime);
                "native", "onnxruntime" and "tensorrt" insist.
            threads: compute threads; the default leaves one core free.
            verify: compare every file's SHA-256 with the manifest first.
            sessions: how many sessions will be open at a time, for `memory_limit`.
            memory_limit: bytes, or "2GB": what `budget(sessions)` may come to. Checked before anything is loaded, and
                again whenever a session is opened or forked.
            cache_bytes: for pictures and states that come again (`runtime.cache`); 0 turns the cache off.
            undo_bytes: for what `Session.undo` goes back to, per session; 0 turns undo and roll-back off.
            watchdog: how often, and for what, states are checked.

        Raises:
            BundleError, SchemaError: the bundle cannot be used.
            TargetUnavailable: this machine cannot run it.
            ConfigError: unknown device, bad thread count, or more memory needed than `memory_limit`.
        """
        limit = memory.parse_bytes(memory_limit)
        bundle = Bundle.open(path, verify=verify)

        def budget(count: int) -> memory.MemoryBudget:
            return memory.budget(bundle.manifest, sessions=count, cache_bytes=cache_bytes, undo_bytes=undo_bytes)

        memory.MemoryLimit(limit, budget).check(sessions)
        tokenizer = Tokenizer(bundle.file(bundle.manifest.tokenizer.file))
        tokenizer.warm()  # the first answer does not wait for the vocabulary
        return cls(
            Engine(bundle, open_backend(device, bundle.manifest.target, threads)),
            tokenizer,
            cache_bytes=cache_bytes,
            undo_bytes=undo_bytes,
            memory_limit=limit,
            watchdog=watchdog,
        )

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self.engine.manifest

    def budget(self, sessions: int = 1) -> memory.MemoryBudget:
        """Return the memory this model takes with so many sessions, in bytes; print it for a table."""
        shared = self._shared
        return memory.budget(
            self.manifest, sessions=sessions, cache_bytes=self.cache.max_bytes, undo_bytes=shared.undo_bytes
        )

    def session(
        self,
        state: str | Path | None = None,
        *,
        padding: Padding | None = None,
        persona: str | Path | None = None,
    ) -> Session:
        """Return a new conversation, or one that `Session.save` wrote.

        Args:
            state: a saved conversation, to go on with; it brings its own padding.
            padding: overrides the manifest's: "none", or "left16" as official evaluation.
            persona: a file of `python -m export.persona`, the state a conversation begins with and `reset` goes back
                to; the session holds it beside its own. A system prompt baked into the bundle is then fed after it,
                with the first picture or question.

        Raises:
            StateError: the model is closed, or a file cannot be used.
            ConfigError: bad padding, or no memory for one more session.
        """
        if self._closed:
            raise StateError("the model is closed", hint="open the session inside the with block")
        start = self._warm if persona is None else self._persona(Path(persona))
        session = Session(self.scheduler, self.tokenizer, padding=padding, shared=self._shared, start=start)
        if state is not None:
            session.restore(store.load(Path(state), self.manifest, self._shared.backend))
        return session

    def _baked(self) -> Start:
        """Where sessions begin unless told: nothing, or the baked state of the bundle."""
        warm = self.manifest.warm
        if warm is None:
            return Start(progress=Progress(key=self._root))
        arrays = store.load_slots(self.engine.bundle.file(warm.file), WARM, self.manifest.slots)
        return Start(arrays, Progress(tokens=warm.tokens, key=self._root))

    def _persona(self, path: Path) -> Start:
        arrays = store.load_slots(path, PERSONA, self.manifest.slots)
        key = extend(
            self._root, [b"persona", *(name.encode() + array.tobytes() for name, array in sorted(arrays.items()))]
        )
        prompt = self.tokenizer.encode(self.manifest.warm.prompt) if self.manifest.warm else []
        return Start(arrays, Progress(queue=[prompt] if prompt else [], prompt_tokens=len(prompt), key=key))

    def close(self) -> None:
        """Release the graphs. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self.engine.close()

    def __enter__(self) -> VisualRWKV:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
