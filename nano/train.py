"""Train nano. One command, resumable; `nano/README.md` has the exact line.

    python nano/train.py --run RUN_FOLDER --minutes 18

The schedule is bound to the clock: `--minutes` is the whole training time, the learning rate falls to zero at its end,
and a call that was stopped (`--stop-after` seconds) goes on where it was. Workers draw scenes all the time; when they are
slower than the GPU, a picture drawn before is used again, with questions not asked before (`feed.py`).
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing as mp
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from random import Random

import torch
from config import CONFIG, initialise, write_checkpoint
from draw import HELD_OUT_STYLE
from exam import exam, table
from feed import Feeder, Menu, Workers
from forward import exactness
from heads import Heads
from optim import Optimizer
from pack import TEXT, Batch, make_batch
from questions import Asked, Manner
from safetensors.torch import load_file
from scenes import MIXES
from sheets import sheet_batch
from step import Trainer, compile_parts, start_check

from model import NanoVL2

#: Weights of the training-only losses (`heads.py`) beside the answers' loss.
AUX = {
    "kind": 0.6, "tint": 0.2, "edge": 0.6, "letter": 0.8, "order": 0.4, "line": 0.5,
    "token": 0.4, "spot": 3.0, "middle": 0.1, "token_order": 0.3, "token_line": 0.4, "token_letter": 0.5, "name": 0.3, "point": 0.5, "tally": 0.5, "share": 0.3,
    "number": 0.4, "said": 0.2,
}  # fmt: skip


#: A training that goes on from weights begins with this micro-batch: scenes that they have not been trained on.
NOT_SEEN = 100_000


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--run", type=Path, required=True, help="folder of the checkpoint to resume from, log and weights")
    p.add_argument("--minutes", type=float, default=18, help="training time in all, over all calls")
    p.add_argument("--stop-after", type=float, default=1e9, help="stop this call after so many seconds, to be resumed")
    p.add_argument("--workers", type=int, default=27)
    p.add_argument("--sets", type=int, default=3, help="question sets per picture")
    p.add_argument("--muon-lr", type=float, default=0.012)
    p.add_argument("--adam-lr", type=float, default=2e-3)
    p.add_argument(
        "--eager", action="store_true", help="neither compile nor record the step (starts sooner, runs slower)"
    )
    p.add_argument(
        "--many", type=float, default=0.6, help="share of micro-batches with several tiles, after the first eighth"
    )
    p.add_argument("--tower", type=float, default=0.1, help="share of the time that the tower learns alone, on sheets")
    p.add_argument("--sheets", type=float, default=0.3, help="share of sheets among the micro-batches after that")
    p.add_argument(
        "--draw-sheets",
        type=float,
        default=0.1,
        help="share of sheets among those that are drawn; the rest is used again",
    )
    p.add_argument(
        "--weights", nargs=2, metavar=("FOLDER", "AT"), help="go on from a checkpoint alone, as if AT (0-1) of the time had passed; "
        "the heads learn alone for the first 20 seconds",
    )  # fmt: skip
    p.add_argument(
        "--per-thing", type=float, default=0.125, help="what a counted thing gets for each 1 on the first token"
    )
    p.add_argument(
        "--fine", action="store_true", help="each half of a patch says its character, and image tokens theirs"
    )
    p.add_argument("--counting", type=float, default=1.0, help="factor on the losses of the heads that count")
    p.add_argument("--mix", choices=MIXES, default="plain", help="which scenes are drawn (`scenes.MIXES`)")
    p.add_argument("--alike", type=float, default=0.0, help="share of absent things that look like one that is there")
    p.add_argument(
        "--amount",
        type=float,
        default=0.0,
        help="weight of how many things are like what an image token shows, asked where counting heads read it; "
        "numbers of equal things weigh as much as they are then",
    )
    p.add_argument("--aloud", action="store_true", help="counts are said aloud: 1, 2, 3")
    p.add_argument("--crowds", action="store_true", help="ask less for the number of what is there once, or not at all")
    p.add_argument("--hold", type=float, default=0.1, help="share of the time before the learning rate begins to fall")
    p.add_argument("--power", type=float, default=1.0, help="of how the learning rate falls: 1 is linearly")
    p.add_argument("--exam-scenes", type=int, default=1000, help="held-out scenes of the last examination")
    p.add_argument(
        "--decoder", choices=("fused", "plain"), default="fused", help="by kernels if their check passes, or not"
    )
    return p.parse_args(given)


def schedule(progress: float, hold: float, power: float = 1.0) -> float:
    """Warm up over 1 %, hold, then fall to nearly zero: linearly, or with a higher power soon and then slowly."""
    return min(1.0, progress / 0.01 + 0.02, max(0.01, ((1 - progress) / (1 - hold)) ** power))


def exam_jobs(scenes: int, ask: Callable[..., Asked | None]) -> list[tuple]:
    """(layout, seed, rows, …) of the examination: a third one tile, half several tiles, the rest several pictures."""
    rng, jobs, left, seed = Random(1), [], scenes, 10_000
    share = [(((1, 1),), 0.34), (((2, 2),), 0.1), (((3, 2),), 0.1), (((2, 3),), 0.08), (((4, 2),), 0.08), (((3, 3),), 0.07), (((2, 4),), 0.05),
             (((2, 1),), 0.03), (((1, 1), (1, 1)), 0.07), (((2, 2), (3, 2)), 0.03), (((1, 1),) * 3, 0.05)]  # fmt: skip
    for layout, part in share:
        rows = max(4, round(scenes * part))
        while rows > 0:
            n = min(rows, 16 if len(layout) == 1 and layout[0] != (1, 1) else 32)
            jobs.append((layout, seed, n, 1, rng.random() < 0.5, ask, True))
            seed, rows, left = seed + n * len(layout), rows - n, left - n
    return jobs


def _make(job: tuple) -> Batch:
    torch.set_num_threads(1)
    return make_batch(*job)


def examine(model: NanoVL2, batches: list[Batch], device: str) -> dict:
    model.eval()
    records = [r for b in batches for r in exactness(model, b.to(device))]
    model.train()
    return table(records)


@dataclass
class Drawn:
    """What is made before CUDA is touched, by processes that are forks: the examinations, and who draws scenes."""

    workers: Workers
    progress: Synchronized
    menu: Menu
    first: int  # number of the first micro-batch
    final_exam: list[Batch]
    unseen_style: list[Batch]


def menu_of(a: argparse.Namespace) -> Menu:
    return Menu(a.sets, a.many, a.tower, a.draw_sheets, a.mix, Manner(a.alike, a.crowds, a.aloud))


def draw(a: argparse.Namespace, saved: dict | None = None, trainings: int = 1, first: int = 0) -> Drawn:
    """`first`: number of the first micro-batch to draw; a run that is resumed goes on where it was."""
    mp.set_start_method("fork", force=True)
    progress = mp.Value(
        "d", saved["elapsed"] / (a.minutes * 60) if saved else float(a.weights[1]) if a.weights else 0.0
    )
    ask = partial(exam, aloud=a.aloud)
    unseen = [(((1, 1),), 40_000 + 32 * k, 32, 1, False, ask, True, (HELD_OUT_STYLE,)) for k in range(4)]
    with mp.Pool(a.workers) as pool:
        final_exam = pool.map(_make, exam_jobs(a.exam_scenes, ask), chunksize=1)
        unseen_style = pool.map(_make, unseen)
    first, menu = saved["drawn"] if saved else first, menu_of(a)
    return Drawn(Workers(a.workers, first, menu, progress, trainings), progress, menu, first, final_exam, unseen_style)


def saved_state(a: argparse.Namespace) -> dict | None:
    path = a.run / "state.pt"
    return torch.load(path, map_location="cpu") if path.exists() else None


def main() -> None:
    a = arguments()
    a.run.mkdir(parents=True, exist_ok=True)
    saved = saved_state(a)
    train(a, draw(a, saved, first=NOT_SEEN if a.weights else 0), saved)


def train(a: argparse.Namespace, drawn: Drawn, saved: dict | None = None, number: int = 0) -> None:
    """The training of this number of those that `drawn` is for. Ends the process."""
    start = time.monotonic()
    checked = start_check() if a.decoder == "fused" and not a.eager else None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    saved_path = a.run / "state.pt"
    workers, progress, menu, first = drawn.workers, drawn.progress, drawn.menu, drawn.first
    final_exam, unseen_style = drawn.final_exam, drawn.unseen_style
    small_exam = final_exam[:: max(1, len(final_exam) // 8)]

    gc.freeze()  # what is made so far stays; looking through it at every recording would take long
    fast = device == "cuda" and not a.eager
    if fast:
        torch.cuda.set_stream(torch.cuda.Stream())  # recordings cannot be made on the default one
    model = NanoVL2(CONFIG)
    initialise(model)
    model.to(device)
    sizes = CONFIG["vision_config"]["width"], CONFIG["language_config"]["hidden_size"]
    heads = Heads(*sizes, a.per_thing, a.fine, a.amount > 0).to(device)
    optimizer = Optimizer(model, heads, a.muon_lr, a.adam_lr)
    weights = AUX | {k: AUX[k] * a.counting for k in ("tally", "share", "number")} | {"amount": a.amount}
    if a.amount:  # what crowds weigh more there, these losses weigh less
        weights |= {k: AUX[k] * 0.6 for k in ("order", "token_order")}
    trainer = Trainer(model, heads, optimizer, weights, record=fast)
    ema = trainer.average
    step, elapsed, settled = 0, 0.0, 0.0
    if saved:
        model.load_state_dict(saved["model"])
        heads.load_state_dict(saved["heads"])
        optimizer.load_state_dict(saved["optimizer"])
        ema.load_state_dict(saved["ema"])
        trainer.refresh()
        step, elapsed = saved["step"], saved["elapsed"]
    elif a.weights:
        folder, at = a.weights
        tensors = load_file(Path(folder) / "model-00001-of-000001.safetensors")
        model.load_official({k: t.float() for k, t in tensors.items()})
        ema.load_state_dict(model.state_dict())
        trainer.refresh()
        elapsed = float(at) * a.minutes * 60
        settled = elapsed + 20
    if fast:  # before the clock starts, and on several sizes, or the first would be taken for a constant
        compile_parts(trainer.work, checked)
        large = next(b for b in final_exam if b.ids.shape[2] >= 2 * TEXT)
        for batch in (final_exam[0], final_exam[-1], large, sheet_batch(20_000, 1, tiles=64)):
            trainer.warm_up(batch.to(device))
        torch.cuda.synchronize()
    workers.go()
    feeder = Feeder(workers, device, a.sheets, training=number)
    print(f"ready after {time.monotonic() - start:.1f} s", flush=True)

    log = (a.run / "log.jsonl").open("a")

    def write(entry: dict) -> None:
        entry = dict(step=step, elapsed_s=round(elapsed, 1)) | entry
        log.write(json.dumps(entry) + "\n")
        log.flush()
        print(json.dumps(entry), flush=True)

    def save_all() -> None:
        state = dict(
            model=model.state_dict(),
            ema=ema.state_dict(),
            heads=heads.state_dict(),
            optimizer=optimizer.state_dict(),
            step=step,
            elapsed=elapsed,
            rows=rows,
            drawn=first + feeder.fresh + 4 * a.workers,
        )
        torch.save(state, a.run / "state.tmp")
        (a.run / "state.tmp").rename(saved_path)
        write_checkpoint(ema.to_official(), a.run / "nano")

    total, last = a.minutes * 60, time.monotonic()
    next_log, next_save, next_exam, sigma = step + 50, elapsed + 60, elapsed + 60, 0.0
    rows, alone = saved["rows"] if saved else 0, True
    if a.weights and number:  # the first of several may have nothing but sheets drawn for now
        while progress.value < menu.tower and not workers.leads(number):
            feeder.next()
            time.sleep(0.01)  # nothing tells of progress: it is a number in memory that processes share
        feeder.forget()
        last = time.monotonic()
    while elapsed < total and time.monotonic() - start < a.stop_after:
        done = elapsed / total
        if workers.leads(number):
            progress.value = done
        later = menu.later(done)
        if alone and later > 0:  # enough of the first sheets
            alone = False
            feeder.forget()
        sharp = 6.0 if later < 0.15 else 4.0 if later < 0.4 else 2.5 if later < 0.75 else 1.5
        if sharp != sigma:
            sigma = sharp
            trainer.set_sharpness(sigma)
        rate = schedule(done, a.hold, a.power)
        trainer.set_rates(
            rate,
            aux=1.0 if done < 0.5 else max(0.25, 1.0 - 1.5 * (done - 0.5)),
            drift=max(0.003, 1 / (step + 1)),
            heads_only=elapsed < settled,
            tower_only=later == 0,
        )
        batch, r = feeder.next()
        # A sheet has no gradients for the decoder, and Muon would move it as far as with some: they wait for the next others.
        trainer.step(batch, r, update=later == 0 or not batch.is_sheet)
        rows += batch.ids.shape[1]
        step += 1
        if step % 8 == 0 and fast:
            torch.cuda.synchronize()  # or Python would run far ahead of the clock
        now = time.monotonic()
        elapsed, last = elapsed + now - last, now
        if step >= next_log:
            next_log = step + 200
            load = [[round(x, 3) for x in s] for s in trainer.shares.tolist()]
            counts = dict(
                rows=rows,
                fresh=feeder.fresh,
                again=feeder.again,
                fresh_scenes=feeder.fresh_scenes,
                scenes=feeder.shown[False],
            )
            write(dict(lr=round(rate, 3), **counts, **trainer.read_losses(), load=load))
        if elapsed > next_exam:
            next_exam = elapsed + 200
            write(dict(exam={k: v for k, v in examine(ema, small_exam, device).items() if "/" not in k}))
            last = time.monotonic()  # examinations are not training time
        if elapsed > next_save:
            next_save = elapsed + 100
            save_all()
            last = time.monotonic()
    save_all()
    scores = examine(ema, final_exam if elapsed >= total else small_exam, device)
    write(
        dict(
            final=elapsed >= total,
            exam=scores,
            unseen_style={k: v for k, v in examine(ema, unseen_style, device).items() if "/" not in k},
        )
    )
    (a.run / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    print("RESUME" if elapsed < total else "DONE", f"{time.monotonic() - start:.0f} s", flush=True)
    if len(workers.made) == 1:
        workers.stop()
    os._exit(0)  # a thread waits for scenes that nobody needs any more


if __name__ == "__main__":
    main()
