"""Putting a directory in its place whole, and finding it again after a crash.

A model is written aside as ``.NAME.ID.new``; the one that is there moves to ``.NAME.ID.old``, the new one takes its
place, and the old one is deleted. Whatever moment the process dies at, one of the three is whole, and ``recover`` puts
it in place. A lock on the parent directory, which leaves no file behind and ends with its process, keeps others out
between the two renames.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Generator
from pathlib import Path
from types import ModuleType

_locks: ModuleType | None
try:
    import fcntl

    _locks = fcntl
except ImportError:  # Windows: saving to one place from two processes at once is not protected there
    _locks = None

IsWhole = Callable[[Path], bool]


@contextlib.contextmanager
def locked(folder: Path, *, shared: bool = False, wait: bool = True) -> Generator[bool]:
    """Hold a lock on a directory; yields whether it is held, or cannot be had on this system at all."""
    handle = None
    held = True
    if _locks is not None:
        with contextlib.suppress(OSError):  # no such directory, or a file system without locks
            handle = os.open(folder, os.O_RDONLY)
            mode = _locks.LOCK_SH if shared else _locks.LOCK_EX
            try:
                _locks.flock(handle, mode if wait else mode | _locks.LOCK_NB)
            except BlockingIOError:
                held = False
    try:
        yield held
    finally:
        if handle is not None:
            os.close(handle)


@contextlib.contextmanager
def aside(target: Path) -> Generator[Path]:
    """Make a directory beside ``target`` to write to, locked so that others do not clear it away."""
    part = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.new"
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with locked(target.parent):  # who clears holds this lock, and then that of a part
            part.mkdir()
            stack.callback(shutil.rmtree, part, ignore_errors=True)
            stack.enter_context(locked(part))
        yield part


def write(file: Path, data: bytes) -> None:
    """Write a file so that it survives a power failure."""
    with file.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def put(part: Path, target: Path) -> None:
    """Rename ``part`` to ``target``; what is there moves aside, and back on an OSError. The parent must be locked."""
    if not target.exists():
        os.rename(part, target)
        return
    old = part.with_suffix(".old")
    os.rename(target, old)
    try:
        os.rename(part, target)
    except OSError:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def recover(target: Path, is_whole: IsWhole) -> Path:
    """Return where a directory is: in its place, put back there after a crash between two renames if that can be."""
    if target.exists() or not target.parent.is_dir():
        return target
    for left in _leftovers(target):
        with locked(left, wait=False) as free:  # a writer that lives puts it there itself
            if not (free and is_whole(left)):
                continue
            try:
                os.rename(left, target)
            except OSError:  # a medium that cannot be written to, or another process was first
                return target if target.exists() else left
            break
    return target


def clear(target: Path, is_ours: IsWhole) -> None:
    """Delete what saves that were killed left beside a directory that is in its place."""
    for left in _leftovers(target) if target.exists() else []:
        with locked(left, wait=False) as free:  # its writer holds the lock while it lives
            if free and is_ours(left):
                shutil.rmtree(left, ignore_errors=True)


def _leftovers(target: Path) -> list[Path]:
    """Return directories left by a save to ``target``, the new ones first."""
    pattern = re.compile(re.escape(f".{target.name}.") + r"[0-9a-f]{8}\.(new|old)")
    found = [path for path in target.parent.iterdir() if pattern.fullmatch(path.name)]
    found = [path for path in found if path.is_dir() and not path.is_symlink()]
    return sorted(found, key=lambda path: (path.suffix, -path.stat().st_mtime))
