"""Procedurally drawn scenes: up to four coloured shapes, a digit or a short word, by day or by night.

Everything is a pure function of a seed. A scene is described in units of a 64 x 64 picture and can be drawn
at any integer multiple of that side. Needs numpy and OpenCV only.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

SIDE = 64  # scene units, and the side of the model's input picture
GRID = 4  # the model sees GRID * GRID image tokens
CELL = SIDE // GRID

COLOURS: dict[str, tuple[int, int, int]] = {  # RGB
    "red": (214, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (245, 225, 50),
    "green": (40, 160, 70),
    "blue": (40, 80, 215),
    "purple": (140, 50, 175),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "triangle", "star")
TEXTS = ("digit", "word")
FORMS = SHAPES + TEXTS
WORDS = ("GO", "STOP", "HI", "YES", "NO", "CAT", "SUN", "OPEN")
QUALITIES = ("sharp", "blurry", "noisy")

COLOUR_NAMES = tuple(COLOURS)


@dataclass(frozen=True)
class Thing:
    """One object. `x`, `y`, `radius` are in scene units; `text` is the digit or the word, if it is one."""

    form: str
    colour: str
    x: float
    y: float
    radius: float
    big: bool
    turn: float = 0.0
    tint: tuple[int, int, int] = (0, 0, 0)
    text: str = ""

    @property
    def half(self) -> tuple[float, float]:
        """Half width and half height of the box around the object."""
        if self.form == "word":
            return 0.44 * self.radius * len(self.text), 0.62 * self.radius
        if self.form == "digit":
            return 0.8 * self.radius, 1.05 * self.radius
        return 1.18 * self.radius, 1.18 * self.radius

    @property
    def cell(self) -> int:
        """Row-major index of the image token that holds the object's centre."""
        return int(self.y) // CELL * GRID + int(self.x) // CELL


@dataclass(frozen=True)
class Scene:
    """Objects plus everything that decides how they are drawn."""

    things: tuple[Thing, ...]
    night: bool = False
    quality: str = "sharp"
    amount: float = 0.0  # blur sigma in scene units, or noise sigma in grey levels
    sky: tuple[float, ...] = field(default=(170.0, 170.0, 170.0))
    slope: tuple[float, float] = (0.0, 0.0)
    ground: float = 0.0  # height of a darker band at the bottom, in scene units
    warp: tuple[float, ...] = ()  # eight corner shifts in scene units, or nothing
    noise_at: tuple[int, int] = (0, 0)

    @property
    def shapes(self) -> list[Thing]:
        """The objects that count as shapes (everything but digits and words)."""
        return [t for t in self.things if t.form in SHAPES]


def _place(rng: random.Random, thing: Thing, others: list[Thing]) -> Thing | None:
    """The object at a random free place, at least 1.5 units inside its cell; None if none was found."""
    hx, hy = thing.half
    for _ in range(20):
        x = rng.uniform(hx + 1, SIDE - hx - 1)
        y = rng.uniform(hy + 1, SIDE - hy - 1)
        if not (1.5 < x % CELL < CELL - 1.5 and 1.5 < y % CELL < CELL - 1.5):
            continue
        new = replace(thing, x=x, y=y)
        if all(
            new.cell != o.cell and (abs(x - o.x) > hx + o.half[0] + 1.5 or abs(y - o.y) > hy + o.half[1] + 1.5)
            for o in others
        ):
            return new
    return None


def _shape(rng: random.Random, colour: str, form: str) -> Thing:
    big = rng.random() < 0.5
    radius = rng.uniform(9.5, 11.5) if big else rng.uniform(5.2, 6.4)
    tint = (round(rng.gauss(0, 5)), round(rng.gauss(0, 5)), round(rng.gauss(0, 5)))
    return Thing(form, colour, 0, 0, radius, big, rng.uniform(-0.22, 0.22), tint)


