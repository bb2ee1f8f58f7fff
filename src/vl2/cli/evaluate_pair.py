"""vl2 evaluate MODEL --against OTHER."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from vl2.checkpoint.folder import read_model_config
from vl2.checkpoint.source import resolve_model
from vl2.core.config import EngineConfig, ProcessorConfig
from vl2.core.quantization_default import with_quantization
from vl2.engine.device import choose_device, choose_dtype
from vl2.llm import LLM
from vl2.processing.processor import Processor
from vl2.quant.calibration import read_conversations
from vl2.quant.compare import Distance, compare_logits
from vl2.tools.compare import Estimate, Row, answer_all, compare
from vl2.tools.evaluate import Answer, Question


def compare_models(
    model: str,
    other: str,
    quantization: str,
    file: Path,
    questions: Sequence[Question],
    pictures: Path,
    *,
    concurrency: int,
    logits: int,
    output: Path | None,
) -> None:
    """Ask both, print a table, and write it. Raises: SetupError."""
    with Progress(console=Console(stderr=True), transient=True) as progress:

        def ask(name: str, mode: str) -> list[Answer]:
            bar = progress.add_task(name, total=len(questions))
            llm = LLM(name, engine=EngineConfig(quantization=mode, max_sequences=concurrency), in_process=False)
            job = answer_all(
                llm, questions, pictures, concurrency=concurrency, on_answer=lambda _: progress.advance(bar)
            )
            return asyncio.run(job)

        answers = [ask(model, quantization), ask(other, "auto")]
        rows = compare(*answers)
        distance = None
        if logits:
            bar = progress.add_task("logits", total=logits)
            distance = _distance(model, other, quantization, file, pictures, logits, lambda: progress.advance(bar))
    Console().print(_table(rows, model, other))
    if distance is not None:
        Console().print(
            f"next-token distributions at {distance.num_tokens} tokens: KL {distance.kl:.4f} nats, "
            f"same likeliest token {distance.top1:.2%}; at the {distance.num_answer_tokens} of answers "
            f"{distance.answer_top1:.2%}"
        )
    if output is not None:
        output.write_text(json.dumps(_told(rows, distance, answers), ensure_ascii=False, indent=1) + "\n", "utf-8")


def _distance(
    model: str, other: str, quantization: str, file: Path, pictures: Path, number: int, on_sample: Any
) -> Distance:
    folder, reference = resolve_model(model), resolve_model(other)
    config = read_model_config(reference)
    processor = Processor(reference, config, ProcessorConfig())
    longest = config.language.max_position_embeddings
    samples, _ = read_conversations(file, processor, pictures=pictures, max_samples=number, max_tokens=longest)
    device = choose_device("auto")
    return compare_logits(
        folder,
        reference,
        samples,
        dtype=choose_dtype("auto", device),
        device=device,
        change=lambda config: with_quantization(config, quantization),
        on_sample=on_sample,
    )


def _table(rows: list[Row], model: str, other: str) -> Table:
    table = Table("", "questions", f"right %, {model}", other, "difference", "ANLS", "IoU", "same answer %")
    for row in rows:
        table.add_row(
            row.task,
            str(row.num_questions),
            *(_percent(estimate) for estimate in row.right),
            _change(row.anls),
            _change(row.iou),
            f"{100 * row.num_same / row.num_questions:.1f}",
        )
    return table


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.2f} ± {100 * estimate.margin:.2f}"


def _change(estimates: tuple[Estimate, Estimate, Estimate] | None) -> str:
    """0.871 (-0.002 ± 0.004)"""
    if estimates is None:
        return ""
    own, _, difference = estimates
    return f"{own.value:.3f} ({difference.value:+.3f} ± {difference.margin:.3f})"


def _told(rows: list[Row], distance: Distance | None, answers: list[list[Answer]]) -> dict[str, Any]:
    return {
        "scores": [dataclasses.asdict(row) for row in rows],
        "logits": None if distance is None else dataclasses.asdict(distance),
        "answers": [
            {"id": one.question.id, "answer": one.text, "other": two.text, "right": [one.score.right, two.score.right]}
            for one, two in zip(*answers, strict=True)
        ],
    }
