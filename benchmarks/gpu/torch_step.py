"""The same decode step written in PyTorch, as one would: eager, and captured into a CUDA graph."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.decode import Decoder
from benchmarks.gpu.device import Gpu


def torch_seconds(device: Gpu, decoder: Decoder) -> dict[str, float]:
    """Return seconds per token of the float16 model of `decoder`, "eager" and "captured"."""
    torch = device.torch
    functional = torch.nn.functional
    size, heads = decoder.size, decoder.heads

    def tensor(name: str) -> Any:
        buffer, dtype, shape = decoder.weights[name][0]
        return buffer.owner.view(getattr(torch, dtype)).reshape(shape).half()

    names = {name.split(".", 1)[1] for name in decoder.weights if "." in name}
    layers = [{name: tensor(f"{i}.{name}") for name in names} for i in range(size.layers)]
    embedding, head, out_scale, out_bias = (tensor(n) for n in ("embedding", "head", "out_scale", "out_bias"))
    half = {"dtype": torch.float16, "device": "cuda"}
    att, ffn = (torch.zeros(size.layers, size.width, **half) for _ in range(2))
    wkv = torch.zeros(size.layers, heads, 64, 64, device="cuda")
    token = torch.ones(1, dtype=torch.int64, device="cuda")

    def step() -> Any:
        x, first = embedding.index_select(0, token)[0], None
        for i, g in enumerate(layers):
            n = functional.layer_norm(x, (size.width,), g["ln1_scale"], g["ln1_bias"])
            h_r, h_k, h_v, h_w, h_a, h_g = (n + (att[i] - n) * g["mix"]).unbind()
            att[i].copy_(n)
            r, k, v = g["r"] @ h_r, g["k"] @ h_k, g["v"] @ h_v
            decay = torch.exp(-0.6065306597 * torch.sigmoid((g["w0"] + g["w2"] @ torch.tanh(g["w1"] @ h_w)).float()))
            rate = torch.sigmoid(g["a0"] + g["a2"] @ (g["a1"] @ h_a))
            gate = g["g2"] @ torch.sigmoid(g["g1"] @ h_g)
            if first is None:
                first = v
            else:
                v = v + (first - v) * torch.sigmoid(g["v0"] + g["v2"] @ (g["v1"] @ h_v))
            kappa = functional.normalize((k * g["k_k"]).view(heads, 64), dim=-1)
            k = k * (1 + (rate - 1) * g["k_a"])
            split = [one.float().view(heads, 64) for one in (r, k, v)]
            b = (kappa * rate.view(heads, 64)).float()
            removed = torch.bmm(-kappa.float().unsqueeze(1), wkv[i])
            s = (
                wkv[i] * decay.view(heads, 64, 1)
                + b.unsqueeze(2) * removed
                + split[1].unsqueeze(2) * split[2].unsqueeze(1)
            )
            wkv[i].copy_(s)
            y = torch.bmm(split[0].unsqueeze(1), s).view(1, -1).half()
            y = functional.group_norm(y, heads, g["norm_scale"], g["norm_bias"], 64e-5)[0]
            bonus = ((r * k * g["r_k"]).view(heads, 64).sum(-1, keepdim=True) * v.view(heads, 64)).view(-1)
            x = x + g["out"] @ ((y + bonus) * gate)
            n = functional.layer_norm(x, (size.width,), g["ln2_scale"], g["ln2_bias"])
            hidden = torch.relu(g["key"] @ (n + (ffn[i] - n) * g["ffn_mix"][0]))
            ffn[i].copy_(n)
            x = x + g["value"] @ (hidden * hidden)
        token.copy_((token * 7919 + 12345) % size.vocabulary)
        return head @ functional.layer_norm(x, (size.width,), out_scale, out_bias)

    with torch.no_grad():
        for _ in range(3):
            step()
        return {"eager": device.replayed(step, 1), "captured": device.seconds([step])}