def _text(rng: random.Random, colour: str) -> Thing:
    tint = (round(rng.gauss(0, 5)), round(rng.gauss(0, 5)), round(rng.gauss(0, 5)))
    if rng.random() < 0.6:
        return Thing("digit", colour, 0, 0, rng.uniform(9.5, 12), True, 0, tint, str(rng.randrange(10)))
    return Thing("word", colour, 0, 0, rng.uniform(9.5, 11.5), True, 0, tint, rng.choice(WORDS))


def add_thing(rng: random.Random, scene: Scene, colours: list[str], forms: list[str]) -> Scene:
    """The scene with one more shape, or the same scene where there is no room."""
    new = _place(rng, _shape(rng, rng.choice(colours), rng.choice(forms)), list(scene.things))
    return replace(scene, things=(*scene.things, new)) if new else scene


def sample_scene(rng: random.Random, most: int = 4, text: float = 0.35) -> Scene:
    """A random scene: 1 to `most` objects, with a digit or a word with probability `text`."""
    night = rng.random() < 0.4
    roll = rng.random()
    has_text = rng.random() < text
    quality = "blurry" if roll < 0.14 else "noisy" if roll < 0.28 else "sharp"
    amount = {"blurry": rng.uniform(1.2, 1.7), "noisy": rng.uniform(20, 28), "sharp": rng.uniform(0, 5)}[quality]
    grey = rng.uniform(38, 66) if night else rng.uniform(130, 182)
    cast = (-6, -2, 12) if night else (-4, 0, 6)
    sky = tuple(min(max(grey + c + rng.gauss(0, 6), 20), 200) for c in cast)
    scene = Scene(
        (),
        night,
        quality,
        amount,
        sky,
        (rng.gauss(0, 6), rng.gauss(0, 6)),
        rng.uniform(8, 30) if rng.random() < 0.35 else 0.0,
        tuple(rng.uniform(-3.5, 3.5) for _ in range(8)) if rng.random() < 0.3 else (),
        (rng.randrange(192), rng.randrange(192)),
    )
    palette = rng.sample(COLOUR_NAMES, rng.randint(2, 5))
    forms = rng.sample(SHAPES, rng.randint(2, 4))
    count = min(most, rng.choices((1, 2, 3, 4), (0.14, 0.3, 0.3, 0.26))[0])
    if has_text:
        item = _place(rng, _text(rng, rng.choice(palette)), [])
        if item:
            scene, count = replace(scene, things=(item,)), count - 1
    for _ in range(count):
        scene = add_thing(rng, scene, palette, forms)
    return scene


def scene_of(seed: int) -> Scene:
    """The scene that belongs to a seed."""
    return sample_scene(random.Random(seed))


CHANGES = ("nothing", "moved", "appeared", "disappeared", "colour")


def changed(rng: random.Random, scene: Scene) -> tuple[Scene, str]:
    """A later frame of the same scene, with one of CHANGES and new noise; "nothing" where the change has no room."""
    scene = replace(scene, noise_at=(rng.randrange(192), rng.randrange(192)))
    things, wanted = list(scene.things), rng.choice(CHANGES)
    shapes = [i for i, t in enumerate(things) if t.form in SHAPES]
    if wanted == "appeared" and len(things) < 4:
        more = add_thing(rng, scene, list(COLOUR_NAMES), list(SHAPES))
        return more, wanted if len(more.things) > len(things) else "nothing"
    if not shapes or wanted in ("nothing", "appeared"):
        return scene, "nothing"
    i = rng.choice(shapes)
    others = things[:i] + things[i + 1 :]
    if wanted == "disappeared":
        return (replace(scene, things=tuple(others)), wanted) if others else (scene, "nothing")
    if wanted == "colour":
        colour = rng.choice([c for c in COLOUR_NAMES if c != things[i].colour])
        things[i] = replace(things[i], colour=colour)
        return replace(scene, things=tuple(things)), wanted
    for _ in range(10):
        new = _place(rng, things[i], others)
        if new and (new.x - things[i].x) ** 2 + (new.y - things[i].y) ** 2 > 14**2:
            things[i] = new
            return replace(scene, things=tuple(things)), wanted
    return scene, "nothing"


