"""What a page is told when it opens: the model, what it can answer, the cameras, the limits, its tabs."""

from __future__ import annotations

from typing import Any

from apps.page.messages import QUESTION_CHARS
from apps.page.room import HORIZON, MAX_TABS, Room
from runtime.reply import resident_bytes
from runtime.spec import Manifest

DEMO = "demo.safetensors"  # the source of the embedded model, whatever it was exported to
DEMO_TEXT = (
    "This is the small demo model. It was trained on drawn scenes only, like those of the sample video: it answers, in "
    "English and Chinese, about the colour, shape, size, number and place of shapes, about digits and words in the "
    "picture, day or night, and whether the picture is sharp. About a real camera's picture it can only guess. For "
    "that, export a released checkpoint and start the page with --bundle."
)
DEMO_QUESTIONS = (
    "How many circles are there?",
    "What colour is the star?",
    "Where is the circle?",
    "Which number is in the picture?",
    "Day or night?",
    "图像清晰吗？",
)
OTHER_TEXT = (
    "A model of this size is often right about what is plain to see, and can be wrong in a confident tone. Check what "
    "matters."
)
OTHER_QUESTIONS = ("What do you see?", "Is anyone there?", "What has changed?", "Read the text in the picture.")


def describe(room: Room, boot: str, known: bool) -> dict[str, Any]:
    """Return the first message to a page; `known` says that it found its tabs again."""
    manifest = room.model.manifest
    demo = manifest.provenance.source == DEMO
    return {
        "type": "welcome",
        "room": room.key,
        "boot": boot,
        "known": known,
        "model": _model(manifest, room.model.engine.backend.name),
        "about": DEMO_TEXT if demo else OTHER_TEXT,
        "questions": DEMO_QUESTIONS if demo else OTHER_QUESTIONS,
        "robot": room.robot.name if room.robot else "",
        "side": camera_side(manifest),
        "limits": {"question": QUESTION_CHARS, "tabs": MAX_TABS, "horizon": HORIZON},
        "memory": resident_bytes(),
        "tabs": [{**tab.describe(), "entries": tab.history()} for tab in list(room.tabs.values())],
    }


def camera_side(manifest: Manifest) -> int:
    """Pixels of the longer side of the pictures that a page sends: what the model sees, and enough for a thumbnail."""
    views = manifest.vision.views if manifest.vision else ()
    return min(1280, max([512, *(max(view.height, view.width) for view in views)]))


def _model(manifest: Manifest, backend: str) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "family": manifest.family,
        "precision": manifest.precision,
        "backend": backend,
        "pictures": manifest.vision is not None,
    }
