"""Templates that ship in the package → files in a folder."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined

from vl2.core.errors import SetupError

SUFFIX = ".j2"
Files = dict[str, str]
"""Path below the output folder → text."""


def render(folder: str, **values: Any) -> Files:
    """All files of `templates/FOLDER`; those that end in .j2 are filled, and lose that ending."""
    return {
        name.removesuffix(SUFFIX): fill(text, **values) if name.endswith(SUFFIX) else text
        for name, text in shipped(f"templates/{folder}").items()
    }


def shipped(folder: str) -> Files:
    """All files of a folder of this package, as they are."""
    root = Path(str(resources.files("vl2.deploy") / folder))
    return {
        path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def fill(text: str, **values: Any) -> str:
    """A name that `values` lack is an error, never an empty string."""
    environment = Environment(
        loader=BaseLoader(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # no HTML comes out
    )
    return environment.from_string(text).render(**values)


def write(out: Path, files: Files, *, overwrite: bool) -> None:
    """Nothing is written when a file is there with other content, unless `overwrite`. Raises: SetupError."""
    changed = [name for name, text in files.items() if (out / name).exists() and _text(out / name) != text]
    if changed and not overwrite:
        raise SetupError(f"{out / changed[0]} exists and is different; use another --out, or --overwrite")
    try:
        for name, text in files.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            if text.startswith("#!"):
                path.chmod(0o755)
    except OSError as error:
        raise SetupError(f"{out} cannot be written: {error.strerror}; use another --out") from None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
