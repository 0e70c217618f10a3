"""Train the demo model: `python -m apps.demo.train tower`, then `language`, then `joint`.

    tower     the vision tower alone, on dense labels
    language  projector and language model on the frozen tower's features
    joint     everything together

`--turns` adds conversations of several turns, `--frames` questions while several frames are watched.

Every phase starts from `--start`, holds its rate and then anneals it to nearly nothing, and saves its state to
`--out` every minute, at the end and on Ctrl-C. The same command with `--start` set to that file goes on.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import random
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from apps.demo.dataset import Row, Words, labels_of, split_by_length
from apps.demo.frames import bridges, conversations, frame_rows
from apps.demo.measure import QUICK, Meter, embed, precision
from apps.demo.model import DemoModel, Shape
from apps.demo.muon import Muon
from apps.demo.pool import Material, Pool, Shard
from apps.demo.questions import WEIGHTS

HERE = Path(__file__).parent
LENGTHS = {2: 0.14, 3: 0.14, 4: 0.14, 6: 0.16, 8: 0.14, 12: 0.18, 16: 0.1}  # frames watched, and how often
FEWEST = 6  # sequences of frames a step
FORGETFUL = 0.02  # weight of the newest value in printed averages


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m apps.demo.train", description=__doc__.splitlines()[0] if __doc__ else ""
    )
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
    p.add_argument("--frames", type=float, default=0.0, help="share of steps about 2 to 16 frames")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=1, help="threads a rank")
    p.add_argument("--report", type=float, default=120, help="seconds between reports")
    p.add_argument("--ranks", type=int, default=1, help="processes that share the work")
    return p


class Trainer:
    """One phase of the recipe."""

    def __init__(self, options: argparse.Namespace, rank: int = 0) -> None:
        self.options, self.rank = options, rank
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(options.threads)
        torch.manual_seed(options.seed)
        self.rng = random.Random(options.seed * 100 + rank)
        self.words = Words(HERE / "vocab.txt")
        self.net = DemoModel(Shape(self.words.rows)).to(self.device)
        if options.start:
            found = torch.load(options.start, weights_only=True, map_location=self.device)
            self.net.load_state_dict(found, strict=False)  # a phase may bring heads of its own
        tower = b"".join(x.cpu().numpy().tobytes() for x in self.net.vit.state_dict().values())
        self.tower = hashlib.sha256(tower).hexdigest()[:12]  # names features that may be used again
        self.pool = Pool(options.pool, options.shards)
        self.meter = Meter(self.net, self.words, self.pool)
        self.weights = dict(WEIGHTS)
        self.count = options.scenes or (64 if options.phase == "tower" else 20)
        self.seen, self.steps, self.averages = 0, 0, dict[str, float]()
        self.optimisers = self._optimisers()

    def _optimisers(self) -> list[torch.optim.Optimizer]:
        o, groups = self.options, defaultdict(list)
        for name, p in self.net.named_parameters():
            part = "vit" if name.startswith("vit") else "heads" if name.startswith("heads") else "rest"
            seeing = part == "vit" or name.startswith(("heads.cell", "heads.patch", "heads.scene"))
            used = o.phase == "joint" or seeing == (o.phase == "tower")
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
        self.average()
        nn.utils.clip_grad_norm_([p for p in self.net.parameters() if p.grad is not None], 1.0)
        scale = min(1, (self.steps + 1) / 80) * min(1, max(0.01, (1 - done) / (1 - self.options.hold)))
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["top"] * scale
            optimiser.step()
            optimiser.zero_grad()
        self.steps += 1

    def average(self) -> None:
        """Replace gradients by their mean over the ranks."""
        if self.options.ranks > 1:
            used = [p for p in self.net.parameters() if p.requires_grad]
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in used]
            flat = torch.cat([g.flatten() for g in grads])
            dist.all_reduce(flat)
            for p, g in zip(used, flat.split([g.numel() for g in grads]), strict=True):
                p.grad = g.view_as(p) / self.options.ranks

    def agree(self, minutes: float, report: bool) -> tuple[float, bool]:
        """The first rank's clock, whether it is time to report, and its weights of the kinds."""
        if self.options.ranks == 1:
            return minutes, report
        said = torch.tensor([minutes, float(report), *self.weights.values()], dtype=torch.float64)
        dist.broadcast(said, 0)
        self.weights = dict(zip(self.weights, said[2:].tolist(), strict=True))
        return float(said[0]), bool(said[1])

    def _note(self, **values: float) -> None:
        for name, value in values.items():
            old = self.averages.get(name, value)
            self.averages[name] = old + FORGETFUL * (value - old)

    # ------------------------------------------------------------------------------------------- steps

    def tower_step(self, material: Material, done: float) -> None:
        """One step on dense labels."""
        pick = self.rng.sample(range(len(material.scenes)), self.count)
        scenes, pictures = [material.scenes[k] for k in pick], material.source[pick].to(self.device)
        with precision(self.device):
            patches, cells = self.net.features(pictures)
            loss = self.net.tower_loss(patches, cells, labels_of(scenes).to(self.device))
        self._note(dense=loss.item())
        self._step(loss, done)

    def read(self, rows: list[Row], frames: list[Tensor], between: list[Tensor]) -> Tensor:
        """Answers' loss plus weighted read-outs, over rows that continue the states of the same scenes."""
        state, marks = self.net.look(frames, self.words.ids("User: "), between)
        batches = [b.to(self.device) for b in split_by_length(rows, 3)]
        tokens = sum(int(b.learn.sum()) for b in batches)
        answers = phrases = torch.zeros((), device=self.device)
        for batch in batches:
            streams = self.net.read(batch.ids, state, batch.scene)
            answers = answers + self.net.answer_loss(streams[-1], batch) / tokens
            phrases = phrases + self.net.phrase_loss(streams, batch) * len(batch.rows) / len(rows)
        self._note(**{"answers" if len(frames) == 1 else "answers, frames": answers.item(), "phrases": phrases.item()})
        self.seen += len(rows)
        return answers + self.options.phrases * phrases + 0.2 * marks

    def question_step(self, material: Material, done: float) -> None:
        """One step on questions about single pictures."""
        o = self.options
        pick = self.rng.sample(range(len(material.scenes)), self.count)
        scenes, source = [material.scenes[k] for k in pick], material.source[pick].to(self.device)
        rows = conversations(self.words, scenes, o.questions, self.rng, self.weights, o.turns)
        with precision(self.device):
            if o.phase == "language":
                loss = self.read(rows, [source.float()], [])
            else:
                patches, cells = self.net.features(source)
                dense = self.net.tower_loss(patches, cells, labels_of(scenes).to(self.device))
                self._note(dense=dense.item())
                loss = self.read(rows, [cells], []) + 0.1 * dense
        self._step(loss, done)

    def frame_step(self, material: Material, done: float) -> None:
        """One step on questions asked while several frames are watched."""
        o = self.options
        length = self.rng.choices(list(LENGTHS), list(LENGTHS.values()))[0]
        sequences = max(FEWEST, self.count * 2 // length)
        picks, changes = material.frames(length, sequences, self.rng)
        groups = [[material.scenes[k] for k in pick] for pick in picks]
        each = self.count * o.questions / (sequences * length)
        rows = frame_rows(self.words, groups, changes, each, self.rng, self.weights)
        between = [ids.to(self.device) for ids in bridges(self.words, groups, self.rng)]
        with precision(self.device):
            frames = [material.source[list(part)].to(self.device) for part in zip(*picks, strict=True)]
            frames = [f.float() if o.phase == "language" else self.net.features(f)[1] for f in frames]
            loss = self.read(rows, frames, between)
        self._step(loss, done)

    # ------------------------------------------------------------------------------------------ running

    def report(self, minutes: float, scenes: int = QUICK) -> None:
        """Save, measure, print and log where training stands; kinds that lag are asked more often from now on."""
        if self.rank:
            return
        self.save()
        scores = self.meter.scores(self.options, scenes, 1 if scenes == QUICK else 2)
        for kind, weight in WEIGHTS.items():
            names = ("digit", "word") if kind == "text" else (kind,)
            own = [v for k, v in scores.items() if k.split()[0] in names]
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

    def material(self, shard: Shard) -> Material:
        """A shard as the phase needs it."""
        scenes, pictures, changes = shard.scenes, shard.pictures, list[str]()
        if self.options.frames:
            later = self.pool.later(shard, len(scenes))
            scenes, pictures, changes = scenes + later.scenes, torch.cat([pictures, later.pictures]), later.changes
        if self.options.phase != "language":
            return Material(scenes, pictures, changes)
        name = f"{shard.first}-{len(pictures)}-{self.tower}"
        return Material(scenes, self.pool.features(name, lambda: embed(self.net, pictures)), changes)

    def run(self) -> None:
        """Train until the time is up or Ctrl-C."""
        o, began, shown = self.options, time.time(), time.time()
        kept: dict[int, Material] = {}
        try:
            while True:
                for i in self.rng.sample(range(o.shards), o.shards):
                    material = kept[i] if i in kept else self.material(self.pool.training(i))
                    if o.phase == "language":
                        kept[i] = material
                    for _ in range(60):
                        minutes, report = self.agree((time.time() - began) / 60, time.time() - shown > o.report)
                        if minutes >= o.minutes:
                            return
                        done = minutes / o.minutes
                        if o.phase == "tower":
                            self.tower_step(material, done)
                        elif self.rng.random() < o.frames:
                            self.frame_step(material, done)
                        else:
                            self.question_step(material, done)
                        if report:
                            self.report(minutes)
                            shown = time.time()
        except KeyboardInterrupt:
            print("stopped")
        finally:
            if self.rank == 0:
                self.report((time.time() - began) / 60, 2000)


def work(rank: int, options: argparse.Namespace, meeting: str) -> None:
    """One of `--ranks` processes; they average gradients, which uses cores better than threads do."""
    if options.ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=options.ranks)
    Trainer(options, rank).run()


def main() -> None:
    """Run the phase that the command line asks for."""
    options = arguments().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.ranks == 1:
            work(0, options, "")
        else:
            spawn(work, (options, f"{folder}/meeting"), options.ranks)


if __name__ == "__main__":
    main()
