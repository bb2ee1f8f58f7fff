"""Log lines for programs."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone

from vl2.core.logs import FIELDS, JSONFormatter


def line_of(**changes: object) -> dict:
    record = logging.LogRecord("vl2.test", logging.WARNING, __file__, 1, "%s pages of %d", ("two\nlines", 7), None)
    record.__dict__.update(changes)
    text = JSONFormatter(who="replica 1").format(record)
    assert "\n" not in text
    return json.loads(text)


def test_a_line_is_one_json_object_with_its_time_in_utc() -> None:
    line = line_of()
    assert line["level"] == "warning" and line["logger"] == "vl2.test" and line["process"] == "replica 1"
    assert line["message"] == "two\nlines pages of 7"
    age = datetime.now(timezone.utc) - datetime.fromisoformat(line["time"])
    assert 0 <= age.total_seconds() < 60


def test_fields_and_the_story_of_an_error_are_in_it() -> None:
    try:
        raise ValueError("broken")
    except ValueError as error:
        line = line_of(**{FIELDS: {"status": 500}}, exc_info=(type(error), error, error.__traceback__))
    assert line["status"] == 500 and line["exception"].endswith("ValueError: broken")
