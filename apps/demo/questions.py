"""Questions and answers about a scene, English and Chinese, with the objects each phrase refers to.

A question is drawn for a wanted answer first (yes or no, which colour ...), so that answers are balanced and cannot be
guessed from the words alone. Everything is a pure function of the scene and a `random.Random`. Standard library only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from apps.demo.scenes import COLOUR_NAMES, SHAPES, SIDE, Scene, Thing

ZH_COLOUR = dict(zip(COLOUR_NAMES, ("红色", "橙色", "黄色", "绿色", "蓝色", "紫色", "白色"), strict=True))
ZH_FORM = {"circle": "圆形", "square": "方形", "triangle": "三角形", "star": "星形"}
ZH_QUALITY = {"sharp": "清晰", "blurry": "模糊", "noisy": "有噪点"}
MARGIN = 6.0  # scene units by which two positions must differ before a question depends on it
MIDDLE = SIDE / 2


@dataclass(frozen=True)
class Mention:
    """A phrase that ends before character `end` of the question, and the objects it can mean."""

    end: int
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class Item:
    """One question with its only right answer."""

    kind: str
    language: str  # "en" or "zh"
    question: str
    answer: str
    mentions: tuple[Mention, ...] = ()


@dataclass(frozen=True)
class Phrase:
    """A description by colour, form, or both."""

    colour: str | None
    form: str | None

    def matches(self, thing: Thing) -> bool:
        return self.colour in (None, thing.colour) and self.form in (None, thing.form)

    def found(self, scene: Scene) -> tuple[Thing, ...]:
        return tuple(t for t in scene.shapes if self.matches(t))

    def say(self, rng: random.Random, zh: bool, plural: bool = False) -> str:
        if zh:
            return (ZH_COLOUR[self.colour] if self.colour else "") + (ZH_FORM[self.form] if self.form else "图形")
        noun = self.form or "shape"
        if noun == "circle" and rng.random() < 0.2:
            noun = "ball"
        return (f"{self.colour} " if self.colour else "") + noun + ("s" if plural else "")


def _build(kind: str, zh: bool, template: str, answer: str, parts: Sequence[tuple[str, tuple[Thing, ...]]]) -> Item:
    """Fill `{}` places of a template one after the other, keeping where each phrase ends."""
    pieces, mentions, text = template.split("{}"), [], ""
    for piece, (words, things) in zip(pieces, parts, strict=False):
        text += piece + words
        mentions.append(Mention(len(text), things))
    return Item(kind, "zh" if zh else "en", text + pieces[-1], answer, tuple(mentions))


def _unique(scene: Scene) -> list[tuple[Phrase, Thing]]:
    """Every phrase that means exactly one shape, with that shape."""
    phrases = {Phrase(c, f) for t in scene.shapes for c, f in ((t.colour, t.form), (None, t.form), (t.colour, None))}
    ordered = sorted(phrases, key=lambda p: (p.colour or "", p.form or ""))
    return [(p, found[0]) for p in ordered if len(found := p.found(scene)) == 1]


def _colour(scene: Scene, rng: random.Random, zh: bool) -> Item | None:
    choices = [(p, t) for p, t in _unique(scene) if p.colour is None]
    if not choices:
        return None
    phrase, thing = rng.choice(choices)
    word = rng.choice(("colour", "color"))
    template = rng.choice(
        ("{}是什么颜色？", "图里的{}是什么颜色？", "{}的颜色是什么？")
        if zh
        else (f"What {word} is the {{}}?", f"What is the {word} of the {{}}?", f"Which {word} is the {{}}?")
    )
    answer = ZH_COLOUR[thing.colour] if zh else thing.colour
    return _build("colour", zh, template, answer, [(phrase.say(rng, zh), (thing,))])


def _shape(scene: Scene, rng: random.Random, zh: bool) -> Item | None:
    choices = [(p, t) for p, t in _unique(scene) if p.form is None]
    if not choices:
        return None
    _, thing = rng.choice(choices)
    template = rng.choice(
        ("{}是什么形状？", "{}的形状是什么？")
        if zh
        else ("What shape is the {} object?", "What is the {} thing?", "Which shape is {}?")
    )
    words = ZH_COLOUR[thing.colour] + "物体" if zh else thing.colour
    answer = ZH_FORM[thing.form] if zh else thing.form
    return _build("shape", zh, template, answer, [(words, (thing,))])


def _any_phrase(scene: Scene, rng: random.Random, wanted: Callable[[int], bool], generic: bool) -> Phrase | None:
    """A phrase whose number of matches satisfies `wanted`, likely made of parts that are in the scene."""
    colours = sorted({t.colour for t in scene.shapes}) if rng.random() < 0.75 and scene.shapes else COLOUR_NAMES
    forms = sorted({t.form for t in scene.shapes}) if rng.random() < 0.75 and scene.shapes else SHAPES
    for _ in range(12):
        roll = rng.random()
        colour = rng.choice(colours) if roll < 0.65 else None
        form = rng.choice(forms) if roll > 0.3 else None
        if generic and rng.random() < 0.15:
            colour = form = None
        if (colour or form or generic) and wanted(len(Phrase(colour, form).found(scene))):
            return Phrase(colour, form)
    return None


def _count(scene: Scene, rng: random.Random, zh: bool) -> Item | None:
    number = rng.choices((0, 1, 2, 3, 4), (0.2, 0.25, 0.25, 0.2, 0.1))[0]
    phrase = _any_phrase(scene, rng, lambda n: n == number, generic=True)
    if phrase is None:
        return None
    template = rng.choice(
        ("图里有几个{}？", "有多少个{}？")
        if zh
        else ("How many {} are there?", "How many {} are in the picture?", "Count the {}.", "How many {} do you see?")
    )
    return _build("count", zh, template, str(number), [(phrase.say(rng, zh, plural=True), phrase.found(scene))])


def _yes(zh: bool, yes: bool) -> str:
    return ("是" if yes else "否") if zh else ("yes" if yes else "no")


def _exist(scene: Scene, rng: random.Random, zh: bool) -> Item | None:
    yes = rng.random() < 0.5
    phrase = _any_phrase(scene, rng, lambda n: (n > 0) == yes, generic=False)
    if phrase is None:
        return None
    words = phrase.say(rng, zh)
    article = "an" if words[0] in "aeio" else "a"
    template = rng.choice(
        ("图里有{}吗？", "有没有{}？")
        if zh
        else (f"Is there {article} {{}}?", f"Is there {article} {{}} in the picture?", f"Do you see {article} {{}}?")
    )
    return _build("exist", zh, template, _yes(zh, yes), [(words, phrase.found(scene))])


def _text(scene: Scene, rng: random.Random, zh: bool) -> Item | None:
    texts = [t for t in scene.things if t.text]
    if not texts:
        return None
    thing = texts[0]
    if thing.form == "digit":
        template = rng.choice(
            ("图里的{}是几？", "是哪个{}？")
            if zh
            else ("What {} is shown?", "Which {} is in the picture?", "What {} do you see?")
        )
        words = "数字" if zh else rng.choice(("digit", "number"))
    else:
        template = rng.choice(
            ("图里写着什么{}？", "是哪个{}？")
            if zh
            else ("What {} is shown?", "Which {} is in the picture?", "What {} do you see?")
        )
        words = "单词" if zh else "word"
    return _build("digit" if thing.form == "digit" else "word", zh, template, thing.text, [(words, (thing,))])


_SIDES = (("left of", "左边", 0, 1), ("right of", "右边", 0, -1), ("above", "上面", 1, 1), ("below", "下面", 1, -1))


def _pair(scene: Scene, rng: random.Random) -> tuple[tuple[Phrase, Thing], tuple[Phrase, Thing]] | None:
    unique = _unique(scene)
    if not unique:
        return None
    first = rng.choice(unique)
    rest = [u for u in unique if u[1] is not first[1]]
    return (first, rng.choice(rest)) if rest else None


def _relation(scene: Scene, rng: random.Random, zh: bool) -> Item | None:
    pair = _pair(scene, rng)
    if pair is None:
        return None
    (a, p), (b, q) = pair
    yes, options = rng.random() < 0.5, []
    for en, han, axis, sign in _SIDES:
        difference = ((q.x - p.x) if axis == 0 else (q.y - p.y)) * sign
        if abs(difference) > MARGIN and (difference > 0) == yes:
            options.append((en, han))
    if not options:
        return None
    en, han = rng.choice(options)
    template = f"{{}}在{{}}的{han}吗？" if zh else f"Is the {{}} {en} the {{}}?"
    return _build("relation", zh, template, _yes(zh, yes), [(a.say(rng, zh), (p,)), (b.say(rng, zh), (q,))])


def _size(scene: Scene, rng: random.Random, zh: bool) -> Item | None:
    pair = _pair(scene, rng) if rng.random() < 0.6 else None
    if pair and pair[0][1].big != pair[1][1].big:
        (a, p), (b, q) = pair
        larger = rng.random() < 0.5
        template = (
            f"{{}}比{{}}{'大' if larger else '小'}吗？"
            if zh
            else f"Is the {{}} {'bigger' if larger else 'smaller'} than the {{}}?"
        )
        return _build("size", zh, template, _yes(zh, p.big == larger), [(a.say(rng, zh), (p,)), (b.say(rng, zh), (q,))])
    unique = _unique(scene)
    if not unique:
        return None
    phrase, thing = rng.choice(unique)
    answer = ("大" if thing.big else "小") if zh else ("big" if thing.big else "small")
    template = "{}是大还是小？" if zh else rng.choice(("Is the {} big or small?", "What size is the {}?"))
    return _build("size", zh, template, answer, [(phrase.say(rng, zh), (thing,))])


def _quadrant(thing: Thing, zh: bool) -> str | None:
    if abs(thing.x - MIDDLE) < 4 or abs(thing.y - MIDDLE) < 4:
        return None
    left, top = thing.x < MIDDLE, thing.y < MIDDLE
    if zh:
        return ("左" if left else "右") + ("上" if top else "下")
    return f"{'top' if top else 'bottom'} {'left' if left else 'right'}"


def _where(scene: Scene, rng: random.Random, zh: bool) -> Item | None:
    choices = [(p, t) for p, t in _unique(scene) if _quadrant(t, zh)]
    if not choices:
        return None
    phrase, thing = rng.choice(choices)
    template = rng.choice(
        ("{}在哪里？", "{}在什么位置？") if zh else ("Where is the {}?", "In which corner is the {}?")
    )
    return _build("where", zh, template, _quadrant(thing, zh) or "", [(phrase.say(rng, zh), (thing,))])


def _what(scene: Scene, rng: random.Random, zh: bool) -> Item | None:
    places: dict[str, list[Thing]] = {}
    for thing in scene.things:
        spot = _quadrant(thing, zh)
        if spot is None:
            return None
        places.setdefault(spot, []).append(thing)
    single = [(spot, things[0]) for spot, things in sorted(places.items()) if len(things) == 1 and not things[0].text]
    if not single:
        return None
    spot, thing = rng.choice(single)
    answer = ZH_COLOUR[thing.colour] + ZH_FORM[thing.form] if zh else f"{thing.colour} {thing.form}"
    template = rng.choice(("{}是什么？", "{}有什么？") if zh else ("What is at the {}?", "What is in the {}?"))
    return _build("what", zh, template, answer, [(spot, (thing,))])


def _light(scene: Scene, rng: random.Random, zh: bool) -> Item | None:
    template = rng.choice(
        ("是白天还是晚上？", "图里是白天还是夜晚？") if zh else ("Is it day or night?", "Day or night?")
    )
    return _build(
        "light", zh, template, ("晚上" if scene.night else "白天") if zh else ("night" if scene.night else "day"), []
    )


def _quality(scene: Scene, rng: random.Random, zh: bool) -> Item | None:
    if scene.quality == "sharp" and rng.random() < 0.7:  # most scenes are sharp; the answers should be even
        return None
    template = rng.choice(
        ("图像清晰吗？", "图像质量如何？")
        if zh
        else ("How is the image quality?", "Is the picture sharp, blurry or noisy?")
    )
    return _build("quality", zh, template, ZH_QUALITY[scene.quality] if zh else scene.quality, [])


KINDS: dict[str, Callable[[Scene, random.Random, bool], Item | None]] = {
    "colour": _colour, "shape": _shape, "count": _count, "exist": _exist, "text": _text, "relation": _relation,
    "size": _size, "where": _where, "what": _what, "light": _light, "quality": _quality,
}  # fmt: skip
WEIGHTS = {"colour": 1.0, "shape": 1.0, "count": 1.6, "exist": 1.6, "text": 1.0, "relation": 1.8, "size": 1.4,
           "where": 1.4, "what": 1.2, "light": 0.6, "quality": 0.6}  # fmt: skip


def ask(scene: Scene, kind: str, rng: random.Random, language: str | None = None) -> Item | None:
    """Return a question of `kind`, or None where the scene allows none."""
    return KINDS[kind](scene, rng, rng.random() < 0.4 if language is None else language == "zh")


# ------------------------------------------------------------------------------------------- several frames

_ORDINALS = ("first", "second", "third", "fourth")
_ZH_ORDINALS = ("第一张图", "第二张图", "第三张图", "第四张图")
_ZH_CHANGE = {"nothing": "没有", "moved": "移动", "appeared": "出现", "disappeared": "消失", "colour": "颜色"}


def about_frame(item: Item, frame: int, frames: int, rng: random.Random) -> Item:
    """The question asked about one of several frames. Without a word about the frame it means the last one.

    The last frame can always be named, and the first; those between only up to the fourth (`IndexError`).
    """
    zh, last = item.language == "zh", frame == frames - 1
    names = []
    if last:
        names = ["", "", "", "最后一张图" if zh else "In the last picture"]
    if not last or frames <= len(_ORDINALS):
        names.append(_ZH_ORDINALS[frame] if zh else f"In the {_ORDINALS[frame]} picture")
    if frames == 2 and not last:
        names.append("之前的图" if zh else "In the earlier picture")
    name = rng.choice(names)
    start = (name + ("：" if zh else ": ")) if name else ""
    mentions = tuple(Mention(m.end + len(start), m.things) for m in item.mentions)
    kind = ("current" if last else "earlier" if frame else "first") + " frame"
    return Item(kind, item.language, start + item.question, item.answer, mentions)


def ask_change(change: str, rng: random.Random) -> Item:
    """What differs between two frames."""
    zh = rng.random() < 0.4
    question = rng.choice(("有什么变化？", "什么变了？") if zh else ("What changed?", "What is different?"))
    answer = _ZH_CHANGE[change] if zh else {"colour": "color"}.get(change, change)
    return Item("change", "zh" if zh else "en", question, answer)


def ask_seen(frames: Sequence[Scene], rng: random.Random) -> Item | None:
    """Whether something that is not in view now was in view before; None where the wanted answer has no example.

    Always colour and form together: after many frames nearly every colour was seen, and the words alone would tell.
    """
    *before, now = frames
    zh, yes = rng.random() < 0.4, rng.random() < 0.5
    if yes:
        gone = [Phrase(t.colour, t.form) for t in rng.choice(before).shapes]
    else:
        gone = [Phrase(rng.choice(COLOUR_NAMES), rng.choice(SHAPES)) for _ in range(30)]
        gone = [p for p in gone if not any(p.found(s) for s in before)]
    gone = [p for p in gone if not p.found(now)]
    if not gone:
        return None
    phrase = rng.choice(gone)
    words = phrase.say(rng, zh)
    article = "an" if words[0] in "aeio" else "a"
    template = rng.choice(
        ("之前有{}吗？", "之前有没有{}？")
        if zh
        else (f"Was there {article} {{}} before?", f"Did you see {article} {{}} before?")
    )
    found = tuple(t for s in before for t in phrase.found(s))
    return _build("seen", zh, template, _yes(zh, yes), [(words, found)])


def ask_earlier(first: Scene, rng: random.Random) -> Item | None:
    """What the first frame showed, if that was a single shape."""
    if len(first.things) != 1 or not first.shapes:
        return None
    thing, zh = first.things[0], rng.random() < 0.4
    question = rng.choice(("第一张图里有什么？",) if zh else ("What was in the first picture?",))
    answer = ZH_COLOUR[thing.colour] + ZH_FORM[thing.form] if zh else f"{thing.colour} {thing.form}"
    return Item("earlier", "zh" if zh else "en", question, answer)
