"""The World vocabulary that goes into a bundle, and the ids with a meaning."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from export.archspec import ArchSpec
from export.config import ExportConfig
from runtime.errors import ConfigError

STOP_TEXT = b"\n\n"
_PACKAGED = "rwkv_vocab_v20230424.txt"


def vocabulary_file(config: ExportConfig) -> Path:
    """Return the vocabulary to copy: the configuration's own, else the official one from the tokenizer package."""
    if config.vocabulary is not None:
        if not config.vocabulary.is_file():
            raise ConfigError(f"vocabulary {config.vocabulary} does not exist", wanted="a World vocabulary file")
        return config.vocabulary
    package = importlib.util.find_spec("pyrwkv_tokenizer")
    if package is None or package.origin is None:
        raise ConfigError("pyrwkv-tokenizer is not installed", hint="pip install 'visualrwkv-edge[export]'")
    return Path(package.origin).parent / _PACKAGED


def stop_ids(spec: ArchSpec, vocabulary: Path) -> tuple[int, ...]:
    """Return the ids that end an answer: the configured one, else the vocabulary's entry for two newlines.

    Raises:
        ConfigError: there is none, or it has no row in the embedding table.
    """
    found = spec.stop_token_id if spec.stop_token_id is not None else _id_of(STOP_TEXT, vocabulary)
    if found is None or not 0 <= found < spec.vocab_size:
        raise ConfigError(
            f"stop token {found} for a model of {spec.vocab_size} rows",
            wanted="an id inside the embedding table",
            hint='set "stop_token_id" in --config',
        )
    return (found,)


def _id_of(text: bytes, vocabulary: Path) -> int | None:
    with vocabulary.open(encoding="utf-8") as file:
        for line in file:
            number, rest = line.split(" ", 1)
            literal = rest.rsplit(" ", 1)[0]
            if len(literal) < 16:  # two newlines are short however they are written
                value = ast.literal_eval(literal)
                if (value.encode() if isinstance(value, str) else value) == text:
                    return int(number)
    return None
