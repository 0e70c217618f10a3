"""Baking a system prompt into a bundle: every session then starts behind it, without feeding it.

The official template of VisualRWKV has no system role. What is baked is the form that RWKV "World" language models
were trained with, `System: TEXT` and the end of a turn, tokenised as one message; text alone, in front of everything.
A bundle whose first prompts are padded gets this prompt padded instead, so that what follows keeps its alignment.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from runtime.backends.base import Backend
from runtime.bundle import Bundle, fingerprint, sha256_file
from runtime.engine import Engine
from runtime.errors import ConfigError
from runtime.feeding import PAD_TO
from runtime.guard import Watchdog
from runtime.model import WARM
from runtime.prompt import clean
from runtime.spec import MANIFEST_FILE, FileSpec, WarmSpec
from runtime.store import VERSION
from runtime.targets import open_backend
from runtime.tensorfile import write_tensors
from runtime.tokenizer import Tokenizer

WARM_FILE = "warm.safetensors"
SYSTEM = "System: "


def bake(bundle: Bundle, text: str, *, backend: Backend | None = None, threads: int | None = None) -> Bundle:
    """Add the state after a system prompt to a finished bundle; its manifest and fingerprint change.

    The state is computed by the runtime, from the bundle's own graphs in its own precision. A bundle that has one
    already gets the new one instead.

    Args:
        bundle: a bundle whose folder can be written.
        text: what the system says; blank lines in it become line ends.
        backend: what to compute on (default: this machine's CPU), closed afterwards.
        threads: compute threads.

    Raises:
        ConfigError: the text is empty, or drives the state out of bounds.
    """
    manifest = bundle.manifest
    if not clean(text):
        raise ConfigError("the system prompt is empty", hint="leave --system-prompt out")
    prompt = f"{SYSTEM}{clean(text)}{manifest.prompt.turn_end}"
    ids = Tokenizer(bundle.file(manifest.tokenizer.file)).encode(prompt)
    if manifest.tokenizer.padding == "left16":
        ids = [manifest.tokenizer.pad_id] * (-len(ids) % PAD_TO) + ids
    engine = Engine(bundle, backend or open_backend("cpu", manifest.target, threads))
    try:
        state = engine.new_state()
        engine.advance(ids, state)
        fault = Watchdog().fault(state)
        snapshot = state.snapshot()
    finally:
        engine.close()
    if fault:
        raise ConfigError(f"the state after the system prompt is bad: {fault}", hint="try another text")
    carried = {slot.name for slot in manifest.slots if slot.role == "carried"}
    arrays = {name: np.asarray(array) for name, array in snapshot.arrays.items() if name in carried}
    about = {"format": WARM, "version": str(VERSION), "prompt": prompt, "tokens": str(len(ids))}
    path = bundle.file(WARM_FILE)
    write_tensors(path, arrays, about)
    files = {**manifest.files, WARM_FILE: FileSpec(path.stat().st_size, sha256_file(path))}
    baked = replace(manifest, files=files, fingerprint=fingerprint(files), warm=WarmSpec(WARM_FILE, prompt, len(ids)))
    bundle.file(MANIFEST_FILE).write_text(baked.to_json(), encoding="utf-8")
    return Bundle(bundle.path, baked)