# ------------------------------------------------------------------------------------------------- drawing

_NOISE = np.random.default_rng(7).standard_normal((256, 256, 3)).astype(np.float32)
_RAMP = np.linspace(-1, 1, SIDE, dtype=np.float32)


def _homography(scene: Scene, scale: int) -> np.ndarray:
    """The 3 x 3 matrix from drawing coordinates to picture coordinates."""
    side = SIDE * scale
    corners = np.array([[0, 0], [side, 0], [side, side], [0, side]], np.float32)
    moved = corners + np.array(scene.warp, np.float32).reshape(4, 2) * scale
    return cv2.getPerspectiveTransform(corners, moved)


def _draw_thing(canvas: np.ndarray, t: Thing, x: float, y: float, scale: int) -> None:
    """Draws one object centred at (x, y), which is in canvas pixels."""
    red, green, blue = (int(min(max(v + d, 0), 255)) for v, d in zip(COLOURS[t.colour], t.tint, strict=True))
    colour, r, f = (blue, green, red), t.radius * scale, 16
    if t.form == "circle":
        cv2.circle(canvas, (round(x * f), round(y * f)), round(r * f), colour, -1, cv2.LINE_AA, 4)
        return
    if t.text:
        size = r / (12.5 if t.form == "digit" else 21)
        width = max(1, round((2.2 if t.form == "digit" else 1.5) * scale))
        (w, h), _ = cv2.getTextSize(t.text, cv2.FONT_HERSHEY_SIMPLEX, size, width)
        at = (round(x - w / 2), round(y + h / 2))
        cv2.putText(canvas, t.text, at, cv2.FONT_HERSHEY_SIMPLEX, size, colour, width, cv2.LINE_AA)
        return
    n = {"square": 4, "triangle": 3, "star": 10}[t.form]
    angle = np.arange(n) * 2 * np.pi / n - np.pi / 2 + (np.pi / 4 if n == 4 else 0) + t.turn
    reach = r * {4: np.full(4, 1.2), 3: np.full(3, 1.25), 10: np.where(np.arange(10) % 2, 0.52, 1.3)}[n]
    drop = 0.2 * r if n == 3 else 0
    points = np.stack([x + reach * np.cos(angle), y + reach * np.sin(angle) + drop], 1)
    cv2.fillPoly(canvas, [np.round(points * f).astype(np.int32)], colour, cv2.LINE_AA, 4)


def draw(scene: Scene, scale: int = 4) -> np.ndarray:
    """The picture, BGR uint8 [64 * scale, 64 * scale, 3]."""
    tone = (scene.slope[0] * _RAMP[:, None] + scene.slope[1] * _RAMP[None])[..., None]
    base = np.array(scene.sky[::-1], np.float32) + tone
    if scene.ground:
        base[SIDE - int(scene.ground) :] *= 0.8
    small = np.clip(base, 0, 255).astype(np.uint8)
    canvas = small if scale == 1 else cv2.resize(small, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    places: np.ndarray = np.array([[[t.x * scale, t.y * scale]] for t in scene.things], np.float32)
    matrix = _homography(scene, scale) if scene.warp else None
    if matrix is not None and len(places):
        places = cv2.perspectiveTransform(places, np.linalg.inv(matrix))
    for t, (x, y) in zip(scene.things, places.reshape(-1, 2).tolist(), strict=True):
        _draw_thing(canvas, t, x, y, scale)
    if matrix is not None:
        canvas = cv2.warpPerspective(canvas, matrix, canvas.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)
    if scene.quality == "blurry":
        return cv2.GaussianBlur(canvas, (0, 0), scene.amount * scale)
    x, y = scene.noise_at
    grain: np.ndarray = _NOISE[y : y + SIDE, x : x + SIDE] * scene.amount
    if scale > 1:
        grain = cv2.resize(grain, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    return np.clip(canvas + grain, 0, 255).astype(np.uint8)
