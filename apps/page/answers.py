"""One question of a page, from the picture it is about to the last piece of its answer, as a stream of messages."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from apps.page.cameras import Shot, thumbnail
from apps.page.messages import Ask, explain
from apps.page.room import Entry, Room, Tab
from runtime import Stats
from runtime.errors import InputError, RollbackError, StateError, VisualRWKVError

_log = logging.getLogger(__name__)


async def answer(room: Room, tab: Tab, ask: Ask) -> AsyncGenerator[dict[str, Any], None]:
    """Yield "asked", pieces of "text", and "done" with the figures; or "error", last of all.

    While the tab watches, the question is about all that was fed, and answered on a copy. Otherwise the newest picture
    of the camera is shown first, once; question and answer stay in the conversation.

    An error says whether the question was `kept`: it was where the engine failed in the middle of it, for undo to take
    back. Otherwise (no picture, a bad one, an answer that runs already, a state that went bad) all is as before, and
    what was "asked" is `void`.
    """
    about = {"type": "error", "tab": tab.number, "question": ask.text}
    if tab.answering:
        busy = StateError("this tab is answering already", hint="stop the answer first, or fork before you ask")
        yield {**about, "kept": False, "void": False, "answering": True, **explain(busy)}
        return
    tab.answering = True
    entry = Entry(ask.text.strip(), kept=tab.watching is None)
    began, first, tokens = time.monotonic(), 0.0, 0
    before = tab.steps, tab.shown
    fed = False  # whether the session may have taken the question in
    try:
        shot, new = await asyncio.to_thread(_picture, room, tab, ask)
        entry.picture = thumbnail(shot.image) if shot is not None else ""
        tab.entries.append(entry)
        yield {"type": "asked", "tab": tab.number, "question": entry.question, **_shown(entry)}
        images = (shot.image,) if shot is not None and new else ()
        fed = True
        tab.steps += entry.kept
        async with aclosing(tab.session.ask_async(entry.question, images, room.options)) as chunks:
            async for chunk in chunks:
                if not first:
                    first = time.monotonic()
                    entry.figures["ttft_s"] = first - began
                    if entry.kept and shot is not None:
                        tab.shown = ask.camera, shot.number
                tokens += len(chunk.token_ids)
                entry.answer += chunk.text
                elapsed = time.monotonic() - first
                entry.figures["tokens_per_s"] = (tokens - 1) / elapsed if elapsed > 0 and tokens > 1 else 0.0
                if chunk.stats is not None:
                    entry.figures.update(_figures(chunk.stats))
                    entry.finish = chunk.finish_reason or "stop"
                if chunk.text:
                    yield {"type": "text", "tab": tab.number, "text": chunk.text, "figures": entry.figures}
        tab.answering = False
        yield {"type": "done", "tab": tab.number, "finish": entry.finish, "figures": entry.figures}
    except (asyncio.CancelledError, GeneratorExit):
        entry.finish = entry.finish or "cancelled"
        raise
    except Exception as error:  # backends raise what they like
        if not isinstance(error, VisualRWKVError):
            _log.exception("an answer failed")
        kept = fed and entry.kept and not (tab.broken or isinstance(error, InputError | RollbackError))
        if kept:
            entry.finish, tab.broken = "failed", True
        else:
            tab.steps, tab.shown = before
            if fed:
                tab.entries.remove(entry)
        tab.answering = False
        yield {**about, "kept": kept, "void": fed and not kept, "answering": False, **explain(error)}
    finally:
        tab.answering = False


def _picture(room: Room, tab: Tab, ask: Ask) -> tuple[Shot | None, bool]:
    """Return the picture a question is about, and whether the conversation has yet to see it."""
    if tab.watching is not None:
        return tab.seen, False
    camera = room.camera(ask.camera)
    if camera is None:
        return None, False
    shot = camera.newest(timeout=2.0)
    if shot is None:
        raise InputError("no picture has come from the camera yet", hint="wait for it, or ask without a picture")
    return shot, tab.shown != (ask.camera, shot.number)


def _shown(entry: Entry) -> dict[str, Any]:
    return {"picture": entry.picture, "kept": entry.kept}


def _figures(stats: Stats) -> dict[str, float]:
    return {
        "tokens_per_s": stats.tokens_per_s,
        "tokens": stats.generated_tokens,
        "prompt_tokens": stats.prompt_tokens + stats.image_tokens,
        "vision_s": stats.vision_s,
        "prefill_s": stats.prefill_s,
    }
