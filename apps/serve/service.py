"""From a request to a running answer: what is known of its conversation, what has to be read, how it is generated."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from apps.serve.counters import Counters
from apps.serve.failures import Refused
from apps.serve.messages import Said, root, turns
from apps.serve.pictures import Sent, open_picture
from apps.serve.replay import Replay
from apps.serve.schema import ChatRequest
from apps.serve.settings import Settings
from apps.serve.slots import Slots
from apps.serve.states import Kept, States
from runtime import Chunk, GenerateOptions, Session, SessionSnapshot, VisualRWKV


class Run:
    """One answer in the making. Made on the event loop, run in the answer's thread."""

    def __init__(
        self, replay: Replay, kept: Kept | None, digest: bytes, said: list[Said], options: GenerateOptions, keep: bool
    ) -> None:
        """Go on from `kept`, whose digest is `digest`, with the turns `said`; the last is asked."""
        self.kept, self._said, self._options, self._replay, self._keep = kept, said, options, replay, keep
        for one in said[:-1]:
            digest = one.digest(digest)
        self._before = digest
        self._stopped = threading.Event()
        self._session: Session | None = None
        self.known_tokens = self.read_tokens = 0  # positions: in the state, and fed before the question
        self.after: SessionSnapshot | None = None  # the conversation with the answer, once that is complete
        self.text = ""

    def chunks(self, session: Session) -> Iterator[Chunk]:
        """Prepare a session, ask, and stream the answer."""
        self._session = session
        self._replay.prepare(session, self.kept.snapshot if self.kept else None, self._said, self._stopped.is_set)
        self.known_tokens = self.kept.snapshot.progress.tokens if self.kept else 0
        self.read_tokens = session.tokens - self.known_tokens
        if self._stopped.is_set():
            return
        asked = self._said[-1]
        for chunk in session.ask(asked.question, [image.image for image in asked.images], self._options):
            self.text += chunk.text
            if chunk.finish_reason is not None and self._keep:
                self.after = session.snapshot()
            yield chunk

    def cancel(self) -> None:
        """End it at the next token, or between two turns that are read again."""
        self._stopped.set()
        if self._session is not None:
            self._session.cancel()

    @property
    def digest(self) -> bytes:
        """Of the conversation with the answer."""
        last = self._said[-1]
        return Said(last.system, last.question, last.images, self.text).digest(self._before)


class Service:
    """A model, its sessions and the conversations it keeps. For one event loop."""

    def __init__(self, model: VisualRWKV, settings: Settings) -> None:
        """Open all sessions at once: what does not fit is said now."""
        self.model, self.settings = model, settings
        self.name = settings.name or model.manifest.name
        self.slots = Slots([model.session() for _ in range(settings.slots)], settings.queue_s)
        self.states = States(settings.states, settings.state_bytes, settings.state_s)
        self.counters = Counters(self.slots, self.states)
        self._replay = Replay(model)
        self._root = root(model.manifest.fingerprint)
        self._readers = ThreadPoolExecutor(settings.slots + settings.waiting, thread_name_prefix="pictures")
        self.ending = asyncio.Event()  # set when answers that are still running are to be ended

    async def plan(self, request: ChatRequest) -> Run:
        """Check a request and find what is known of its conversation.

        Raises:
            Refused, InputError, ConfigError: something is wrong with it.
        """
        self.check_model(request.model)
        options = self._options(request)
        kept = self.states.get(request.state) if request.state else None
        said = await asyncio.get_running_loop().run_in_executor(self._readers, self._turns, request)
        digest = kept.digest if kept else self._root
        source = "state" if kept else "nothing"
        digests = [digest]
        for one in said[:-1]:
            digests.append(one.digest(digests[-1]))
        for read in range(len(said) - 1, 0, -1):
            found = self.states.find(digests[read])
            if found is not None:
                kept, digest, said, source = found, digests[read], said[read:], "history"
                break
        self._check_length(said)
        self.counters.begun[source] += 1
        return Run(self._replay, kept, digest, said, options, request.store is not False)

    def check_model(self, name: str) -> None:
        """Raise `Refused` (404) for a model that is not the one served."""
        if name != self.name:
            raise Refused(404, "model_not_found", f"no model {name!r}", hint=f"use {self.name!r}", param="model")

    def keep(self, run: Run) -> str | None:
        """Keep a finished answer's conversation; return the state's name."""
        if run.after is None:
            return None
        kept = self.states.put(run.after, run.digest, run.kept.id if run.kept else None)
        return kept.id if kept else None

    def stop(self, grace_s: float) -> None:
        """End the answers that are still running in so many seconds. Called in the event loop."""
        asyncio.get_running_loop().call_later(grace_s, self.ending.set)

    def close(self) -> None:
        """Forget what is kept, and wait for no reader of addresses."""
        self.states.clear()
        self._readers.shutdown(wait=False, cancel_futures=True)

    def _turns(self, request: ChatRequest) -> list[Said]:
        fetched = 0

        def open_(url: str) -> Sent:
            nonlocal fetched
            fetched += not url.startswith("data:")
            if fetched > self.settings.max_images:
                raise Refused(400, "too_many_images", f"more than {self.settings.max_images} addresses of pictures")
            return open_picture(url, self.settings)

        return turns(request.messages, open_)

    def _options(self, request: ChatRequest) -> GenerateOptions:
        wanted = request.max_completion_tokens or request.max_tokens or self.settings.tokens
        if wanted > self.settings.max_tokens:
            most = self.settings.max_tokens
            raise Refused(400, "invalid_value", f"max_tokens {wanted} is above {most}", param="max_tokens")
        stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
        return GenerateOptions(
            max_tokens=wanted,
            temperature=request.temperature or 0.0,
            top_p=1.0 if request.top_p is None else request.top_p,
            frequency_penalty=request.frequency_penalty or 0.0,
            presence_penalty=request.presence_penalty or 0.0,
            seed=None if request.seed is None else request.seed % 2**64,
            stop=tuple(stop),
        )

    def _check_length(self, said: list[Said]) -> None:
        text, images = sum(one.nbytes for one in said), sum(len(one.images) for one in said)
        if text > self.settings.max_text:
            raise Refused(
                400,
                "context_length_exceeded",
                f"{text} bytes of text to read, at most {self.settings.max_text}",
                hint="send what is new with the state of the last answer",
                param="messages",
            )
        if images > self.settings.max_images:
            raise Refused(
                400,
                "too_many_images",
                f"{images} pictures to look at, at most {self.settings.max_images}",
                hint="send what is new with the state of the last answer",
                param="messages",
            )
        if images and self.model.manifest.vision is None:
            raise Refused(400, "no_images", "this model takes no pictures", param="messages")
