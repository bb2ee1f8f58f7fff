"""Dockerfiles: GPU server, CPU, Jetson."""

from __future__ import annotations

from dataclasses import dataclass

from vl2.deploy.render import Files, fill, shipped

UID = 10001
"""Of the user that the images run as."""


@dataclass(frozen=True, slots=True)
class Image:
    """What is different between the images. `torch_index` is where pip finds torch; empty: the usual index."""

    name: str
    base: str
    torch_index: str
    packages: tuple[str, ...]  # beside Python and certificates, at run time
    note: str


IMAGES = (
    Image(
        "gpu",
        "nvidia/cuda:12.8.1-base-ubuntu24.04",
        "",
        ("gcc", "libc6-dev", "libpython3-dev"),
        "A server with NVIDIA GPUs. gcc is its one build tool: Triton compiles launchers of kernels at first use.",
    ),
    Image(
        "cpu", "debian:bookworm-slim", "https://download.pytorch.org/whl/cpu", (), "Any machine with x86_64 or arm64."
    ),
    Image(
        "jetson",
        "nvcr.io/nvidia/l4t-jetpack:r36.4.0",
        "https://pypi.jetson-ai-lab.io/jp6/cu126",
        ("gcc", "libc6-dev", "libpython3-dev"),
        "Jetson AGX Orin with JetPack 6. Nobody has built this one yet.",
    ),
)


def container_files() -> Files:
    templates = shipped("templates/container")
    files = {f"Dockerfile.{image.name}": fill(templates["Dockerfile.j2"], image=image, uid=UID) for image in IMAGES}
    return files | {".dockerignore": templates["dockerignore"]}
