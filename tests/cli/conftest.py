"""The command line around a fake model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.fakes import FakeModel
from vl2.cli import execute
from vl2.core.types import Delta, Message, SamplingParams


class SyncFakeModel(FakeModel):
    """`FakeModel` with the synchronous face of `vl2.llm.LLM`. It remembers how it was opened."""

    opened: dict[str, Any]

    def __enter__(self) -> SyncFakeModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.is_stopped = True

    def stream_sync(self, messages: Sequence[Message], params: SamplingParams) -> Iterator[Delta]:
        async def collect() -> list[Delta | Exception]:
            taken: list[Delta | Exception] = []
            try:
                taken.extend([delta async for delta in self.stream(messages, params)])
            except Exception as error:
                taken.append(error)
            return taken

        for item in asyncio.run(collect()):
            if isinstance(item, Exception):
                raise item
            yield item


@dataclass
class Result:
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> SyncFakeModel:
    """What every command opens instead of a model."""
    model = SyncFakeModel(name="nano")

    def open_model(name: str, **opened: Any) -> SyncFakeModel:
        model.opened = {"model": name, **opened}
        return model

    monkeypatch.setattr("vl2.cli.model.open_model", open_model)
    return model


@pytest.fixture
def vl2(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run a command line in this process."""

    def run(*args: str) -> Result:
        code = execute(list(args))
        return Result(code, *capsys.readouterr())

    return run
