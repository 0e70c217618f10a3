"""Streaming answers inside asyncio: the model runs in a thread of its own for each answer, the event loop never waits.

Sessions that answer at the same time share steps of the model, as threads do (`runtime.scheduler`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from runtime.reply import Chunk


async def stream(chunks: Iterator[Chunk], cancel: Callable[[], None]) -> AsyncGenerator[Chunk, None]:
    """Run an answer in a thread, and yield its chunks.

    The next chunk is computed when it is asked for: a slow reader slows its own answer down, and nothing piles up.
    Where the reader stops early (its task is cancelled, or the iterator is closed), the answer ends at its next token,
    and the session is free when the cancelled task or `aclose()` has finished.

    Args:
        chunks: an answer nobody has begun to read, of `Session.ask`.
        cancel: `Session.cancel`, called if the reader stops while a chunk is being computed.
    """
    loop = asyncio.get_running_loop()
    # One thread for the whole answer: the scheduler waits for threads that will probably ask for another step.
    with _Worker(1, thread_name_prefix="visualrwkv-answer") as worker:
        computing: asyncio.Future[Chunk | None] | None = None
        try:
            while True:
                computing = loop.run_in_executor(worker, next, chunks, None)
                chunk = await asyncio.shield(computing)
                if chunk is None:
                    return
                yield chunk
        finally:
            if computing is not None and not computing.done():
                cancel()
            await _finish(loop.run_in_executor(worker, _close, chunks))
            if computing is not None and computing.done() and not computing.cancelled():
                computing.exception()  # nobody is left to hear of it


class _Worker(ThreadPoolExecutor):
    """An executor that does not block the event loop when it is left."""

    def __exit__(self, *_: object) -> None:
        self.shutdown(wait=False)


def _close(chunks: Iterator[Chunk]) -> None:
    """End an answer; if a chunk was computed before, in this thread, it is complete."""
    close = getattr(chunks, "close", None)
    if close is not None:
        close()


async def _finish(future: asyncio.Future[None]) -> None:
    """Wait for a future whatever happens, then let a cancellation that came meanwhile have its way."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    future.result()
