"""vl2 evaluate: ask a running server questions with known answers."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("evaluate")
@click.argument("questions", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--pictures",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder of the questions' pictures.",
)
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The server.")
@click.option("--model", default="default", show_default=True, help="Model name to ask for.")
@click.option("--api-key", envvar="VL2_API_KEY", help="Key of the server, if it wants one.")
@click.option("--concurrency", default=8, show_default=True, help="Questions asked at a time.")
@click.option("--first", type=int, help="Ask only so many of the questions, spread evenly over the file.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write scores and all answers as JSON.")
def command(
    questions: Path,
    pictures: Path,
    url: str,
    model: str,
    api_key: str | None,
    concurrency: int,
    first: int | None,
    output: Path | None,
) -> None:
    """Ask a running server the QUESTIONS of a file and print a table of what it got right.

    \b
    python nano/evalset.py --pictures /tmp/scenes        # draw the pictures of nano's 4,000 questions
    vl2 serve &
    vl2 evaluate nano/evalset.jsonl --pictures /tmp/scenes
    """
    import asyncio
    import json

    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from vl2.tools.evaluate import evaluate, read_questions, summarise

    asked = read_questions(questions)
    if first is not None and first < len(asked):
        asked = [asked[i * len(asked) // first] for i in range(first)]
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("questions", total=len(asked))
        answers = asyncio.run(
            evaluate(
                asked,
                pictures,
                url=url,
                model=model,
                api_key=api_key,
                concurrency=concurrency,
                on_answer=lambda _: progress.advance(bar),
            )
        )
    scores = summarise(answers)
    table = Table("", "questions", "right %", "boxes found %", "mean IoU")
    for key, row in scores.items():
        table.add_row(
            key,
            str(int(row["n"])),
            f"{100 * row['right']:.1f}",
            f"{100 * row['boxes_found']:.1f}" if "boxes_found" in row else "",
            f"{row['mean_iou']:.3f}" if "mean_iou" in row else "",
        )
    Console().print(table)
    if output is not None:
        told = [
            {"id": a.question.id, "answer": a.text, "right": a.score.right, "latency_s": round(a.latency_s, 3)}
            for a in answers
        ]
        output.write_text(
            json.dumps({"scores": scores, "answers": told}, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )
