"""Atomic writing of files, disk errors that name their file, digests of file contents, and a user's Python files."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

FULL = "; free some space, then run the same command again"
PLACE = "; choose another place"
WAYS_ON = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EFBIG: FULL,
    errno.EACCES: f"{PLACE}, or change its permissions",
    errno.EPERM: f"{PLACE}, or change its permissions",
    errno.EROFS: PLACE,
    errno.ENOTDIR: f"{PLACE}: there is a file where a folder must be",
    errno.EEXIST: f"{PLACE}: there is a file where a folder must be",
}
"""What to do about an error of the operating system, by its number."""
MET_WHILE_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Errors that a file system reports without naming the file."""
UMASK = os.umask(0o077)
os.umask(UMASK)
"""The process's umask, read once: to read it is to set it, which files of other threads would show."""


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path with its ~ replaced; the ~name of a user who does not exist stays, as in a shell."""
    return Path(os.path.expanduser(path))


@contextmanager
def writing(path: Path, partial: Path | None = None) -> Iterator[None]:
    """Turn any disk error in the block, whichever library raises it, into an OSError that names ``path``.

    ``partial``: an unfinished file or folder to delete on any error.
    """
    try:
        yield
    except BaseException as error:
        if partial is not None:
            _delete(partial)
        fault = _fault(error)
        if fault is not None and fault.filename is None and fault.errno in MET_WHILE_WRITING:
            raise OSError(fault.errno, fault.strerror, str(path)) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically, creating its folder if needed: even a power cut leaves the old or the new file.

    A process killed during writing leaves a file ``.NAME.*`` next to it. Raises OSError that names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    with writing(path, Path(name)):
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(handle)
        readable(Path(name))
        os.replace(name, path)
        sync(path.parent)


def partial_of(target: Path) -> Path:
    """Return the folder in which `whole_folder` fills ``target``."""
    return target.with_name(target.name + ".partial")


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that atomically becomes ``target`` at the end, once all of it is on the disk.

    An existing folder of this name is replaced; after an error nothing is left.
    """
    partial = partial_of(target)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    with writing(target, partial):
        yield partial
        _publish(partial, target)


def _publish(partial: Path, target: Path) -> None:
    replaced = target.with_name(target.name + ".replaced")
    if replaced.exists():
        shutil.rmtree(replaced)
    readable(partial)
    for path in [*sorted(partial.rglob("*")), partial]:
        sync(path)
    if target.exists():
        os.rename(target, replaced)
    os.rename(partial, target)
    sync(target.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def readable(path: Path) -> None:
    """Give a file, or all files of a folder, the mode of any new file: safetensors lets only their owner read them."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file() and not file.is_symlink():
            file.chmod(0o666 & ~UMASK)


def sync(path: Path) -> None:
    """Wait until a file's contents, or a folder's list of names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def described(error: OSError) -> str:
    """Return a one-line message for an OSError: the file, what was wrong, and what to do if that is known."""
    if error.strerror is None:
        return " ".join(str(error).split()) or type(error).__name__
    # of a copy the second name is the file that is written
    name = error.filename2 if error.errno in MET_WHILE_WRITING and error.filename2 else error.filename
    where = "" if name is None else f"{name}: "
    return f"{where}{error.strerror[:1].lower()}{error.strerror[1:]}{WAYS_ON.get(error.errno or 0, '')}"


def _fault(error: BaseException) -> OSError | None:
    """Return the disk error behind an error; safetensors and tokenizers give its number only in words."""
    seen: BaseException | None = error if isinstance(error, Exception) else None
    while seen is not None:
        if isinstance(seen, OSError):
            return seen
        number = re.search(r"\(os error (\d+)\)", str(seen))
        if number is not None:
            return OSError(int(number[1]), os.strerror(int(number[1])))
        seen = seen.__cause__ or seen.__context__
    return None


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


SEAL = "sha256"
"""The key of a sealed JSON object that holds the digest of all its other keys."""


class SealError(ValueError):
    """A sealed file is missing, is not a JSON object, or has changed."""


def file_hash(path: Path) -> str:
    """Return the sha256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path: Path) -> dict[str, Any]:
    """Return a file's size in ``bytes`` and its ``sha256``."""
    return {"bytes": path.stat().st_size, "sha256": file_hash(path)}


def fingerprints(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the fingerprint of every file under a folder, by its path from there with ``/``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): fingerprint(path) for path in files}


def first_damaged(
    folder: Path, files: Mapping[str, Mapping[str, Any]], read: Callable[[int], object] = lambda size: None
) -> str | None:
    """Return the first of ``files`` that is missing or differs from its fingerprint, None if there is none.

    ``read`` is called with the size of each file that was read.
    """
    for name, expected in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != expected["bytes"] or fingerprint(path) != expected:
            return name
        read(expected["bytes"])
    return None


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as a JSON object with its own digest beside its keys."""
    plain = json.loads(json.dumps(content, ensure_ascii=False))
    text = json.dumps({**plain, SEAL: _digest(plain)}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_sealed(path: Path) -> dict[str, Any]:
    """Return the content written by `write_sealed`. Raises SealError if the file is missing or has changed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SealError(f"{path}: {error}") from error
    if not isinstance(content, dict) or content.pop(SEAL, None) != _digest(content):
        raise SealError(f"{path}: has changed since it was written")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def import_file(path: Path) -> ModuleType:
    """Return a Python file as a module, under a name made of its own and its contents; the same contents run once.

    The name is registered, so that `inspect` and pydantic find the module. Raises ValueError with one line for a file
    that is missing or fails.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    name = f"{path.stem}_{file_hash(path)[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: is not a Python file; its name must end in .py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{path}: {type(error).__name__}: {error}; --traceback shows where") from error
    return module
