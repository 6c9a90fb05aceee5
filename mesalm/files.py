"""Files that are written whole or not at all, and disk errors that name their file."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = "; make room, then run the same command again"
PLACE = "; choose another place"
WAYS_ON = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EFBIG: FULL,
    errno.EACCES: f"{PLACE}, or change its permissions",
    errno.EPERM: f"{PLACE}, or change its permissions",
    errno.EROFS: PLACE,
    errno.ENOTDIR: f"{PLACE}, for a file stands where a folder must be",
    errno.EEXIST: f"{PLACE}, for a file stands where a folder must be",
}
"""What to do about an error of the operating system, by its number."""
MET_WHILE_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Errors that a file system reports without naming the file."""


@contextmanager
def writing(path: Path, partial: Path | None = None) -> Iterator[None]:
    """Name ``path`` in an OSError for any disk error inside, whichever library raised it.

    ``partial`` is a file or folder that is useless unfinished: it is deleted on any error.
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
    """Write a UTF-8 file, with its folder if needed: either the old or the new file exists, also after a power cut.

    A process killed meanwhile leaves a file ``.NAME.*`` beside it. Raises OSError naming the file.
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
        os.chmod(name, 0o644)
        os.replace(name, path)
        sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's contents, or a folder's list of names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def described(error: OSError) -> str:
    """Return an OSError in one line: which file, what was wrong, and what to do where that is known."""
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
