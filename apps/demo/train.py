"""Train the demo model: `python -m apps.demo.train tower`, then `language`, then `joint`.

    tower     the vision tower alone, on dense labels
    language  projector and language model on the frozen tower's features
    joint     everything together; also conversations of several turns and questions about several frames

Every phase starts from `--start`, holds its rate and then anneals it to nearly nothing, and saves its state to
`--out` every minute, at the end and on Ctrl-C. The same command with `--start` set to that file goes on.
"""

from __future__ import annotations

import argparse
import csv
import pickle
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from apps.demo.dataset import CELL_WIDTHS, Batch, Words, labels_of, make_pool, split_by_length
from apps.demo.frames import conversations
from apps.demo.model import DemoModel, Shape
from apps.demo.muon import Muon
from apps.demo.questions import WEIGHTS
from apps.demo.scenes import Scene

HERE = Path(__file__).parent
HELD_OUT = 0  # seeds of held-out scenes start here, those of training scenes at TRAINING
TRAINING = 1_000_000
FORGETFUL = 0.02  # weight of the newest value in printed averages


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m apps.demo.train", description=__doc__.splitlines()[0] if __doc__ else "")
    p.add_argument("phase", choices=("tower", "language", "joint"))
    p.add_argument("--pool", type=Path, required=True, help="folder of drawn scenes; filled on first use")
    p.add_argument("--shards", type=int, default=36, help="training shards of 4000 scenes")
    p.add_argument("--start", type=Path, help="training state to start from")
    p.add_argument("--out", type=Path, required=True, help="training state to write")
    p.add_argument("--log", type=Path, default=HERE / "training_log.csv", help="CSV file to append to")
    p.add_argument("--minutes", type=float, default=30.0)
    p.add_argument("--hold", type=float, default=0.5, help="share of the time before the rate falls")
    p.add_argument("--scenes", type=int, default=0, help="scenes a step; 0: 64 for the tower, else 20")
    p.add_argument("--questions", type=int, default=12, help="questions a scene")
    p.add_argument("--rate", type=float, default=2e-3, help="AdamW's rate")
    p.add_argument("--muon-rate", type=float, default=0.012, help="Muon's rate, for matrices")
    p.add_argument("--tower-share", type=float, default=0.15, help="the tower's share of the rates in `joint`")
    p.add_argument("--phrases", type=float, default=0.5, help="weight of the read-outs at phrases")
    p.add_argument("--turns", type=float, default=0.0, help="share of scenes asked in conversations of 2 or 3 turns")
    p.add_argument("--frames", type=float, default=0.0, help="share of steps about two to four frames (joint only)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=2)
    return p


class Pool:
    """Shards of drawn scenes on disk, pickled by this program, made where they are missing."""

    def __init__(self, folder: Path, shards: int) -> None:
        self.folder, self.shards = folder, shards
        folder.mkdir(parents=True, exist_ok=True)

    def shard(self, first: int, count: int) -> tuple[list[Scene], Tensor]:
        """Scenes of some seeds, and their pictures, RGB uint8 [count, 64, 64, 3]."""
        path = self.folder / f"{first}-{count}.pkl"
        if not path.exists():
            partial = path.with_suffix(".partial")
            partial.write_bytes(pickle.dumps(make_pool(first, count)))
            partial.rename(path)
        scenes, pictures = pickle.loads(path.read_bytes())
        return list(scenes), torch.from_numpy(pictures)

    def training(self, rng: random.Random) -> Iterator[tuple[int, list[Scene], Tensor]]:
        """Training shards in random order, without end."""
        while True:
            for i in rng.sample(range(self.shards), self.shards):
                yield i, *self.shard(TRAINING + 4000 * i, 4000)


class Trainer:
    """One phase of the recipe."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(options.threads)
        torch.manual_seed(options.seed)
        self.rng = random.Random(options.seed)
        self.words = Words(HERE / "vocab.txt")
        self.net = DemoModel(Shape(self.words.rows)).to(self.device)
        if options.start:
            self.net.load_state_dict(torch.load(options.start, weights_only=True, map_location=self.device))
        self.pool = Pool(options.pool, options.shards)
        self.held, pictures = self.pool.shard(HELD_OUT, 2000)
        self.held_pictures = pictures.to(self.device)
        self.weights = dict(WEIGHTS)
        self.count = options.scenes or (64 if options.phase == "tower" else 20)
        self.seen, self.steps, self.averages = 0, 0, dict[str, float]()
        self.optimisers = self._optimisers()

    def _optimisers(self) -> list[torch.optim.Optimizer]:
        o, groups = self.options, defaultdict(list)
        for name, p in self.net.named_parameters():
            part = "vit" if name.startswith("vit") else "heads" if name.startswith("heads") else "rest"
            used = {"tower": part == "vit" or name.startswith(("heads.cell", "heads.patch", "heads.scene")),
                    "language": part == "rest" or name.startswith(("heads.mention", "heads.gather")),
                    "joint": True}[o.phase]  # fmt: skip
            p.requires_grad_(used)
            apart = any(word in name for word in ("emb", "rwkv.head", "heads.", "position"))
            matrix = p.ndim == 2 and name.endswith("weight") and not apart
            if used:
                groups[matrix, part == "vit"].append(p)
        share = {True: o.tower_share if o.phase == "joint" else 1.0, False: 1.0}
        muon = [{"params": groups[True, v], "lr": o.muon_rate * share[v]} for v in share if groups[True, v]]
        adam = [{"params": groups[False, v], "lr": o.rate * share[v]} for v in share if groups[False, v]]
        both = [Muon(muon), torch.optim.AdamW(adam, betas=(0.9, 0.98), weight_decay=0.0)]
        for optimiser in both:
            for group in optimiser.param_groups:
                group["top"] = group["lr"]
        return both

    def _step(self, loss: Tensor, done: float) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in self.net.parameters() if p.grad is not None], 1.0)
        scale = min(1, (self.steps + 1) / 80) * min(1, max(0.01, (1 - done) / (1 - self.options.hold)))
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["top"] * scale
            optimiser.step()
            optimiser.zero_grad()
        self.steps += 1

    def _note(self, **values: float) -> None:
        for name, value in values.items():
            old = self.averages.get(name, value)
            self.averages[name] = old + FORGETFUL * (value - old)

    def precision(self) -> torch.autocast:
        """bf16 matrix products; weights, norms and the recurrence stay fp32."""
        return torch.autocast(self.device.type, torch.bfloat16)

    # ------------------------------------------------------------------------------------------- steps

    def tower_step(self, pictures: Tensor, scenes: list[Scene], done: float) -> None:
        """One step on dense labels."""
        with self.precision():
            patches, cells = self.net.features(pictures)
            loss = self.net.tower_loss(patches, cells, labels_of(scenes).to(self.device))
        self._note(dense=loss.item())
        self._step(loss, done)

    def question_losses(self, batches: list[Batch], frames: list[Tensor]) -> Tensor:
        """Answers' loss and phrases' loss over batches that read the states of the same scenes."""
        before, between = self.words.ids("User: "), self.words.ids("\n")
        state = self.net.look(frames, before, between)
        tokens = sum(int(b.learn.sum()) for b in batches)
        answers = phrases = torch.zeros((), device=self.device)
        for batch in (b.to(self.device) for b in batches):
            streams = self.net.read(batch.ids, state, batch.scene)
            answers = answers + self.net.answer_loss(streams[-1], batch) / tokens
            phrases = phrases + self.net.phrase_loss(streams, batch) * len(batch.rows)
        phrases = phrases / sum(len(b.rows) for b in batches)
        self._note(answers=answers.item(), phrases=phrases.item())
        return answers + self.options.phrases * phrases

    def question_step(self, source: Tensor, scenes: list[Scene], done: float, many: bool) -> None:
        """One step on questions; `source` are features (tower frozen) or pictures."""
        o = self.options
        rows, chosen, pairs = conversations(self.words, scenes, o.questions, self.rng, self.weights, o.turns, many)
        batches = split_by_length(rows, 3)
        with self.precision():
            if o.phase == "language":
                loss = self.question_losses(batches, [source])
            elif many:
                frames = [self.net.features(p.to(self.device))[1] for p in pairs]
                loss = self.question_losses(batches, frames)
            else:
                patches, cells = self.net.features(source)
                dense = self.net.tower_loss(patches, cells, labels_of(chosen).to(self.device))
                self._note(dense=dense.item())
                loss = self.question_losses(batches, [cells]) + 0.1 * dense
        self.seen += len(rows)
        self._step(loss, done)

    # --------------------------------------------------------------------------------------- measuring

    @torch.no_grad()
    def embed(self, pictures: Tensor) -> Tensor:
        """Pooled features of many pictures, bf16 [n, 16, D]."""
        with self.precision():
            parts = [self.net.features(p.to(self.device))[1].bfloat16() for p in pictures.split(500)]
        return torch.cat(parts)

    @torch.no_grad()
    def measure(self, scenes: int = 400, seed: int = 1) -> dict[str, float]:
        """Held-out accuracy: cells for the tower; exact match per kind and language (teacher forced = greedy)."""
        hits: dict[str, list[bool]] = defaultdict(list)
        if self.options.phase != "language":
            with self.precision():
                cells = self.net.features(self.held_pictures[:scenes])[1]
                out, target = self.net.heads.cell(cells), labels_of(self.held[:scenes]).cells.to(self.device)
            names = ("form", "colour", "size", "text")
            for j, part in enumerate(out[..., : sum(CELL_WIDTHS)].split(CELL_WIDTHS, -1)):
                counts = target[..., j] > 0 if j == 0 else target[..., j] >= 0
                hits[f"cell {names[j]}"] = (part.argmax(-1) == target[..., j])[counts].tolist()
        if self.options.phase != "tower":
            rng, flat = random.Random(seed), dict.fromkeys(WEIGHTS, 1.0)
            for i in range(0, scenes, 50):
                part = self.held[i : i + 50]
                features = self.embed(self.held_pictures[i : i + 50]).float()
                rows, _, _ = conversations(self.words, part, 8, rng, flat, self.options.turns, False)
                self._score(rows, [features], hits)
            if self.options.frames:
                rows, _, pairs = conversations(self.words, self.held[:160], 6, rng, flat, 0.0, True)
                self._score(rows, [self.embed(p).float() for p in pairs], hits)
        return {name: float(np.mean(values)) for name, values in sorted(hits.items())}

    def _score(self, rows: list, frames: list[Tensor], hits: dict[str, list[bool]]) -> None:
        with self.precision():
            state = self.net.look(frames, self.words.ids("User: "), self.words.ids("\n"))
            for batch in (b.to(self.device) for b in split_by_length(rows, 2)):
                best = self.net.logits(self.net.read(batch.ids, state, batch.scene)[-1]).argmax(-1)
                right = (best[:, :-1] == batch.ids[:, 1:]).cpu()
                for i, row in enumerate(batch.rows):
                    for turn, (start, end, item) in enumerate(row.answers):
                        good = bool(right[i, start - 1 : end - 1].all())
                        hits[f"{item.kind} {item.language}" if turn == 0 else "later turns"].append(good)

    def report(self, minutes: float, scores: dict[str, float]) -> None:
        """Print and log where training stands; kinds that lag are asked more often from now on."""
        for kind, weight in WEIGHTS.items():
            own = [v for k, v in scores.items() if k.split()[0] in (kind, *({"digit", "word"} if kind == "text" else ()))]
            if own:
                self.weights[kind] = weight * (0.35 + 4 * min(0.5, 1 - min(own)))
        averages = " ".join(f"{k} {v:.3f}" for k, v in self.averages.items())
        print(f"{minutes:.1f} min, step {self.steps}, {self.seen} answers, {averages} |",
              " ".join(f"{k} {v:.3f}" for k, v in scores.items()), flush=True)  # fmt: skip
        new = not self.options.log.exists()
        with self.options.log.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(("phase", "minutes", "step", "answers", "quantity", "value"))
            for name, value in {**self.averages, **scores}.items():
                writer.writerow((self.options.phase, f"{minutes:.2f}", self.steps, self.seen, name, f"{value:.4f}"))

    def save(self) -> None:
        """Write the training state."""
        partial = self.options.out.with_suffix(".partial")
        torch.save(self.net.state_dict(), partial)
        partial.rename(self.options.out)

    def run(self) -> None:
        """Train until the time is up or Ctrl-C."""
        o, began, shown = self.options, time.time(), time.time()
        features: dict[int, Tensor] = {}
        try:
            for i, scenes, pictures in self.pool.training(self.rng):
                if o.phase == "language":
                    features[i] = features[i] if i in features else self.embed(pictures)
                for _ in range(60):
                    minutes = (time.time() - began) / 60
                    if minutes >= o.minutes:
                        return
                    pick = self.rng.sample(range(len(scenes)), self.count)
                    some = [scenes[k] for k in pick]
                    source = features[i][pick].float() if o.phase == "language" else pictures[pick].to(self.device)
                    if o.phase == "tower":
                        self.tower_step(source, some, minutes / o.minutes)
                    else:
                        many = o.phase == "joint" and self.rng.random() < o.frames
                        self.question_step(source, some, minutes / o.minutes, many)
                    if time.time() - shown > 75:
                        self.report(minutes, self.measure())
                        self.save()
                        shown = time.time()
        except KeyboardInterrupt:
            print("stopped")
        finally:
            self.save()
            self.report((time.time() - began) / 60, self.measure(2000, 2))


if __name__ == "__main__":
    Trainer(arguments().parse_args()).run()
