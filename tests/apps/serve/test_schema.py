"""The OpenAPI document says what the server does: requests made from it, right and wrong ones, meet no surprise."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from runtime import VisualRWKV
from tests.apps.serve.conftest import MODEL, Serve

schemathesis = pytest.importorskip("schemathesis", reason='needs pip install "schemathesis>=4"')

EXAMPLES = 6  # for each operation, right and wrong ones


@pytest.fixture(scope="module")
def document(serve: Serve, demo: VisualRWKV) -> Any:
    """The document of a server whose answers are short."""
    server = serve(demo, tokens=2, max_tokens=4, slots=1, max_text=2000)
    return schemathesis.openapi.from_url(f"{server.address}/openapi.json")


def test_every_answer_is_documented(document: Any) -> None:
    from schemathesis import GenerationMode
    from schemathesis.checks import CHECKS

    # Some right requests are refused (a picture that is none); the others are for schemes this server does not use.
    unwanted = {"positive_data_acceptance", "unsupported_method", "ignored_auth"}
    chosen = [check for check in CHECKS.get_all() if check.__name__ not in unwanted]
    met: Counter[int] = Counter()
    operations = [result.ok() for result in document.get_all_operations()]
    for operation in operations:
        for mode in GenerationMode:

            @settings(
                max_examples=EXAMPLES,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                met[case.call_and_validate(checks=chosen).status_code] += 1

            with contextlib.suppress(Unsatisfiable):  # nothing about a GET without parameters can be wrong
                ask()
    assert len(operations) == 9
    assert {200, 400, 404} <= set(met) and max(met) < 500


def test_the_document_names_the_model(document: Any) -> None:
    raw = document.raw_schema
    assert raw["components"]["schemas"]["ChatRequest"]["properties"]["model"]["enum"] == [MODEL]
    for path in raw["paths"].values():
        for operation in path.values():
            assert {"200", "401", "403"} <= set(operation["responses"])
            assert "422" not in operation["responses"]
