"""The public face of a bundle: load it, open sessions on it."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from runtime.bundle import Bundle
from runtime.engine import Engine
from runtime.errors import StateError
from runtime.session import Session
from runtime.spec import Manifest, Padding
from runtime.targets import open_backend
from runtime.tokenizer import Tokenizer


class VisualRWKV:
    """A loaded model. Use it as a context manager, or call `close()`.

    **Usage**

        with VisualRWKV.load("build/demo-int8-cpu") as model:
            session = model.session()
            session.see("kitchen.jpg")
            for chunk in session.ask("What colour is the ball?"):
                print(chunk.text, end="", flush=True)
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        """Take over an engine; most callers want `VisualRWKV.load`."""
        self.engine, self.tokenizer = engine, tokenizer
        self._closed = False

    @classmethod
    def load(
        cls, path: str | Path, device: str = "auto", *, threads: int | None = None, verify: bool = True
    ) -> VisualRWKV:
        """Open a bundle.

        Args:
            path: the bundle folder.
            device: "auto" or "cpu".
            threads: compute threads; the default leaves one core free.
            verify: compare every file's SHA-256 with the manifest first.

        Raises:
            BundleError, SchemaError: the bundle cannot be used.
            TargetUnavailable: this machine cannot run it.
            ConfigError: unknown device or bad thread count.
        """
        bundle = Bundle.open(path, verify=verify)
        tokenizer = Tokenizer(bundle.file(bundle.manifest.tokenizer.file))
        tokenizer.warm()  # the first answer does not wait for the vocabulary
        return cls(Engine(bundle, open_backend(device, bundle.manifest.target, threads)), tokenizer)

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self.engine.manifest

    def session(self, *, padding: Padding | None = None) -> Session:
        """Return a new conversation. `padding` overrides the manifest's: "none", or "left16" as official evaluation."""
        if self._closed:
            raise StateError("the model is closed", hint="open the session inside the with block")
        return Session(self.engine, self.tokenizer, padding=padding)

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
