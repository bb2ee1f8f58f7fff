"""What four bits save, at the real shapes: from config.json alone, nothing is loaded.

    python bench/sizes.py [tiny small base] [--head-bits 8]

Bytes as they lie in the files: codes, scales, and 16 bits for what stays as it is.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import shapes
import torch

from vl2.checkpoint.folder import read_model_config
from vl2.core.model_config import ModelConfig
from vl2.core.quantization import StoredScheme
from vl2.core.quantization_default import default_quantization
from vl2.model.vl2 import DeepseekVL2
from vl2.model.weights import destinations

PLAIN_BYTES = 2


@dataclass
class Sizes:
    """Bytes before and after."""

    linears: tuple[float, float]  # those that are quantised
    language: tuple[float, float]  # all that begins with `language`
    checkpoint: tuple[float, float]


def sizes(config: ModelConfig, group_size: int = 128, head_bits: int = 16) -> Sizes:
    """Of a checkpoint in bfloat16 and of what `vl2 quantize --group …` makes of it."""
    plan = default_quantization(config.language, StoredScheme(4, group_size), head_bits=head_bits)
    model = DeepseekVL2(config, 1, dtype=torch.bfloat16, device="meta")
    totals = {name: [0.0, 0.0] for name in ("linears", "language", "checkpoint")}
    for name, target in destinations(model):
        before = after = float(PLAIN_BYTES * target.shape.numel())
        is_linear = target.dim() == 2 and name.endswith(".weight") and "embed_tokens" not in name
        scheme = plan.scheme_of(name.removesuffix(".weight")) if is_linear else None
        if scheme is not None:
            rows, width = target.shape
            after = rows * (width * scheme.bits / 8 + scheme.num_groups(width) * PLAIN_BYTES) + 16  # its shape
        kinds = ["checkpoint", *["language"] * name.startswith("language"), *["linears"] * (scheme is not None)]
        for kind in kinds:
            totals[kind][0] += before
            totals[kind][1] += after
    return Sizes(**{kind: (before, after) for kind, (before, after) in totals.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=["tiny", "small", "base"])
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--head-bits", type=int, default=16)
    args = parser.parse_args()
    print(f"{'':8}{'quantised linears':>30}{'language model':>30}{'checkpoint':>30}   GB")
    for name in args.shapes:
        folder = shapes.write(name, Path(tempfile.mkdtemp()) / name)
        found = sizes(read_model_config(folder), args.group, args.head_bits)
        cells = [
            f"{before / 1e9:10.3f} → {after / 1e9:6.3f} {after / before - 1:7.1%}"
            for before, after in (found.linears, found.language, found.checkpoint)
        ]
        print(f"{name:8}" + "".join(f"{cell:>30}" for cell in cells))


if __name__ == "__main__":
    main()
