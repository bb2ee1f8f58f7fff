"""Train nano. One command, resumable; `nano/README.md` has the exact line.

    python nano/train.py --run RUN_FOLDER --minutes 18

The schedule is bound to the clock: `--minutes` is the whole training time, the learning rate falls to zero at its end,
and a call that was stopped (`--stop-after` seconds) goes on where it was. Workers draw scenes all the time; when they are
slower than the GPU, a picture drawn before is used again, with questions not asked before.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import queue
import threading
import time
from pathlib import Path
from random import Random

import torch
from config import CONFIG, initialise, write_checkpoint
from draw import HELD_OUT_STYLE
from exam import exam, table
from forward import NUMBER_IDS, POINTING_LAYERS, answer_loss, bell, exactness, run
from heads import Heads
from optim import Optimizer
from pack import Batch, Stream, make_batch

from model import Gate, NanoVL2

AUX = {"kind": 0.6, "tint": 0.2, "edge": 0.6, "letter": 0.8, "token": 0.4, "spot": 3.0}


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--run", type=Path, required=True, help="folder of the checkpoint to resume from, log and weights")
    p.add_argument("--minutes", type=float, default=18, help="training time in all, over all calls")
    p.add_argument("--stop-after", type=float, default=1e9, help="stop this call after so many seconds, to be resumed")
    p.add_argument("--workers", type=int, default=15)
    p.add_argument("--sets", type=int, default=3, help="question sets per picture")
    p.add_argument("--micro", type=int, default=1, help="micro-batches a step")
    p.add_argument("--muon-lr", type=float, default=0.02)
    p.add_argument("--adam-lr", type=float, default=2e-3)
    p.add_argument("--point", type=float, default=0.0, help="weight of the pointing loss (0: off)")
    p.add_argument("--middle", type=float, default=0.0, help="weight of marking each thing's middle token (0: off)")
    p.add_argument(
        "--many", type=float, default=0.45, help="share of micro-batches with several tiles, after the first fifth"
    )
    p.add_argument("--hold", type=float, default=0.4, help="share of the time before the learning rate begins to fall")
    p.add_argument("--exam-scenes", type=int, default=1000, help="held-out scenes of the last examination")
    return p.parse_args()


def schedule(progress: float, hold: float) -> float:
    """Warm up over 1 %, hold, then fall linearly to nearly zero."""
    return min(1.0, progress / 0.01 + 0.02, max(0.01, (1 - progress) / (1 - hold)))


class Feeder:
    """Micro-batches on the GPU: fresh ones first; else the oldest picture with questions left."""

    def __init__(self, loader, device: str, keep: int = 150) -> None:
        self.ready: queue.Queue[Batch] = queue.Queue(3)
        self.used: list[tuple[Batch, int]] = []
        self.keep, self.fresh, self.again = keep, 0, 0
        pull = self._pull_cuda if device == "cuda" else self._pull
        threading.Thread(target=pull, args=(loader,), daemon=True).start()

    def _pull(self, loader) -> None:
        for batch in loader:
            self.ready.put(batch)

    def _pull_cuda(self, loader) -> None:
        """Copy from pinned memory on a stream of its own, beside the training step."""
        stream = torch.cuda.Stream()
        for batch in loader:
            with torch.cuda.stream(stream):
                moved = batch.map(lambda t: t.pin_memory()).to("cuda")
                stream.synchronize()
            self.ready.put(moved)

    def next(self) -> tuple[Batch, int]:
        if self.ready.empty() and len(self.used) > 40:
            batch, r = self.used.pop(0)
            self.again += 1
        else:
            batch, r = self.ready.get(), 0
            self.fresh += 1
            if batch.tiles.is_cuda:  # the allocator must not reuse this memory while the training stream reads it
                batch.map(lambda t: t.record_stream(torch.cuda.current_stream()))
        if r + 1 < len(batch.lengths):
            self.used.append((batch, r + 1))
            del self.used[: -self.keep]
        return batch, r


def exam_jobs(scenes: int) -> list[tuple]:
    """(layout, seed, rows) of the examination: a third one tile, half several tiles, the rest several pictures."""
    rng, jobs, left, seed = Random(1), [], scenes, 10_000
    share = [(((1, 1),), 0.34), (((2, 2),), 0.1), (((3, 2),), 0.1), (((2, 3),), 0.08), (((4, 2),), 0.08), (((3, 3),), 0.07), (((2, 4),), 0.05),
             (((2, 1),), 0.03), (((1, 1), (1, 1)), 0.07), (((2, 2), (3, 2)), 0.03), (((1, 1),) * 3, 0.05)]  # fmt: skip
    for layout, part in share:
        rows = max(4, round(scenes * part))
        while rows > 0:
            n = min(rows, 16 if len(layout) == 1 and layout[0] != (1, 1) else 32)
            jobs.append((layout, seed, n, 1, rng.random() < 0.5, exam, True))
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


def gates(model: NanoVL2) -> list[Gate]:
    return [m for m in model.modules() if isinstance(m, Gate)]


def balance(model: NanoVL2, rate: float = 0.001) -> list[list[float]]:
    """DeepSeek's rule without auxiliary loss: an expert that is chosen too seldom gets a higher bias."""
    shares = []
    for gate in gates(model):
        share = gate.load / gate.load.sum()
        gate.e_score_correction_bias.data += rate * torch.sign(share.mean() - share)
        shares.append(share)
    return shares


