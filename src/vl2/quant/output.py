"""The folder that a quantised checkpoint is written to: a shard a layer, each complete or absent.

A shard is written beside its name, made durable and renamed. So a run that was killed goes on at its first absent
shard, and what it computes again is a run through finished layers, whose weights it reads from their shards.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vl2.checkpoint.folder import INDEX_FILE, TensorInfo, read_header
from vl2.core.errors import SetupError
from vl2.core.quantization import Quantization

SETTINGS_FILE = "quantization.partial.json"
REPORT_FILE = "quantization.report.json"
DESCRIBED_ANEW = frozenset(("config.json", INDEX_FILE, "README.md"))
COPIED_SUFFIXES = frozenset((".json", ".jinja", ".txt", ".md", ".model"))
CARD = """{header}# {name}, quantised

Made by `vl2 quantize`: {what}. Format: compressed-tensors, `pack-quantized`. Everything else is as in the original, and
so are its licence and the restrictions on its use, which hold for this copy too: see the files beside this one and the
model's own page. What the original says about itself follows.

---

{original}
"""


class OutputFolder:
    """One run's. `settings` say what is made of what: a folder of other settings is not touched."""

    def __init__(self, folder: Path, settings: dict[str, Any], num_shards: int) -> None:
        """Raises: SetupError when the folder holds something else."""
        self.folder, self.settings, self.num_shards = folder, settings, num_shards
        marker = folder / SETTINGS_FILE
        if marker.exists():
            if json.loads(marker.read_text(encoding="utf-8")) != settings:
                raise SetupError(f"{folder} holds a run of other settings; remove it, or name another folder")
        elif folder.exists() and any(folder.iterdir()):
            raise SetupError(f"{folder} is not empty; remove it, or name another folder")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            _write(marker, json.dumps(settings, indent=1, sort_keys=True).encode())

    def shard(self, number: int) -> Path:
        """From 0 on."""
        return self.folder / f"model-{number + 1:05d}-of-{self.num_shards:06d}.safetensors"

    def _report(self, number: int) -> Path:
        """What is told of a layer; it is there when its shard is, and gone when the run is over."""
        return self.folder / f"quantization.layer-{number}.json"

    def has(self, number: int) -> bool:
        return self.shard(number).exists()

    def tensors(self, number: int) -> list[TensorInfo]:
        return read_header(self.shard(number))

    def write(self, number: int, tensors: dict[str, torch.Tensor], report: dict[str, Any]) -> None:
        if report:
            _write(self._report(number), json.dumps(report).encode())
        target = self.shard(number)
        partial = target.with_suffix(".partial")
        whole = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        save_file(whole, partial, {"format": "pt"})  # a second entry could come before or after it
        partial.chmod(0o644)  # it is written for its owner alone
        _make_durable(partial, target)

    def finish(self, source: Path, name: str, quantization: Quantization) -> None:
        """Index, config.json, and what else the original has beside its weights; then the run is over."""
        infos = [info for number in range(self.num_shards) for info in self.tensors(number)]
        index = {
            "metadata": {"total_size": sum(info.num_bytes for info in infos)},
            "weight_map": {info.name: info.file.name for info in sorted(infos, key=lambda info: info.name)},
        }
        for path in sorted(source.iterdir()):
            is_wanted = path.suffix in COPIED_SUFFIXES or path.name.upper().startswith(
                ("LICEN", "NOTICE", "USE_POLICY")
            )
            if path.is_file() and is_wanted and path.name not in DESCRIBED_ANEW:
                shutil.copyfile(path, self.folder / path.name)
        readme = source / "README.md"
        original = readme.read_text(encoding="utf-8") if readme.exists() else "(It came without a description.)"
        what = ", ".join(f"{key} {value}" for key, value in self.settings.items() if key in ("method", "bits", "group"))
        header, body = _split_card(original)
        card = CARD.format(header=header, name=name, what=what, original=body)
        _write(self.folder / "README.md", card.encode())
        files = [self._report(number) for number in range(self.num_shards - 1)]
        report = self.settings | {"layers": [json.loads(file.read_text(encoding="utf-8")) for file in files]}
        _write(self.folder / REPORT_FILE, json.dumps(report, indent=1).encode())
        _write(self.folder / INDEX_FILE, json.dumps(index, indent=1).encode())
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        config["quantization_config"] = quantization.to_config()
        _write(self.folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
        for file in (self.folder / SETTINGS_FILE, *files):
            file.unlink()


def _split_card(text: str) -> tuple[str, str]:
    """A model card's YAML head, which names the licence, and the rest."""
    parts = text.split("---\n", 2)
    if not text.startswith("---\n") or len(parts) != 3:
        return "", text
    return f"---\n{parts[1]}---\n\n", parts[2].lstrip()


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    _make_durable(partial, path)


def _make_durable(partial: Path, target: Path) -> None:
    fd = os.open(partial, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(partial, target)
