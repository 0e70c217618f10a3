"""llama.cpp as a worker: `python -m benchmarks.peers.llama_cpp FILE.gguf THREADS`, in the environment "llama.cpp".

Calls the C functions, so that nothing of Python's high-level wrapper is in the figures.
"""

from __future__ import annotations

import ctypes
import random
import sys
from typing import Any

from benchmarks.peers.worker import seconds, serve

BATCH = 512


def main(file: str, threads: str) -> None:
    """Load a .gguf and answer calls."""
    import gguf
    import llama_cpp as lib

    lib.llama_backend_init()
    options: Any = lib.llama_model_default_params()
    options.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(file.encode(), options)
    if not model:
        raise SystemExit(f"llama.cpp cannot load {file}")
    settings: Any = lib.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = 1 << 20, BATCH, BATCH
    settings.n_threads = settings.n_threads_batch = int(threads)
    settings.no_perf = True
    context = lib.llama_init_from_model(model, settings)
    if not context:
        raise SystemExit(f"llama.cpp cannot make a context for {file}")
    memory: Any = lib.llama_get_memory(context)
    vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    rng = random.Random(0)

    def forward(ids: list[int]) -> Any:
        array = (lib.llama_token * len(ids))(*ids)
        status = lib.llama_decode(context, lib.llama_batch_get_one(array, len(ids)))
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        return lib.llama_get_logits_ith(context, -1)

    def ids(count: int) -> list[int]:
        return [rng.randrange(1, vocabulary - 1) for _ in range(count)]

    def decode(tokens: int) -> float:
        wanted = ids(tokens)
        return seconds(lambda: [forward([token]) for token in wanted])

    def prefill(tokens: int) -> float:
        """A prompt from the beginning, in batches, the logits of its last token."""
        lib.llama_memory_clear(memory, True)
        wanted = ids(tokens)
        return seconds(lambda: [forward(wanted[i : i + BATCH]) for i in range(0, tokens, BATCH)])

    def logits(tokens: list[int]) -> list[float]:
        lib.llama_memory_clear(memory, True)
        found = ctypes.cast(forward(tokens), ctypes.POINTER(ctypes.c_float))
        return found[:vocabulary]

    def ready() -> dict[str, Any]:
        tensors = gguf.GGUFReader(file).tensors
        read = sum(int(tensor.n_bytes) for tensor in tensors if tensor.name != "token_embd.weight")
        return {"engine": "llama.cpp", "read_per_token": read, "features": lib.llama_print_system_info().decode()}

    serve({"ready": ready, "decode": decode, "prefill": prefill, "logits": logits})


if __name__ == "__main__":
    main(*sys.argv[1:])
