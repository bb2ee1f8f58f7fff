"""vl2 evaluate: questions with known answers, asked of a running server, or of two models that are compared."""

from __future__ import annotations

from pathlib import Path

import click

from vl2.core.errors import SetupError


@click.command("evaluate")
@click.argument("subject", metavar="QUESTIONS|MODEL")
@click.option(
    "--pictures",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder of the questions' pictures.",
)
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The server.")
@click.option("--model", default="default", show_default=True, help="Model name to ask for.")
@click.option("--api-key", envvar="VL2_API_KEY", help="Key of the server, if it wants one.")
@click.option("--concurrency", default=8, show_default=True, help="Questions asked at a time.")
@click.option("--first", type=int, help="Ask only so many of the questions, spread evenly over the file.")
@click.option("--against", metavar="OTHER", help="Compare MODEL with this one; both run here, without a server.")
@click.option(
    "--questions",
    type=click.Path(dir_okay=False, path_type=Path),
    help="With --against: the file of questions.",
)
@click.option(
    "--quantization",
    type=click.Choice(["auto", "int4", "int8", "fp8"]),
    default="auto",
    show_default=True,
    help="With --against: of MODEL, as in `vl2 serve`; OTHER is taken as it is.",
)
@click.option(
    "--logits",
    type=click.IntRange(0),
    default=64,
    show_default=True,
    help="With --against: compare next-token distributions on so many of the conversations.",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write scores and all answers as JSON.")
def command(
    subject: str,
    pictures: Path,
    url: str,
    model: str,
    api_key: str | None,
    concurrency: int,
    first: int | None,
    against: str | None,
    questions: Path | None,
    quantization: str,
    logits: int,
    output: Path | None,
) -> None:
    """Ask a running server the QUESTIONS of a file and print a table of what it got right, or compare two models.

    \b
    python nano/evalset.py --pictures /tmp/scenes        # draw the pictures of nano's 4,000 questions
    vl2 serve &
    vl2 evaluate nano/evalset.jsonl --pictures /tmp/scenes
    vl2 evaluate ./nano-int4 --against nano --questions nano/evalset.jsonl --pictures /tmp/scenes
    """
    from vl2.tools.evaluate import read_questions

    if (against is None) != (questions is None):
        raise SetupError(
            "--against and --questions belong together: vl2 evaluate MODEL --against OTHER --questions FILE"
        )
    file = questions or Path(subject)
    asked = read_questions(file)
    if first is not None and first < len(asked):
        asked = [asked[i * len(asked) // first] for i in range(first)]
    if against is not None:
        from vl2.cli.evaluate_pair import compare_models

        compare_models(
            subject, against, quantization, file, asked, pictures, concurrency=concurrency, logits=logits, output=output
        )
        return

    import asyncio
    import json

    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from vl2.tools.evaluate import evaluate, summarise

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
    table = Table("", "questions", "right %", "boxes found %", "mean IoU", "names found %", "names true %")
    for key, row in scores.items():
        table.add_row(
            key,
            str(int(row["n"])),
            f"{100 * row['right']:.1f}",
            _percent(row, "boxes_found"),
            f"{row['mean_iou']:.3f}" if "mean_iou" in row else "",
            _percent(row, "names_found"),
            _percent(row, "names_true"),
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


def _percent(row: dict[str, float], column: str) -> str:
    return f"{100 * row[column]:.1f}" if column in row else ""
