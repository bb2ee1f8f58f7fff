"""Exported models, each made once a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import vl2
from golden_cases import load_variant
from vl2.edge.export import export

NANO = Path(vl2.__file__).parent / "assets" / "nano"

Exported = Callable[..., Path]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The bundle of a golden variant, of nano, or of a checkpoint folder."""
    root, bundles = tmp_path_factory.mktemp("bundles"), dict[tuple[str, str], Path]()

    def bundle(model: str | Path, precision: str = "fp32") -> Path:
        key = (str(model), precision)
        if key not in bundles:
            folder = model if isinstance(model, Path) else NANO if model == "nano" else load_variant(model).folder
            bundles[key] = root / f"{len(bundles)}"
            export(folder, bundles[key], precision, source=str(model))
        return bundles[key]

    return bundle


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nobody's cache is touched."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path
