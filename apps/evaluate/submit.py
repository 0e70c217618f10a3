"""Files for the evaluation servers: VQA-v2 and TextVQA take JSON, MMBench a table for Excel, GQA its own JSON."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from apps.evaluate.answers import Answer
from apps.evaluate.sample import Sample
from apps.evaluate.source import is_none
from apps.evaluate.tasks import Plan
from apps.evaluate.vqa_text import normalise_textvqa
from runtime.errors import ConfigError

FORMATS = {"vqav2": ".json", "textvqa": ".json", "gqa": ".json", "mmbench": ".xlsx", "mmbench_cn": ".xlsx"}
_MMBENCH = ("question", "A", "B", "C", "D", "prediction", "category", "l2-category", "split", "index")


def write_submission(plan: Plan, answers: Mapping[str, Answer], stem: Path) -> Path:
    """Write what a benchmark's server takes, and return the file.

    Args:
        plan: what was asked. Every question must have an answer: servers refuse what is not complete.
        answers: by question.
        stem: path of the file, without its ending.

    Raises:
        ConfigError: the task has no server, or answers are missing.
    """
    task = plan.task.name
    if task not in FORMATS:
        raise ConfigError(f"there is no submission file for {task}", wanted=", ".join(FORMATS))
    missing = [sample.key for sample in plan.samples if sample.key not in answers]
    if missing:
        raise ConfigError(f"{len(missing)} questions of {task} have no answer, {missing[0]} among them")
    pairs = [(sample, answers[sample.key].text) for sample in plan.samples]
    path = stem.with_name(stem.name + FORMATS[task])
    path.parent.mkdir(parents=True, exist_ok=True)
    if task == "gqa":
        _dump(path, [{"questionId": s.key, "prediction": text.rstrip(".").lower()} for s, text in pairs])
    elif FORMATS[task] == ".json":
        _dump(path, [{"question_id": _number(s.key), "answer": normalise_textvqa(text)} for s, text in pairs])
    else:
        write_xlsx(path, _MMBENCH, [_mmbench_row(sample, text) for sample, text in pairs])
    return path


def _dump(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, ensure_ascii=False) + "\n", encoding="utf-8")


def _number(key: str) -> int | str:
    return int(key) if key.isdecimal() else key


def _mmbench_row(sample: Sample, text: str) -> list[Any]:
    row = {**sample.row, "prediction": text}
    row.setdefault("l2-category", row.get("L2-category"))
    return [int(sample.key) if name == "index" else row.get(name) for name in _MMBENCH]


# The least that makes a workbook (ECMA-376, part 1): one sheet of inline strings and numbers.
_PARTS = {
    "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Override PartName="/xl/workbook.xml" '
    'ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"/>'
    '<Override PartName="/xl/worksheets/sheet1.xml" '
    'ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.worksheet+xml"/></Types>',
    "_rels/.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
    '<Relationship Id="rId1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" '
    'Target="xl/workbook.xml"/></Relationships>',
    "xl/_rels/workbook.xml.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
    '<Relationship Id="rId1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/worksheet" '
    'Target="worksheets/sheet1.xml"/></Relationships>',
    "xl/workbook.xml": '<workbook xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main" '
    'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships">'
    '<sheets><sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets></workbook>',
}
_HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'


def write_xlsx(path: Path, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as a workbook with one sheet; empty values become empty cells."""
    lines = [names, *rows]
    body = "".join(
        f'<row r="{number}">{"".join(_cell(number, column, value) for column, value in enumerate(row))}</row>'
        for number, row in enumerate(lines, 1)
    )
    sheet = '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">'
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in _PARTS.items():
            archive.writestr(name, _HEAD + content)
        archive.writestr("xl/worksheets/sheet1.xml", f"{_HEAD}{sheet}<sheetData>{body}</sheetData></worksheet>")


def _cell(row: int, column: int, value: Any) -> str:
    place = quoteattr(f"{chr(ord('A') + column)}{row}")
    if is_none(value):
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"<c r={place}><v>{value}</v></c>"
    text = "".join(c for c in str(value) if c >= " " or c in "\t\n\r")  # other control characters are not XML
    return f'<c r={place} t="inlineStr"><is><t xml:space="preserve">{escape(text)}</t></is></c>'
