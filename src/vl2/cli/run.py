"""vl2 run: one question, one answer on stdout."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import click

from vl2.cli import model as models
from vl2.cli.options import options, sampling_options
from vl2.core.config import EngineConfig, HubOptions, ProcessorConfig
from vl2.core.types import Completion, Grammar, ImagePart, Message, SamplingParams, fold_deltas


@click.command("run")
@click.argument("words", nargs=-1, required=True, metavar='[IMAGE]... "QUESTION"')
@click.option("--model", default="nano", show_default=True, envvar="VL2_MODEL", help="As in `vl2 serve`.")
@click.option("--json", "is_json", is_flag=True, help="Print text, boxes, usage and finish reason as one JSON object.")
@click.option(
    "--json-schema", "schema_file", type=click.Path(path_type=Path), help="The answer is JSON that this schema allows."
)
@click.option("--grounding", is_flag=True, help="Boxes in the answer can only be well-formed.")
@sampling_options
@options(engine=EngineConfig, processor=ProcessorConfig, hub=HubOptions)
def command(
    words: tuple[str, ...],
    model: str,
    is_json: bool,
    schema_file: Path | None,
    grounding: bool,
    params: SamplingParams,
    engine: EngineConfig,
    processor: ProcessorConfig,
    hub: HubOptions,
) -> None:
    """Answer one QUESTION about pictures.

    The answer goes to stdout, all else to stderr. The picture - is read from stdin. Without <image> tags in the
    question, the pictures come before it, in order.

    \b
    vl2 run cat.jpg "What is in the picture?"
    vl2 run left.png right.png "Which image has the apple?"
    vl2 run cat.jpg "<|ref|>the cat<|/ref|>." --json
    curl -s https://example.org/cat.jpg | vl2 run - "How many cats are there?"
    """
    *pictures, question = words
    message = Message.from_parts("user", [*(ImagePart(_read(picture)) for picture in pictures), question])
    if not pictures and Path(question).is_file():
        raise click.UsageError(f"{question} is a picture; what is the question about it?")
    params = dataclasses.replace(params, grammar=_grammar(schema_file, grounding))
    with models.loading_bar() as on_progress:
        llm = models.open_model(
            model, engine=engine, processor=processor, hub=hub, in_process=True, on_progress=on_progress
        )
        with llm:
            deltas = []
            for delta in llm.stream_sync([message], params):
                deltas.append(delta)
                if not is_json:
                    click.echo(delta.text, nl=False)
    click.echo(json.dumps(_summary(llm.name, fold_deltas(deltas)), ensure_ascii=False) if is_json else "")


def _grammar(schema_file: Path | None, grounding: bool) -> Grammar | None:
    if schema_file is None:
        return Grammar("grounding") if grounding else None
    if grounding:
        raise click.UsageError("--json-schema and --grounding cannot be combined")
    try:
        return Grammar("json_schema", schema_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.UsageError(f"cannot read the schema {schema_file}: {error}") from None


def _read(picture: str) -> bytes:
    if picture == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(picture).read_bytes()
    except OSError as error:
        raise click.UsageError(f"cannot read the picture {picture}: {error.strerror}") from None


def _summary(name: str, completion: Completion) -> dict[str, object]:
    choice = completion.choices[0]
    return {
        "model": name,
        "text": choice.text,
        "grounding": [
            {
                "label": item.label,
                "boxes": [dataclasses.astuple(box) for box in item.boxes],
                "boxes_norm": item.boxes_norm,
            }
            for item in choice.grounding or ()
        ],
        "usage": {
            name: count for name, count in dataclasses.asdict(completion.usage).items() if name.endswith("_tokens")
        },
        "finish_reason": choice.finish_reason.value,
    }
