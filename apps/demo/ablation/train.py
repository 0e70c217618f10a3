"""Train the variants in step: every one takes a step on the same questions, then all take the next.

So all see the same data at the same rates, however fast the machine is and whatever else it does. The clock decides
how many steps there are. Checkpoints and a log go to a folder at every report, at the end and on Ctrl-C.
"""

from __future__ import annotations

import csv
import json
import random
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from apps.demo.ablation.data import (
    VOCABULARY,
    Features,
    by_length,
    draw_rows,
    features,
    frozen_tower,
    prompt_of,
    training_features,
)
from apps.demo.ablation.model import AblationModel
from apps.demo.ablation.variants import VARIANTS, Sizes, Variant, export_config
from apps.demo.dataset import Words
from apps.demo.muon import Muon
from apps.demo.pool import HELD_OUT, Pool

PHRASES = 0.5  # weight of the read-outs
WARM = 40  # steps of rising rates


@dataclass(frozen=True)
class Plan:
    """How long and with what every variant is trained."""

    minutes: float  # of all variants together
    scenes: int = 64  # a step
    each: int = 1  # questions a scene
    rate: float = 4e-3  # AdamW's
    muon_rate: float = 0.02  # Muon's, for matrices
    hold: float = 0.5  # share of the time before the rates fall
    seed: int = 0
    parts: int = 1  # batches a step, by length
    report: float = 5  # minutes between measurements
    shards: int = 14  # of 4000 training scenes


