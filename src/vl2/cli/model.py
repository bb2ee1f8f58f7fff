"""Where commands get their model: the one place that tests replace."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vl2.core.config import EngineConfig, HubOptions, ProcessorConfig

if TYPE_CHECKING:
    from vl2.llm import LLM

OnProgress = Callable[[int, int], None]


def open_model(
    model: str,
    *,
    engine: EngineConfig,
    processor: ProcessorConfig,
    hub: HubOptions,
    in_process: bool,
    on_progress: OnProgress,
) -> LLM:
    """Find or download the checkpoint; weights are loaded later. Raises: SetupError."""
    from vl2.llm import LLM

    return LLM(model, engine=engine, processor=processor, hub=hub, in_process=in_process, on_progress=on_progress)


@contextlib.contextmanager
def loading_bar(what: str = "loading weights") -> Iterator[OnProgress]:
    """A bar on stderr while weights are read; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task = progress.add_task("load", start=True)

    def on_progress(done: int, total: int) -> None:
        if done < total:
            progress.start()
        progress.update(task, completed=done, total=total)
        if done >= total:
            progress.stop()

    try:
        yield on_progress
    finally:
        progress.stop()
