"""Rows of data-set files, one at a time: Parquet, JSON, JSON lines and tab- or comma-separated text.

Nothing is downloaded, and a picture is in memory only while its row is in use.
"""

from __future__ import annotations

import base64
import binascii
import csv
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from apps.evaluate.sample import Picture, Problem
from runtime.errors import ConfigError, InputError

ROWS_AT_A_TIME = 16  # of a Parquet file: pictures of so many rows are in memory
MAX_FIELD = 1 << 28  # characters of one field of text: a picture of 200 MB in base64

Row = dict[str, Any]


def read_rows(path: Path, without: Collection[str] = ()) -> Iterator[tuple[str, Row | Problem]]:
    """Yield every row with its place ("file:line"), or the problem that it has.

    Args:
        path: a .parquet, .jsonl, .json, .tsv or .csv file.
        without: columns that are not wanted; not even read where the format allows it.

    Raises:
        ConfigError: the file cannot be read as a whole, or its format needs a package that is not installed.
    """
    reader = {".parquet": _parquet, ".jsonl": _lines, ".json": _json}.get(path.suffix, _text)
    try:
        for number, row in reader(path, without):
            where = f"{path.name}:{number}"
            if isinstance(row, Mapping):
                yield where, {name: value for name, value in row.items() if name not in without}
            else:
                yield where, Problem(where, str(row))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot read {path}: {error}", hint="is the download complete?") from None


def _parquet(path: Path, without: Collection[str]) -> Iterator[tuple[int, Any]]:
    file = open_parquet(path)
    columns = [name for name in file.schema_arrow.names if name not in without]
    number = 0
    for batch in file.iter_batches(ROWS_AT_A_TIME, columns=columns):
        for row in batch.to_pylist():
            yield number, row
            number += 1


def open_parquet(path: Path) -> Any:
    """Open a Parquet file with pyarrow. Raises `ConfigError` if that is missing, or the file is damaged."""
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise ConfigError(f"{path.name} needs pyarrow", hint='pip install ".[eval]"') from None
    try:
        return parquet.ParquetFile(path)
    except (OSError, arrow.ArrowException) as error:
        raise ConfigError(f"cannot read {path}: {error}", hint="is the download complete?") from None


def _lines(path: Path, _: Collection[str]) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _parsed(line)


def _json(path: Path, without: Collection[str]) -> Iterator[tuple[int, Any]]:
    """A list of rows, a list under "data", "questions" or "annotations", or rows under their ids; or lines."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        yield from _lines(path, without)  # some benchmarks call their JSON lines .json
        return
    if isinstance(content, dict):
        inner = next(
            (content[k] for k in ("data", "questions", "annotations") if isinstance(content.get(k), list)), None
        )
        if inner is None and content and all(isinstance(value, dict) for value in content.values()):
            inner = [{"id": key, **value} for key, value in content.items()]
        content = [content] if inner is None else inner
    if not isinstance(content, list):
        raise ConfigError(f"{path} holds no rows", wanted="a list of objects, or objects under their ids")
    for number, row in enumerate(content):
        yield number, row if isinstance(row, dict) else f"a row of type {type(row).__name__}, not an object"


def _text(path: Path, _: Collection[str]) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(MAX_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="," if path.suffix == ".csv" else "\t", restkey="", restval=None)
        for row in reader:
            extra = "" in row and row.pop("") is not None
            short = None in row.values()
            problem = "more fields than the header" if extra else "fewer fields than the header" if short else ""
            yield reader.line_num, problem or row


def _parsed(line: str) -> Any:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        return f"not JSON: {error}"
    return row if isinstance(row, dict) else f"a line that holds a {type(row).__name__}, not an object"


def picture_of(value: Any, folders: Sequence[Path]) -> Picture:
    """Turn what a row says about its picture into something that can be opened.

    Args:
        value: the content of a file, alone or under "bytes" as the `datasets` library stores it, a path below one of
            `folders`, or base64 text.
        folders: where paths may begin.

    Raises:
        InputError: there is no picture, or no such file.
    """
    if isinstance(value, Mapping):
        content = value.get("bytes")
        value = content if content else value.get("path")
    if isinstance(value, bytes) and value:
        return value
    if not isinstance(value, str) or not value:
        raise InputError("no picture")
    if found := _file(value, folders):
        return found
    if len(value) >= 64:
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            pass
    raise InputError(f"no picture {value[:80]!r}", wanted=f"a file below {', '.join(map(str, folders))}")


def _file(name: str, folders: Sequence[Path]) -> Path | None:
    if len(name) > 500:  # base64, and not worth asking the file system about
        return None
    try:
        return next((folder / name for folder in folders if (folder / name).is_file()), None)
    except OSError:  # longer than a name may be, so it is none
        return None
