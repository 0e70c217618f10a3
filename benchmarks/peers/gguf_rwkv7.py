"""An official RWKV-7 language model as .gguf for llama.cpp, quantised by llama.cpp itself.

    python -m benchmarks.peers.gguf_rwkv7 text-0.1B.safetensors text-0.1B-q8_0.gguf q8_0

Runs in the environment "llama.cpp". Names and layouts are those that llama.cpp's loader of `rwkv7` asks for; its own
quantiser then decides which tensors get which format, as for every user of it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.tensors import iterate_tensors

HEAD = 64
FILE_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 7}  # llama_ftype
MIXES = "rwkvag"  # order in which llama.cpp stacks the token-shift weights
WHOLE = {
    "emb.weight": "token_embd.weight",
    "head.weight": "output.weight",
    "ln_out.weight": "output_norm.weight",
    "ln_out.bias": "output_norm.bias",
    "blocks.0.ln0.weight": "token_embd_norm.weight",
    "blocks.0.ln0.bias": "token_embd_norm.bias",
}
IN_BLOCK = {
    "ln1": "attn_norm",
    "ln2": "attn_norm_2",
    "att.ln_x": "time_mix_ln",
    "att.receptance": "time_mix_receptance",
    "att.key": "time_mix_key",
    "att.value": "time_mix_value",
    "att.output": "time_mix_output",
    "ffn.key": "channel_mix_key",
    "ffn.value": "channel_mix_value",
    "ffn.x_k": "channel_mix_lerp_k",
}
MATRICES = ("receptance.weight", "key.weight", "value.weight", "output.weight", "token_embd.weight")


def renamed(tensors: Iterator[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    """Turn official names and shapes into llama.cpp's, tensor by tensor."""
    mixes: dict[str, dict[str, np.ndarray]] = {}
    for name, array in tensors:
        if name in WHOLE:
            yield WHOLE[name], array
            continue
        found = re.fullmatch(r"blocks\.(\d+)\.(.+?)(\.weight|\.bias)?", name)
        if not found:
            raise ValueError(f"{name} is no tensor of an RWKV-7 language model")
        block, key, ending = f"blk.{found[1]}.", found[2], found[3] or ".weight"
        if key in IN_BLOCK:
            yield block + IN_BLOCK[key] + ending, array.reshape(array.shape if array.ndim == 2 else -1)
        elif key.startswith("att.x_"):
            kept = mixes.setdefault(block, {})
            kept[key[-1]] = array.reshape(-1)
            if len(kept) == len(MIXES):
                stacked = np.stack([kept[letter] for letter in MIXES])
                yield f"{block}time_mix_lerp_fused.weight", stacked[:, None, None]
        else:
            short = key.removeprefix("att.")
            flat = array.T if re.fullmatch("[wavg][12]", short) else array.reshape(-1)
            yield f"{block}time_mix_{short}.weight", np.ascontiguousarray(flat)
            if found[1] == "0" and short in ("a0", "a1", "a2"):  # the first layer's value mix: wanted, never read
                yield f"{block}time_mix_v{short[1]}.weight", np.ascontiguousarray(flat)


def write_gguf(source: Path, target: Path) -> None:
    """Write a float16 .gguf: large matrices in float16, everything small in float32."""
    import gguf

    shapes = {name: array.shape for name, array in iterate_tensors(source)}
    width = shapes["emb.weight"][1]
    writer: Any = gguf.GGUFWriter(target, "rwkv7", use_temp_file=True)
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(width)
    writer.add_block_count(sum(name.endswith("ffn.key.weight") for name in shapes))
    writer.add_layer_norm_eps(1e-5)
    writer.add_wkv_head_size(HEAD)
    for letter, add in zip(
        "wavg",
        (
            writer.add_decay_lora_rank,
            writer.add_iclr_lora_rank,
            writer.add_value_residual_mix_lora_rank,
            writer.add_gate_lora_rank,
        ),
        strict=True,
    ):
        add(shapes[f"blocks.1.att.{letter}1"][1])
    writer.add_feed_forward_length(shapes["blocks.0.ffn.key.weight"][0])
    writer.add_head_count(0)
    writer.add_file_type(FILE_TYPES["f16"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(shapes["emb.weight"][0])
    for name, array in renamed(iterate_tensors(source)):
        writer.add_tensor(name, array.astype(np.float16) if name.endswith(MATRICES) else array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantise(source: Path, target: Path, kind: str, threads: int = 1) -> None:
    """Quantise a .gguf as `llama-quantize` does. Raises `OSError` if llama.cpp refuses."""
    import ctypes

    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype = threads, FILE_TYPES[kind]
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    if status:
        raise OSError(f"llama_model_quantize of {source} to {kind} returned {status}")


def main(source: str, target: str, kind: str) -> None:
    """Write `target`, whole or not at all."""
    part, plain = Path(f"{target}.part"), Path(f"{target}.f16")
    write_gguf(Path(source), plain)
    try:
        if kind == "f16":
            plain.replace(part)
        else:
            quantise(plain, part, kind)
        part.replace(target)
    finally:
        plain.unlink(missing_ok=True)
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