def main() -> None:
    a = arguments()
    a.run.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    mp.set_start_method("fork", force=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    saved_path = a.run / "state.pt"
    saved = torch.load(saved_path, map_location="cpu") if saved_path.exists() else None
    progress = mp.Value("d", saved["elapsed"] / (a.minutes * 60) if saved else 0.0)
    loader = iter(
        torch.utils.data.DataLoader(
            Stream(saved["drawn"] if saved else 0, a.sets, progress, a.many),
            batch_size=None,
            num_workers=a.workers,
            prefetch_factor=2,
        )
    )
    with mp.Pool(a.workers) as pool:
        final_exam = pool.map(_make, exam_jobs(a.exam_scenes), chunksize=1)
        unseen_style = pool.map(
            _make, [(((1, 1),), 40_000 + 32 * k, 32, 1, False, exam, True, (HELD_OUT_STYLE,)) for k in range(4)]
        )
    small_exam = final_exam[:: max(1, len(final_exam) // 8)]

    model = NanoVL2(CONFIG)
    initialise(model)
    model.to(device)
    heads = Heads(CONFIG["vision_config"]["width"], CONFIG["language_config"]["hidden_size"]).to(device)
    ema = NanoVL2(CONFIG).to(device)
    optimizer = Optimizer(model, heads, a.muon_lr, a.adam_lr)
    step, elapsed = 0, 0.0
    if saved:
        model.load_state_dict(saved["model"])
        heads.load_state_dict(saved["heads"], strict=False)
        optimizer.load_state_dict(saved["optimizer"])
        step, elapsed = saved["step"], saved["elapsed"]
    ema.load_state_dict(saved["ema"] if saved else model.state_dict())
    pairs = [(e, p) for e, p in zip(ema.state_dict().values(), model.state_dict().values())]
    # The step runs on a bfloat16 copy of the fp32 weights, cast once a step; the router's bias stays fp32.
    work = NanoVL2(CONFIG).to(device).bfloat16()
    for mine, theirs in zip(gates(work), gates(model)):
        mine.e_score_correction_bias.data = theirs.e_score_correction_bias.data
    for index in POINTING_LAYERS.values():
        work.language.model["layers"][index].self_attn.probe = a.point > 0
    weights = AUX | {"point": a.point, "name": a.point, "middle": a.middle}
    trained = [(w, p) for w, p in zip(work.parameters(), model.parameters()) if p.requires_grad]
    feeder = Feeder(loader, device)
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
            drawn=(saved["drawn"] if saved else 0) + feeder.fresh + 4 * a.workers,
        )
        torch.save(state, a.run / "state.tmp")
        (a.run / "state.tmp").rename(saved_path)
        write_checkpoint(ema.to_official(), a.run / "nano")

    number_ids = NUMBER_IDS.to(device)
    near_for = {s: bell(s, device) for s in (6.0, 4.0, 2.5, 1.5)}
    total, last = a.minutes * 60, time.monotonic()
    next_log, next_save, next_exam, sums = step + 25, elapsed + 60, elapsed + 60, {}
    rows = torch.zeros((), dtype=torch.long)
    while elapsed < total and time.monotonic() - start < a.stop_after:
        done = elapsed / total
        progress.value = done
        near = near_for[6.0 if done < 0.15 else 4.0 if done < 0.4 else 2.5 if done < 0.75 else 1.5]
        aux_scale = 1.0 if done < 0.5 else max(0.25, 1.0 - 1.5 * (done - 0.5))
        torch._foreach_copy_([w.data for w, _ in trained], [p.data for _, p in trained])
        for _ in range(a.micro):
            batch, r = feeder.next()
            out = run(work, heads, batch, r, augment=True)
            answer = answer_loss(out, near, number_ids)
            loss = answer + aux_scale * sum(weights[k] * v for k, v in out.aux.items())
            (loss / a.micro).backward()
            for k, v in dict(answer=answer, **out.aux).items():
                s = sums.setdefault(k, [torch.zeros((), device=device), 0])
                s[0] += v.detach()
                s[1] += 1
            rows += batch.ids.shape[1]
        shares = balance(work, 0.001 * schedule(done, a.hold))
        for w, p in trained:
            p.grad, w.grad = None if w.grad is None else w.grad.float(), None
        optimizer.step(schedule(done, a.hold))
        optimizer.zero_grad()
        torch._foreach_lerp_([e for e, _ in pairs], [p for _, p in pairs], max(0.002, 1 / (step + 1)))
        step += 1
        now = time.monotonic()
        elapsed, last = elapsed + now - last, now
        if step >= next_log:
            next_log = step + 100
            means = {k: round((v / n).item(), 4) for k, (v, n) in sums.items()}
            sums.clear()
            load = [[round(x, 3) for x in s.tolist()] for s in shares]
            write(
                dict(
                    lr=round(schedule(done, a.hold), 3),
                    rows=int(rows),
                    fresh=feeder.fresh,
                    again=feeder.again,
                    **means,
                    load=load,
                )
            )
        if elapsed > next_exam:
            next_exam = elapsed + 150
            write(dict(exam={k: v for k, v in examine(ema, small_exam, device).items() if "/" not in k}))
            last = time.monotonic()  # examinations are not training time
        if elapsed > next_save:
            next_save = elapsed + 75
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
    import os

    os._exit(0)  # workers are in the middle of scenes; nothing of theirs is needed


if __name__ == "__main__":
    main()
