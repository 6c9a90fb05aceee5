"""Give processes on several machines the same data and checkpoints, with or without a shared disk."""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from mesalm.data.prepared import Prepared
from mesalm.files import fingerprint, whole_folder
from mesalm.runs import STATE_FILE
from mesalm.train.launch import LaunchError, blind_to, broadcast
from mesalm.train.watch import Watch

PIECE = 1 << 26
"""Bytes of a file that are sent at once."""


def prepared_on_each(
    accelerator: Accelerator, watch: Watch | None, cache: Path, make: Callable[[], Path | None]
) -> Path | None:
    """Prepare the data with ``make`` and return this machine's folder of them, or None if ``make`` returns None.

    The main process prepares for all machines that see its ``cache``; on others their first process prepares, at the
    same time. Raises LaunchError naming a machine whose rows or tokenizer differ from the main process's.
    """
    shared = not blind_to(accelerator, cache)
    first = accelerator.is_main_process if shared else accelerator.is_local_main_process
    path = make() if first else None
    if watch is None:
        return path
    watch.meet()
    contents = Prepared(path).contents() if first and path is not None else None
    found = gather_object([(path, contents, platform.node())])
    _, expected, _ = found[0]
    for _, held, machine in found:
        if held is not None and held != expected:
            part = next(part for part in held if held[part] != expected[part])
            raise LaunchError(
                f"{machine}: prepared different data from {found[0][2]}: the {part} differ; give both the same files "
                "and package versions, or set data.cache_dir to a folder on a disk that they share"
            )
    return found[0 if shared else accelerator.process_index - accelerator.local_process_index][0]


def send_folder(accelerator: Accelerator, folder: Path) -> None:
    """Copy a checkpoint from the main process's machine to those without it, into their ``folder``."""
    state = folder / STATE_FILE
    mine = fingerprint(state) if state.is_file() else None
    differs = mine != broadcast(accelerator, mine)  # must run on every process
    lacks = accelerator.is_local_main_process and differs
    if not any(gather_object([lacks])):
        return
    main = accelerator.is_main_process
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if main else []
    names = broadcast(accelerator, [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files])
    if lacks:
        folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder) if lacks else nullcontext() as partial:
        for name, size in names:
            if partial is not None:
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                (partial / name).touch()
            for begin in range(0, size, PIECE):
                piece = broadcast(accelerator, _piece(folder / name, begin) if main else None)
                if partial is not None:
                    with (partial / name).open("ab") as file:
                        file.write(piece)


def _piece(path: Path, begin: int) -> bytes:
    with path.open("rb") as file:
        file.seek(begin)
        return file.read(PIECE)
