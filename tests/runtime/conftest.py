"""Shared by the runtime's tests: the official vocabulary, and no deadlines on a busy machine."""

from __future__ import annotations

from pathlib import Path

import pyrwkv_tokenizer
import pytest
from hypothesis import settings

from runtime.tokenizer import Tokenizer

settings.register_profile("steady", deadline=None)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The official vocabulary of 65529 tokens."""
    return Tokenizer(Path(pyrwkv_tokenizer.__file__).with_name("rwkv_vocab_v20230424.txt"))
