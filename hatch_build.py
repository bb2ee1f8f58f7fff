"""Builds the native libraries (src/vl2/ops/native/source, src/vl2/processing/native) when the package is built or
installed from a checkout.

With the C compiler that the machine has, else with clang out of the package `ziglang`, which pip gets for the build
alone. VL2_WITHOUT_NATIVE=1 leaves them out: torch then computes what the first would, Pillow scales pictures as the
second would, and the wheel fits everywhere.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = """-O3 -std=c11 -Wall -Wextra -fPIC -shared -pthread -s -fvisibility=hidden -ffp-contract=fast -fno-math-errno
    -fno-trapping-math""".split()  # none that lets a compiler add up in another order
VARIANTS = {  # as ops/native/builds.py names them: a compiler's flags, and zig's
    "x86_64": {
        "x86-64-v3": ("-march=x86-64-v3", "-mcpu=x86_64_v3"),
        "x86-64-v4": ("-march=x86-64-v4", "-mcpu=x86_64_v4"),
        "x86-64-v4-amx": (
            "-march=x86-64-v4 -mavx512bf16 -mavx512vnni -mamx-tile -mamx-bf16 -mamx-int8",
            "-mcpu=x86_64_v4+avx512bf16+avx512vnni+amx_tile+amx_bf16+amx_int8",
        ),
        "x86-64-v4-bf16": (
            "-march=x86-64-v4 -mavx512bf16 -mavx512vnni",
            "-mcpu=x86_64_v4+avx512bf16+avx512vnni",
        ),
    },
    "aarch64": {"aarch64": ("-march=armv8-a", "-mcpu=generic")},
}
PICTURES = ("x86-64-v3",)  # of them, those for which processing/native is built
ZIG = "ziglang>=0.13"
PROBE = "#define _GNU_SOURCE\n#include <linux/futex.h>\n#include <pthread.h>\n#include <stdatomic.h>\nint probe;\n"


class NativeBuildHook(BuildHookInterface):
    def dependencies(self) -> list[str]:
        return [ZIG] if self._variants and not has_compiler(self._variants) else []

    def initialize(self, version: str, build_data: dict[str, object]) -> None:
        if not self._variants:
            return
        model, pictures = Path(self.root) / "src/vl2/ops/native", Path(self.root) / "src/vl2/processing/native"
        is_own = has_compiler(self._variants)
        if not is_own and importlib.util.find_spec("ziglang") is None:  # a build without isolation
            self.app.display_warning("no C compiler: building without the native libraries")
            return
        with ThreadPoolExecutor() as threads:
            built = []
            for name, flags in self._variants.items():
                target = model / f"vl2-{name}.so"
                built.append(threads.submit(build, target, model / "source", flags, is_own))
                if name in PICTURES:
                    target = pictures / f"pictures-{name}.so"
                    built.append(threads.submit(build, target, pictures, flags, is_own))
        for library in built:
            library.result()
        build_data["artifacts"] = ["/src/vl2/ops/native/*.so", "/src/vl2/processing/native/*.so"]
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    @property
    def _variants(self) -> dict[str, tuple[str, str]]:
        """Of this machine; none where no library is wanted or not known to work."""
        is_wanted = sys.platform == "linux" and not os.environ.get("VL2_WITHOUT_NATIVE")
        return VARIANTS.get(platform.machine(), {}) if is_wanted else {}


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "cc"))


def has_compiler(variants: dict[str, tuple[str, str]]) -> bool:
    """Whether it makes a library for each of them, with the system's headers."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "probe.c"
        source.write_text(PROBE)
        for flags, _ in variants.values():
            command = [*compiler(), *FLAGS, *flags.split(), str(source), "-o", str(source.with_suffix(".so"))]
            try:
                if subprocess.run(command, capture_output=True, check=False).returncode:
                    return False
            except OSError:
                return False
    return True


def build(target: Path, source: Path, flags: tuple[str, str], is_own: bool) -> None:
    """Of all C in the folder `source`; not if nothing has changed. Put in its place when it is whole: an engine may be
    running with the one before.
    """
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", f"{platform.machine()}-linux-gnu"]
    command = [*compiler(), *flags[0].split()] if is_own else [*zig, *flags[1].split()]
    files = [path for path in source.iterdir() if path.suffix in (".c", ".h")]
    changed_s = max(path.stat().st_mtime for path in [Path(__file__), *files])
    if target.exists() and target.stat().st_mtime > changed_s:
        return
    unfinished = target.with_suffix(f".{os.getpid()}.incomplete")
    sources = sorted(str(path) for path in files if path.suffix == ".c")
    done = subprocess.run(
        [*command, *FLAGS, *sources, "-o", str(unfinished)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(
            f"{target.name} does not build (VL2_WITHOUT_NATIVE=1 leaves out what is native):\n{done.stderr}"
        )
    unfinished.replace(target)
