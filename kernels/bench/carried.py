"""Unpack what `carry.py` made, and say what stands on this machine.

    python kernels/bench/carried.py FOLDER

Triton names files of its cache by their full path, so the cache lies at the same place on both machines. Prints the
machine, the versions and whether the carried cache fits them; ends with 1 where it does not.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

CACHE, SITE = Path("/tmp/mesa-triton-cache"), Path("/tmp/mesa-site")
"""Where Triton's cache and the wheels lie, on every machine."""
PACKAGES = ("torch", "triton", "transformers", "accelerate", "datasets", "pydantic", "flash-linear-attention", "pytest")


def kernel_key() -> str:
    """Return the digest of Triton's compiler, by which it knows what it compiled before."""
    from triton.runtime.cache import triton_key

    return hashlib.sha256(triton_key().encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read what `carry.py` wrote of a folder; nothing where there is none."""
    file = folder / "manifest.json"
    manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return manifest


def unpack(folder: Path, cache: Path = CACHE, site: Path = SITE) -> dict[str, str]:
    """Copy the cache and the wheels to their places; return the environment in which they are found."""
    environment = {}
    if (folder / "cache").is_dir():
        shutil.rmtree(cache, ignore_errors=True)
        shutil.copytree(folder / "cache", cache)
        environment["TRITON_CACHE_DIR"] = str(cache)
    wheels = sorted((folder / "wheels").glob("*.whl"))
    if wheels:
        shutil.rmtree(site, ignore_errors=True)
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
        environment["PYTHONPATH"] = str(site)
    return environment


def describe(folder: Path) -> tuple[list[str], bool]:
    """Say what stands here, one line per item, and whether what was carried fits it."""
    import torch

    lines = [f"python {platform.python_version()}, {platform.platform()}"]
    if torch.cuda.is_available():
        lines += [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    for package in PACKAGES:
        try:
            lines.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{package} is missing")
    manifest = read_manifest(folder)
    if not manifest:
        return [*lines, f"{folder}: no carried kernels, so they are compiled here"], True
    found = kernel_key() if importlib.util.find_spec("triton") else "none"
    fits = found == manifest["triton_key"]
    says = "fits" if fits else "does NOT fit: every kernel is compiled here"
    return [*lines, f"carried cache of {manifest['kernels']} kernels, key {found[:12]}, {says}"], fits


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("carried: give the folder that carry.py made")
    said, good = describe(Path(sys.argv[1]))
    print("\n".join(said))
    sys.exit(0 if good else 1)
