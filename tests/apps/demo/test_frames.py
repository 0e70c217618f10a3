"""Training on several frames: every state is the one that its question was made for."""

from __future__ import annotations

import random

import pytest

torch = pytest.importorskip("torch")

from apps.demo.dataset import Words  # noqa: E402
from apps.demo.frames import bridges, frame_rows  # noqa: E402
from apps.demo.model import DemoModel, Shape  # noqa: E402
from apps.demo.pool import Material  # noqa: E402
from apps.demo.questions import WEIGHTS, about_frame, ask, ask_seen  # noqa: E402
from apps.demo.scenes import Scene, changed, scene_of  # noqa: E402
from apps.demo.train import HERE  # noqa: E402
from tests.apps.demo.oracle import matching  # noqa: E402

WORDS = Words(HERE / "vocab.txt")


def material(count: int) -> Material:
    rng = random.Random(3)
    first = [scene_of(i) for i in range(count)]
    later, changes = zip(*(changed(rng, scene) for scene in first), strict=True)
    return Material([*first, *later], torch.zeros(0), list(changes))


def test_groups_repeat_scenes_and_know_what_changed() -> None:
    half, pool = 300, material(300)
    picks, changes = pool.frames(6, 200, random.Random(1))
    again = [pick[i + 1] - pick[i] for pick in picks for i in range(5)]
    assert 0.15 < sum(abs(step) == half for step in again) / len(again) < 0.35
    for pick, change in zip(picks, changes, strict=True):
        assert len(pick) == 6 and change == (pool.changes[pick[0]] if pick[1] == pick[0] + half else None)
    assert any(changes) and not all(changes)


def test_rows_continue_the_state_they_are_about() -> None:
    pool, rng = material(300), random.Random(5)
    picks, changes = pool.frames(5, 7, rng)
    groups = [[pool.scenes[k] for k in pick] for pick in picks]
    rows = frame_rows(WORDS, groups, changes, 6, rng, WEIGHTS)
    assert {row.scene for row in rows} == set(range(5 * 7))
    kinds = {row.scene // 7: set[str]() for row in rows}
    for row in rows:
        kinds[row.scene // 7].add(row.answers[0][2].kind)
    assert not kinds[0] & {"seen", "current frame", "first frame"}  # one picture: a question like any other
    assert all({"seen", "current frame", "first frame"} <= kinds[after] for after in (1, 2, 3, 4))
    some = frame_rows(WORDS, groups, changes, 6, rng, WEIGHTS, (1, 4))
    assert {row.scene // 7 for row in some} == {0, 3}


def test_a_state_does_not_know_what_comes_later() -> None:
    torch.manual_seed(0)
    net, rng, batch = DemoModel(Shape(WORDS.rows, vision=32, vision_layers=1, vision_heads=2)), random.Random(2), 3
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
        frames = [torch.randn(batch, 16, 32) for _ in range(4)]
        between = bridges(WORDS, [[scene_of(i + 9 * g) for i in range(4)] for g in range(batch)], rng)
        states, loss = net.look(frames, WORDS.ids("User: "), between)
        assert loss > 0
        for seen in (1, 2, 3, 4):
            alone, _ = net.look(frames[:seen], WORDS.ids("User: "), between[: seen - 1])
            for part, own in zip(states, alone, strict=True):
                for x, y in zip(part, own, strict=True):
                    assert x.shape[0] == 4 * batch
                    torch.testing.assert_close(x[(seen - 1) * batch : seen * batch], y[-batch:])
        ids = torch.tensor([WORDS.ids("\nDay or night?\n\n")] * 2)
        after = net.read(ids, states, torch.tensor([1, 3 * batch + 1]))[-1]
        assert not torch.allclose(after[0], after[1])


def test_what_was_seen_before_is_never_in_view_now() -> None:
    rng, said = random.Random(4), []
    for _ in range(600):
        frames = [scene_of(rng.randrange(100_000)) for _ in range(rng.randint(2, 16))]
        item = ask_seen(frames, rng)
        if item is None:
            continue
        (mention,) = item.mentions
        phrase = item.question[: mention.end]
        words = " ".join(phrase.split(" ")[-2:]) if item.language == "en" else phrase[-5:].lstrip("有没前")
        found = [bool(matching(scene, words)) for scene in frames]
        assert not found[-1] and any(found) == bool(mention.things)
        assert item.answer in (("yes", "是") if any(found) else ("no", "否"))
        said.append(any(found))
    assert 0.4 < sum(said) / len(said) < 0.6


@pytest.mark.parametrize("frames", [2, 4, 5, 16])
def test_the_last_and_the_first_frame_have_names_at_any_length(frames: int) -> None:
    rng = random.Random(0)
    scene: Scene = scene_of(11)
    item = ask(scene, "light", rng, "en")
    assert item is not None
    last = {about_frame(item, frames - 1, frames, rng).question for _ in range(60)}
    assert {item.question, f"In the last picture: {item.question}"} <= last
    first = about_frame(item, 0, frames, rng)
    assert first.kind == "first frame" and "picture: " in first.question and first.answer == item.answer
    if frames > 6:
        with pytest.raises(IndexError):
            about_frame(item, 5, frames, rng)
