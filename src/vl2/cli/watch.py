"""vl2 watch: the same question about each new picture in a folder."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vl2.cli import model as models
from vl2.cli.options import options, sampling_options
from vl2.core.config import EngineConfig, HubOptions, ProcessorConfig
from vl2.core.errors import RequestError
from vl2.core.types import ImagePart, Message, SamplingParams

if TYPE_CHECKING:
    from vl2.edge.frames import Frame, FrameFolder
    from vl2.llm import LLM

POLL_S = 0.01
REPORT_S = 5.0


@click.command("watch")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("question")
@click.option("--model", default="nano", show_default=True, envvar="VL2_MODEL", help="As in `vl2 serve`.")
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object a picture.")
@click.option("--existing", is_flag=True, help="Begin with the newest picture that is there already.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many answers. Default: on Ctrl-C.")
@sampling_options
@options(engine=EngineConfig, processor=ProcessorConfig, hub=HubOptions)
def command(
    folder: Path,
    question: str,
    model: str,
    is_json: bool,
    existing: bool,
    count: int | None,
    params: SamplingParams,
    engine: EngineConfig,
    processor: ProcessorConfig,
    hub: HubOptions,
) -> None:
    """Answer QUESTION about each new picture in FOLDER.

    Each answer is a line on stdout: the picture's name, a tab, the answer. Where pictures come faster than answers, the
    newest is taken and those before it are dropped, so that answers never lag behind. Frames/s go to stderr.

    \b
    vl2 watch /run/camera "How many people are there?"
    vl2 watch /run/camera "Is there a cat?" --model out/nano --max-tokens 4
    """
    from vl2.edge.frames import FrameFolder

    with models.loading_bar() as on_progress:
        llm = models.open_model(
            model, engine=engine, processor=processor, hub=hub, in_process=True, on_progress=on_progress
        )
        with llm:
            llm.chat(question, dataclasses.replace(params, max_tokens=1))  # loads the model
            frames = FrameFolder(folder, takes_existing=existing)
            click.echo(f"vl2: {llm.name} watches {folder}", err=True)
            watch(frames, lambda frame: _answer(llm, frame, question, params, is_json), count)


def _answer(llm: LLM, frame: Frame, question: str, params: SamplingParams, is_json: bool) -> str:
    started_s = time.monotonic()
    message = Message.from_parts("user", [ImagePart(frame.data), question])
    text = llm.chat([message], params).text
    if not is_json:
        return f"{frame.path.name}\t{' '.join(text.split())}"
    seconds = round(time.monotonic() - started_s, 4)
    told = {"picture": frame.path.name, "text": text, "seconds": seconds, "dropped": frame.num_dropped}
    return json.dumps(told, ensure_ascii=False)


def watch(
    frames: FrameFolder,
    answer: Callable[[Frame], str],
    count: int | None,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,  # between two looks; tests let no time pass
) -> None:
    """Until `count` answers, or Ctrl-C. A picture that cannot be read is told and passed over."""
    meter = Meter(clock())
    try:
        while count is None or meter.num_answered < count:
            frame = frames.take()
            if frame is None:
                sleep(POLL_S)
            else:
                started_s = clock()
                meter.begin(started_s)
                try:
                    click.echo(answer(frame))
                    meter.answered(frame, clock() - started_s)
                except RequestError as error:
                    click.echo(f"{frame.path.name}: {error}", err=True)
            if clock() - meter.reported_s >= REPORT_S and meter.num_recent:
                click.echo(meter.report(clock()), err=True)
    except KeyboardInterrupt:
        click.echo(err=True)
    finally:
        if meter.num_answered:
            click.echo(meter.summary(), err=True)


class Meter:
    """Frames/s of the last seconds, and how many an answer's time would allow if pictures never ran out."""

    def __init__(self, now_s: float) -> None:
        self.reported_s = now_s
        self.num_answered = self.num_dropped = self.num_recent = 0
        self.busy_s = 0.0

    def begin(self, now_s: float) -> None:
        """The time since the last report counts from its first picture on."""
        if not self.num_recent:
            self.reported_s = now_s

    def answered(self, frame: Frame, seconds: float) -> None:
        self.num_answered += 1
        self.num_recent += 1
        self.num_dropped += frame.num_dropped
        self.busy_s += seconds

    def report(self, now_s: float) -> str:
        rate = self.num_recent / (now_s - self.reported_s)
        self.reported_s, self.num_recent = now_s, 0
        return f"vl2: {rate:.1f} frames/s, {self.num_answered} answered, {self.num_dropped} dropped"

    def summary(self) -> str:
        each_ms = 1000 * self.busy_s / self.num_answered
        return (
            f"vl2: {self.num_answered} answered, {self.num_dropped} dropped; {each_ms:.0f} ms an answer, which is "
            f"{1000 / each_ms:.1f} frames/s at most"
        )