def optimisers(net: AblationModel, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside, AdamW for the rest."""
    groups: dict[bool, list[nn.Parameter]] = defaultdict(list)
    for name, p in net.named_parameters():
        inside = p.ndim == 2 and name.endswith("weight") and not name.startswith(("heads.", "rwkv.emb", "rwkv.head"))
        if p.requires_grad:
            groups[inside].append(p)
    both = [
        Muon(groups[True], lr=plan.muon_rate),
        torch.optim.AdamW(groups[False], lr=plan.rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    for optimiser in both:
        for group in optimiser.param_groups:
            group["top"] = group["lr"]
    return both


class Training:
    """One variant in training."""

    def __init__(self, variant: Variant, sizes: Sizes, plan: Plan, words: Words, material: Features) -> None:
        self.variant, self.sizes, self.plan, self.words, self.material = variant, sizes, plan, words, material
        self.device = material.tokens.device
        self.half = torch.bfloat16
        torch.manual_seed(plan.seed)
        self.net = AblationModel(sizes, variant).to(self.device)
        self.optimisers = optimisers(self.net, plan)
        self.rng = random.Random(plan.seed)
        self.prompt = prompt_of(variant.position)
        self.steps, self.seen = 0, 0
        self.losses: list[tuple[float, float]] = []

    def loss(self, scenes: list[int], rng: random.Random) -> tuple[Tensor, Tensor]:
        """Answers' and read-outs' mean loss on questions about some scenes of the material.

        Gradients are added to the parameters', unless torch is told not to keep track of them.
        """
        chosen, tokens = [self.material.scenes[k] for k in scenes], self.material.tokens[scenes]
        rows = draw_rows(self.words, self.prompt, chosen, self.plan.each, rng, self.sizes.tokens)
        parts = []
        for batch in by_length(rows, self.plan.parts, tokens):
            with torch.autocast(self.device.type, self.half, enabled=self.half != torch.float32):
                answers, phrases = self.net.loss(batch.to(self.device), self.half)
            share = len(batch.rows) / len(rows)
            if torch.is_grad_enabled():
                ((answers + PHRASES * phrases) * share).backward()
            parts.append(torch.stack([answers.detach(), phrases.detach()]) * share)
        self.seen += len(rows)
        answers, phrases = torch.stack(parts).sum(0)
        return answers, phrases

    def step(self, done: float) -> None:
        """One update, when the share `done` of the training is over."""
        plan = self.plan
        losses = self.loss(self.rng.sample(range(len(self.material.scenes)), plan.scenes), self.rng)
        nn.utils.clip_grad_norm_([p for p in self.net.parameters() if p.grad is not None], 1.0)
        scale = min(1, (self.steps + 1) / WARM) * min(1, max(0.01, (1 - done) / (1 - plan.hold)))
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["top"] * scale
            optimiser.step()
            optimiser.zero_grad()
        self.steps += 1
        self.losses = [*self.losses[-49:], (float(losses[0]), float(losses[1]))]

    def means(self) -> dict[str, float]:
        """Both losses over the last steps."""
        answers, phrases = (sum(x) / len(x) for x in zip(*self.losses, strict=True))
        return {"answers": answers, "phrases": phrases}

    @torch.no_grad()
    def accuracy(self, held: Features, each: int = 6, seed: int = 1) -> dict[str, float]:
        """Exact match by kind on held-out scenes under teacher forcing (right exactly when greedy decoding is)."""
        hits: dict[str, list[bool]] = defaultdict(list)
        rows = draw_rows(self.words, self.prompt, held.scenes, each, random.Random(seed), self.sizes.tokens)
        for batch in (b.to(self.device) for b in by_length(rows, max(1, len(rows) // 256), held.tokens)):
            with torch.autocast(self.device.type, self.half, enabled=self.half != torch.float32):
                stream = self.net(batch, self.half)[-1].flatten(0, 1)[batch.learn_at]
                right = (self.net.logits(stream).argmax(-1) == batch.learn).tolist()
            for row in batch.rows:
                count = len(row.ids) - row.answer_at
                hits[row.item.kind].append(all(right[:count]))
                right = right[count:]
        scores = {kind: sum(h) / len(h) for kind, h in sorted(hits.items())}
        return {"all": sum(map(sum, hits.values())) / sum(map(len, hits.values())), **scores}


def write_checkpoint(net: AblationModel, words: Words, folder: Path) -> tuple[Path, Path]:
    """Write `NAME.safetensors` (official keys, fp32) and `NAME.json`, its `--config`; return both paths."""
    variant = net.variant
    folder.mkdir(parents=True, exist_ok=True)
    weights, config = folder / f"{variant.name}.safetensors", folder / f"{variant.name}.json"
    official = {k: x.detach().cpu().contiguous() for k, x in net.state_dict().items() if not k.startswith("heads.")}
    save_file(official, weights)
    (folder / VOCABULARY.name).write_bytes(VOCABULARY.read_bytes())
    said = export_config(variant, net.sizes, words.ids("\n\n")[0], VOCABULARY.name)
    config.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    return weights, config


def held_out(folder: Path, words: Words, device: torch.device, scenes: int) -> Features:
    """Held-out scenes of the demo's own training report."""
    shard = Pool(folder, 0).shard(HELD_OUT, 2000)
    return features(frozen_tower(words).to(device), shard.scenes[:scenes], shard.pictures[:scenes])


def train(names: list[str], pool: Path, out: Path, plan: Plan) -> None:
    """Train the named variants; `pool` holds drawn scenes and is filled on first use."""
    out.mkdir(parents=True, exist_ok=True)
    words = Words(VOCABULARY)
    sizes = Sizes(words.rows)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    material = training_features(pool, plan.shards, words)
    material.tokens = material.tokens.to(device)
    held = held_out(pool, words, device, 150)
    group = [Training(VARIANTS[name], sizes, plan, words, material) for name in names]
    began, shown = time.time(), time.time()
    done = 0.0
    try:
        while done < 1:
            for training in group:
                training.step(done)
            done = (time.time() - began) / 60 / plan.minutes
            if time.time() - shown > plan.report * 60 and done < 0.97:
                shown = time.time()
                _report(group, held, out, (shown - began) / 60, 2)
    except KeyboardInterrupt:
        print("stopped; the variants may differ by one step")
    finally:
        _report(group, held_out(pool, words, device, 300), out, (time.time() - began) / 60, 4)


def _report(group: list[Training], held: Features, out: Path, minutes: float, each: int) -> None:
    for training in group:
        write_checkpoint(training.net, training.words, out)
    for training in group:
        values = {**training.means(), **training.accuracy(held, each)}
        _log(out / "log.csv", training.variant.name, minutes, training, values)


def _log(path: Path, name: str, minutes: float, training: Training, values: dict[str, float]) -> None:
    print(f"{name} {minutes:.1f} min, step {training.steps}, {training.seen} answers:",
          " ".join(f"{k} {v:.3f}" for k, v in values.items()), flush=True)  # fmt: skip
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(("variant", "minutes", "step", "answers", "quantity", "value"))
        for key, value in values.items():
            writer.writerow((name, f"{minutes:.2f}", training.steps, training.seen, key, f"{value:.4f}"))
