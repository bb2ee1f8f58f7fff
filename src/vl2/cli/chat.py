"""vl2 chat: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vl2.cli import model as models
from vl2.cli.options import model_argument, options, sampling_options
from vl2.core.config import EngineConfig, HubOptions, ProcessorConfig
from vl2.core.errors import CapacityError, EngineError, RequestError
from vl2.core.types import Delta, ImagePart, Message, SamplingParams

if TYPE_CHECKING:
    from rich.console import Console

    from vl2.llm import LLM

HISTORY_FILE = Path("~/.cache/vl2/chat_history")
HISTORY_LINES = 1000
HELP = """\
/image PATH   show a picture with your next question (repeat for more pictures)
/clear        forget the conversation and its pictures
/help         this list
/quit         leave; so does Ctrl-D. Ctrl-C stops an answer"""


@click.command("chat")
@model_argument
@sampling_options
@options(engine=EngineConfig, processor=ProcessorConfig, hub=HubOptions)
def command(
    model: str, params: SamplingParams, engine: EngineConfig, processor: ProcessorConfig, hub: HubOptions
) -> None:
    """Talk with MODEL in the terminal.

    /image PATH shows it a picture, /help lists the commands.

    \b
    vl2 chat
    vl2 chat tiny --temperature 0.4 --top-p 0.9 --repetition-penalty 1.1
    """
    from rich.console import Console

    console = Console(highlight=False)
    with models.loading_bar() as on_progress:
        llm = models.open_model(
            model, engine=engine, processor=processor, hub=hub, in_process=True, on_progress=on_progress
        )
        with llm, _line_history():
            console.print(f"[bold]{llm.name}[/]  [dim]/image PATH shows a picture, /help lists the commands[/]")
            converse(Conversation(llm, params, console), lambda: input("› "))


def converse(conversation: Conversation, read_line: Callable[[], str]) -> None:
    """Read and answer lines until the user leaves."""
    while True:
        try:
            line = read_line().strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            conversation.note("/quit or Ctrl-D leaves")
            continue
        if line == "/quit":
            return
        conversation.take(line)


class Conversation:
    """What was said so far, and the pictures that wait for the next question."""

    def __init__(self, llm: LLM, params: SamplingParams, console: Console) -> None:
        self._llm, self._params, self._console = llm, params, console
        self.messages: list[Message] = []
        self.pictures: list[ImagePart] = []

    def note(self, text: str, style: str = "dim") -> None:
        self._console.print(text, style=style, markup=False)

    def take(self, line: str) -> None:
        """A command or a question."""
        word, _, rest = line.partition(" ")
        if not line:
            return
        if word == "/image":
            self._add_picture(rest.strip().strip("'\""))
        elif word == "/clear":
            self.messages, self.pictures = [], []
            self.note("forgotten")
        elif word == "/help" or (word.startswith("/") and word.count("/") == 1 and word.isascii()):
            self.note(HELP)
        else:
            self._ask(line)

    def _add_picture(self, name: str) -> None:
        path = Path(name).expanduser()
        try:
            self.pictures.append(ImagePart(path.read_bytes()))
        except OSError as error:
            self.note(f"cannot read {name or 'a picture without a name'}: {error.strerror}", "red")
        else:
            self.note(f"{path.name} goes with your next question")

    def _ask(self, question: str) -> None:
        """Stream the answer. A turn that failed or was stopped is taken back, its pictures kept for the next try."""
        started, deltas = time.monotonic(), list[Delta]()
        try:
            asked = Message.from_parts("user", [*self.pictures, question])
            stream = self._llm.stream_sync([*self.messages, asked], self._params)
            with contextlib.closing(stream):  # aborts the request
                for delta in stream:
                    deltas.append(delta)
                    self._console.print(delta.text, end="", markup=False, soft_wrap=True)
        except KeyboardInterrupt:
            self.note("\n(stopped; this turn is forgotten)")
        except (RequestError, CapacityError, EngineError) as error:
            self.note(f"{error}", "red")
        else:
            self._console.print()
            self._show_boxes(deltas[-1])
            self.messages += [asked, Message("assistant", "".join(delta.text for delta in deltas))]
            self.pictures = []
            if usage := deltas[-1].usage:
                elapsed_s = time.monotonic() - started
                self.note(f"{usage.prompt_tokens} + {usage.completion_tokens} tokens, {elapsed_s:.1f} s")

    def _show_boxes(self, last: Delta) -> None:
        for item in last.grounding or ():
            for box in item.boxes:
                self.note(f"{item.label}: ({box.x1}, {box.y1}) – ({box.x2}, {box.y2}) px", "cyan")


@contextlib.contextmanager
def _line_history() -> Iterator[None]:
    """Arrow keys and earlier lines, kept between runs; plain input where there is no readline."""
    try:
        import readline
    except ImportError:
        yield
        return
    file = HISTORY_FILE.expanduser()
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.set_history_length(HISTORY_LINES)
            readline.write_history_file(file)
