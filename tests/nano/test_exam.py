"""The examination's own table: counting is also told as the evaluation set asks it."""

import pytest
from exam import table
from questions import Asked, count, counted


def record(number: int, exact: bool) -> dict:
    asked = Asked("counting", "en", (("How many cats are there?", str(number)),))
    return dict(task="counting", lang="en", tiles=1, exact=exact, ious=[], asked=asked)


@pytest.mark.parametrize("number, english, chinese", [(0, "0", "0"), (1, "1", "1"), (3, "1, 2, 3", "1、2、3")])
def test_counts_said_aloud_end_with_the_number(number, english, chinese):
    assert (count(number, "en", aloud=True), count(number, "zh", aloud=True)) == (english, chinese)
    assert counted(english) == counted(chinese) == counted(count(number, "en")) == number


def test_counting_evenly_gives_each_number_the_same_weight():
    records = [record(1, True)] * 9 + [record(2, False)]
    scores = table(records)
    assert scores["counting"]["right"] == pytest.approx(0.9)
    assert scores["counting evenly"] == {"n": 0, "right": 0.5}


def test_without_counting_nothing_is_said_about_it():
    assert "counting evenly" not in table([record(1, True) | dict(task="text")])
