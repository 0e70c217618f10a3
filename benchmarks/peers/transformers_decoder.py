"""Decoders with a growing cache, as workers: `python -m benchmarks.peers.transformers_decoder KIND SIZE DTYPE THREADS`.

"llama" is the language model of LLaVA-1.5 (proportions of Vicuna, multi-head attention), "jamba" a hybrid in the manner
of LongLLaVA (one layer of attention to seven of Mamba, dense feed-forward), both with random weights and with width,
layers and vocabulary of our model of that size. Runs in the environment "torch".

Feeding 24,576 tokens takes such a decoder many minutes on a CPU, so `context` fills the cache with random numbers
instead: the time of a step does not depend on them.
"""

from __future__ import annotations

import gc
import sys
from typing import Any

from benchmarks.measure import memory_mb
from benchmarks.peers.worker import seconds, serve

SIZES = {"tiny": (8, 128), "0.1B": (12, 768), "0.4B": (24, 1024), "1.5B": (24, 2048)}  # layers, width
VOCABULARY, TINY_VOCABULARY = 65536, 256
FEED_FORWARD = 11008 / 4096  # of the width, in Vicuna 7B
HEAD, TINY_HEAD = 128, 32
SLACK = 64  # steps that fit behind a filled cache


def config_of(kind: str, size: str) -> Any:
    """Return the transformers configuration."""
    from transformers import JambaConfig, LlamaConfig

    layers, width = SIZES[size]
    heads = width // (TINY_HEAD if size == "tiny" else HEAD)
    common = {
        "vocab_size": TINY_VOCABULARY if size == "tiny" else VOCABULARY,
        "hidden_size": width,
        "intermediate_size": round(FEED_FORWARD * width / 64) * 64,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 1 << 17,
        "tie_word_embeddings": False,
    }
    if kind == "llama":
        return LlamaConfig(num_key_value_heads=heads, **common)
    groups = max(1, heads // 4) if heads % 4 == 0 else heads // 2 if heads % 2 == 0 else heads
    return JambaConfig(num_key_value_heads=groups, num_experts=1, **common)


class Decoder:
    """A model, and a cache of any length."""

    def __init__(self, kind: str, size: str, dtype: str, threads: int) -> None:
        """Make the model with random weights."""
        import torch
        from transformers import JambaForCausalLM, LlamaForCausalLM

        self.torch = torch
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        torch.manual_seed(0)
        torch.set_default_dtype(getattr(torch, dtype))
        self.config = config_of(kind, size)
        self.model: Any = {"llama": LlamaForCausalLM, "jamba": JambaForCausalLM}[kind](self.config).eval()
        self.static = kind == "llama"
        self.cache: Any = None
        self.length = 0

    def fill(self, length: int) -> None:
        """Make a cache that holds `length` positions.

        The Llama decoder gets a cache of fixed size that is written in place, which is faster on a CPU than
        transformers' default, which copies the whole cache at every step.
        """
        from transformers import DynamicCache, StaticCache

        self.cache = None
        gc.collect()
        self.length = length
        if self.static:
            self.cache = StaticCache(config=self.config, max_cache_len=length + SLACK)
        else:
            self.cache = DynamicCache(config=self.config)
        self.step(1)
        for layer in self._attention():
            if self.static:
                layer.keys[:, :, :length].normal_()
                layer.values[:, :, :length].normal_()
            else:
                shape = (*layer.keys.shape[:2], length, layer.keys.shape[3])
                layer.keys, layer.values = self.torch.randn(shape), self.torch.randn(shape)
        self._rewind()

    def step(self, token: int) -> Any:
        """Feed one token; return its logits [V]."""
        ids = self.torch.tensor([[token]])
        return self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits[0, -1]

    def decode(self, tokens: int) -> float:
        """Feed `tokens` one by one, behind the same context every time; return the seconds."""
        if tokens > SLACK:
            raise ValueError(f"{tokens} tokens, at most {SLACK} fit behind the context")
        self._rewind()
        return seconds(lambda: [self.step(1 + i) for i in range(tokens)])

    def read_per_token(self) -> dict[str, int]:
        """Return the bytes that one step reads: weights but the embedding table, and the cache."""
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        table = self.model.get_input_embeddings().weight
        cached = [tensor for layer in self._attention() for tensor in (layer.keys, layer.values)]
        share = self.length / cached[0].shape[2] if cached else 0  # a fixed cache has room behind the context
        return {
            "weights": weights - table.numel() * table.element_size(),
            "cache": round(share * sum(tensor.numel() * tensor.element_size() for tensor in cached)),
        }

    def _attention(self) -> list[Any]:
        """Layers of the cache that hold keys and values."""
        layers = self.cache.layers if self.cache is not None else []
        return [layer for layer in layers if getattr(layer, "keys", None) is not None and layer.keys.dim() == 4]

    def _rewind(self) -> None:
        for layer in self._attention():
            if self.static:
                layer.cumulative_length.fill_(self.length)
            else:
                layer.keys, layer.values = layer.keys[:, :, : self.length], layer.values[:, :, : self.length]


def main(kind: str, size: str, dtype: str, threads: str) -> None:
    """Make the model and answer calls."""
    import torch  # noqa: F401 (libraries are not the model's memory)
    from transformers import JambaForCausalLM, LlamaForCausalLM  # noqa: F401

    before = memory_mb()
    decoder = Decoder(kind, size, dtype, int(threads))

    def ready() -> dict[str, Any]:
        parameters = sum(p.numel() for p in decoder.model.parameters())
        return {"engine": f"transformers {kind}", "format": dtype, "parameters": parameters, "before_mb": before}

    def context(length: int) -> dict[str, int]:
        decoder.fill(length)
        return decoder.read_per_token()

    serve({"ready": ready, "context": context, "decode": decoder.decode})


if __name__ == "__main__":
    main(*sys.argv[1:])
