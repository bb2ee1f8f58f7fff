"""Requests made up from the API's own description: `python tests/server/schemathesis_run.py [EXAMPLES]`.

Each operation gets a share of the examples. No answer may be a 5xx, of an undocumented status, type or shape.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

sys.path.insert(0, str(Path(__file__).parents[1]))

from fakes import FakeModel
from server.test_openai_client import running

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


def run(num_examples: int) -> Counter[str]:
    """Returns answers counted by operation and status. Raises: AssertionError with the request to repeat."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, running(FakeModel(), state_dir=folder, fetch=False) as url:
        schema = schemathesis.openapi.from_url(url.removesuffix("/v1") + "/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        share = -(-num_examples // len(operations))
        for operation in operations:
            _run_operation(operation, share, counts)
    return counts


def _run_operation(operation: Any, num_examples: int, counts: Counter[str]) -> None:
    @given(case=operation.as_strategy())
    @settings(
        max_examples=num_examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        response = case.call()
        counts[f"{operation.method.upper()} {operation.path} {response.status_code}"] += 1
        case.validate_response(response, checks=CHECKS)

    ask()


if __name__ == "__main__":
    answers = run(int(sys.argv[1]) if len(sys.argv) > 1 else 2500)
    for name, count in sorted(answers.items()):
        print(f"{count:6d}  {name}")
    print(f"{sum(answers.values()):6d}  in all")
