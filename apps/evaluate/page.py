"""`--inspect`: one HTML file to look at answers, with the pictures in it."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from apps.evaluate.answers import Answer
from apps.evaluate.sample import Sample, open_picture
from apps.evaluate.scores import Score
from apps.evaluate.tasks import Plan
from runtime.errors import InputError

SIDE = 320  # pixels of a picture's longer side
QUALITY = 80  # of JPEG

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--good:#1a7f37;--bad:#cf222e}
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.4rem}article{display:grid;grid-template-columns:320px 1fr;gap:1rem;padding:1rem 0;
border-top:1px solid var(--line)}img{max-width:100%;border-radius:4px}pre{white-space:pre-wrap;font:inherit;margin:0}
table{border-collapse:collapse;margin-top:.6rem}td,th{text-align:left;padding:.1rem .8rem .1rem 0;vertical-align:top}
.right{color:var(--good)}.wrong{color:var(--bad)}.key{opacity:.6;font-size:.85em}
@media(max-width:45rem){article{grid-template-columns:1fr}}
"""


def choose(plan: Plan, scores: Sequence[Score], count: int) -> list[str]:
    """Return the keys of `count` questions worth a look: differences between bundles, mistakes, then the rest."""

    def dullness(sample: Sample) -> int:
        worths = [score.scores.get(sample.key) for score in scores]
        if len(set(worths)) > 1:
            return 0
        return 1 if worths[0] is not None and worths[0] < 1 else 2

    return [sample.key for sample in sorted(plan.samples, key=dullness)[:count]]


def render(
    plan: Plan,
    samples: Iterable[Sample],
    scores: Sequence[Score],
    answers: Mapping[str, Mapping[str, Answer]],
) -> str:
    """Return the page.

    Args:
        plan: what was asked.
        samples: those to show, with their pictures.
        scores: of each bundle.
        answers: of each bundle, by question.
    """
    names = [score.bundle for score in scores]
    title = html.escape(f"{plan.task.title}: {', '.join(names)}")
    body = "\n".join(_article(sample, scores, answers) for sample in samples)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body><h1>{title}</h1>\n<p>Differences between bundles first, then mistakes.</p>\n{body}\n</body></html>\n"
    )


def write(path: Path, page: str) -> None:
    """Write a page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _article(sample: Sample, scores: Sequence[Score], answers: Mapping[str, Mapping[str, Answer]]) -> str:
    rows = [f"<tr><th>reference</th><td>{html.escape(sample.shown) or 'none'}</td></tr>"]
    for score in scores:
        answer, worth = answers[score.bundle].get(sample.key), score.scores.get(sample.key)
        said = "<em>no answer</em>" if answer is None else html.escape(answer.text) or "<em>nothing</em>"
        kind = "" if worth is None else "right" if worth == 1 else "wrong"
        mark = {"right": "right", "wrong": "wrong" if not worth else f"{worth:.2f}", "": "not scored"}[kind]
        rows.append(f'<tr><th>{html.escape(score.bundle)}</th><td class="{kind}">{said} ({mark})</td></tr>')
    pictures = "".join(_image(sample, index) for index in range(len(sample.pictures)))
    return (
        f"<article><div>{pictures}</div><div><pre>{html.escape(sample.question)}</pre>"
        f'<table>{"".join(rows)}</table><div class="key">{html.escape(sample.key)}</div></div></article>'
    )


def _image(sample: Sample, index: int) -> str:
    try:
        picture = open_picture(sample.pictures[index])
    except InputError as error:
        return f"<p>{html.escape(str(error))}</p>"
    scale = min(1.0, SIDE / max(picture.shape[:2]))
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    small = cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_AREA)
    content = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(content).decode()}">'
