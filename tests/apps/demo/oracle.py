"""Answers found from the words of a question and the objects of a scene, by brute force.

Written apart from the generator: it knows a scene's objects only by their fields, and a question only by its
text.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from apps.demo.scenes import Scene, Thing

COLOURS = {
    "红色": "red", "橙色": "orange", "黄色": "yellow", "绿色": "green", "蓝色": "blue", "紫色": "purple",
    "白色": "white",
}  # fmt: skip
FORMS = {"圆形": "circle", "方形": "square", "三角形": "triangle", "星形": "star"}
SIDES = {"左": "left", "右": "right", "上": "top", "下": "bottom"}
CHINESE = {
    **{v: k for k, v in {**COLOURS, **FORMS}.items()},
    "yes": "是", "no": "否", "big": "大", "small": "小", "day": "白天", "night": "晚上", "sharp": "清晰",
    "blurry": "模糊", "noisy": "有噪点",
}  # fmt: skip


def shapes(scene: Scene) -> list[Thing]:
    return [t for t in scene.things if not t.text]


def matching(scene: Scene, words: str) -> list[Thing]:
    """The shapes that "red circles", "ball", "shape", "红色圆形" or "图形" can mean."""
    zh = re.fullmatch(r"(\w色)?(圆形|方形|三角形|星形|图形|物体)", words)
    if zh:
        colour, form = COLOURS.get(zh[1] or ""), FORMS.get(zh[2])
    else:
        en = re.fullmatch(
            r"(?:(red|orange|yellow|green|blue|purple|white) ?)?(circle|ball|square|triangle|star|shape)?s?",
            words,
        )
        assert en, words
        colour, form = en[1], {"ball": "circle", "shape": None}.get(en[2], en[2])
    return [t for t in shapes(scene) if colour in (None, t.colour) and form in (None, t.form)]


def the(scene: Scene, words: str) -> Thing:
    """The only shape that the words mean."""
    found = matching(scene, words)
    assert len(found) == 1, (words, found)
    return found[0]


def yes(fact: bool) -> str:
    return "yes" if fact else "no"


def side_of(scene: Scene, a: str, side: str, b: str) -> str:
    p, q = the(scene, a), the(scene, b)
    facts = {"left of": q.x - p.x, "左": q.x - p.x, "right of": p.x - q.x, "右": p.x - q.x,
             "above": q.y - p.y, "上": q.y - p.y, "below": p.y - q.y, "下": p.y - q.y}  # fmt: skip
    assert abs(facts[side]) > 5, "too close to tell"
    return yes(facts[side] > 0)


def bigger(scene: Scene, a: str, how: str, b: str) -> str:
    p, q = the(scene, a), the(scene, b)
    assert abs(p.radius - q.radius) > 2, "too alike to tell"
    return yes((p.radius > q.radius) == (how in ("bigger", "大")))


def size(scene: Scene, a: str) -> str:
    radius = the(scene, a).radius
    assert not 7 < radius < 9
    return "big" if radius > 8 else "small"


def corner(thing: Thing) -> str:
    assert abs(thing.x - 32) >= 4 and abs(thing.y - 32) >= 4, "too central to tell"
    return f"{'top' if thing.y < 32 else 'bottom'} {'left' if thing.x < 32 else 'right'}"


def at_corner(scene: Scene, words: str) -> str:
    spot = words if " " in words else f"{SIDES[words[1]]} {SIDES[words[0]]}"
    (thing,) = (t for t in scene.things if corner(t) == spot)
    assert not thing.text
    return f"{thing.colour} {thing.form}"


def text(scene: Scene) -> str:
    (thing,) = (t for t in scene.things if t.text)
    return thing.text


Rule = tuple[str, Callable[..., str]]
A = r"(?:an? )"
ENGLISH: list[Rule] = [
    (r"(?:What|Which) colou?r is the (.+)\?", lambda s, a: the(s, a).colour),
    (r"What is the colou?r of the (.+)\?", lambda s, a: the(s, a).colour),
    (r"What shape is the (\w+) object\?", lambda s, a: the(s, a).form),
    (r"What is the (\w+) thing\?", lambda s, a: the(s, a).form),
    (r"Which shape is (\w+)\?", lambda s, a: the(s, a).form),
    (r"How many (.+?) (?:are there|are in the picture|do you see)\?", lambda s, a: str(len(matching(s, a)))),
    (r"Count the (.+)\.", lambda s, a: str(len(matching(s, a)))),
    (rf"(?:Is there|Do you see) {A}(.+?)(?: in the picture)?\?", lambda s, a: yes(bool(matching(s, a)))),
    (r"(?:What|Which) (?:digit|number|word) .+\?", text),
    (r"Is the (.+) (left of|right of|above|below) the (.+)\?", side_of),
    (r"Is the (.+) (bigger|smaller) than the (.+)\?", bigger),
    (r"Is the (.+) big or small\?", size),
    (r"What size is the (.+)\?", size),
    (r"(?:Where|In which corner) is the (.+)\?", lambda s, a: corner(the(s, a))),
    (r"What is (?:at|in) the ((?:top|bottom) (?:left|right))\?", at_corner),
    (r"(?:Is it day or night|Day or night)\?", lambda s: "night" if sum(s.sky) < 330 else "day"),
    (r"How is the image quality\?|Is the picture sharp, blurry or noisy\?", lambda s: s.quality),
]
CHINESE_RULES: list[Rule] = [
    (r"(?:图里的)?(.+?)(?:是什么颜色|的颜色是什么)？", lambda s, a: the(s, a).colour),
    (r"(\w色物体)(?:是什么形状|的形状是什么)？", lambda s, a: the(s, a).form),
    (r"(?:图里有几个|有多少个)(.+)？", lambda s, a: str(len(matching(s, a)))),
    (r"(?:图里有(.+)吗|有没有(.+))？", lambda s, a, b: yes(bool(matching(s, a or b)))),
    (r"图里的数字是几？|是哪个(?:数字|单词)？|图里写着什么单词？", text),
    (r"(.+)在(.+)的(.)[边面]吗？", lambda s, a, b, side: side_of(s, a, side, b)),
    (r"(.+)比(.+)(大|小)吗？", lambda s, a, b, how: bigger(s, a, how, b)),
    (r"(.+)是大还是小？", size),
    (r"(.+)在(?:哪里|什么位置)？", lambda s, a: corner(the(s, a))),
    (r"([左右][上下])(?:是|有)什么？", at_corner),
    (r"是白天还是晚上？|图里是白天还是夜晚？", lambda s: "night" if sum(s.sky) < 330 else "day"),
    (r"图像清晰吗？|图像质量如何？", lambda s: s.quality),
]


def translate(answer: str) -> str:
    """An English answer in Chinese."""
    if " " in answer:
        first, second = answer.split()
        if first in ("top", "bottom"):
            words = {v: k for k, v in SIDES.items()}
            return words[second] + words[first]
        return CHINESE[first] + CHINESE[second]
    return CHINESE.get(answer, answer)


def answer(scene: Scene, question: str) -> str:
    """The true answer; AssertionError for a question that has none, or not exactly one meaning."""
    zh = question.endswith("？")
    found = [(rule, m) for rule, make in (CHINESE_RULES if zh else ENGLISH) if (m := re.fullmatch(rule, question))]
    assert len(found) == 1, f"{len(found)} rules read {question!r}"
    make = dict(CHINESE_RULES if zh else ENGLISH)[found[0][0]]
    english = make(scene, *found[0][1].groups())
    return translate(english) if zh else english
