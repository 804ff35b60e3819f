"""Checkpoints: all that a run needs to go on as if it had never stopped, in files that are whole or not there."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, SupportsFloat

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ppgen.files import check_manifest, parse_json, versions, write_bytes, write_manifest
from ppgen.inference.execution.distributed import MissingProcess

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]  # as the standard library has it on Windows

__all__ = ["Checkpoints"]

log = logging.getLogger(__name__)

SCHEMA = 1
STATE, TENSORS = "state.json", "tensors.safetensors"
KEPT = 2  # the newest and the one before
WHOLE = re.compile(r"\d{12}")
LEFT = re.compile(r"\.\d{12}\.(\d+|old)")  # by a process that was killed while it wrote


class Checkpoints:
    """The checkpoints of one run: folders ``DIR/000000001234``, named by the steps that were made.

    A checkpoint is two files, numbers and texts in ``state.json`` and tensors in ``tensors.safetensors``, and a
    ``manifest.json`` with their SHA-256. It is written under another name, synced and renamed, and only then is the
    last but one removed: whenever the process or the machine stops, the newest folder of such a name is whole. Reading
    runs no code: safetensors and JSON only.

    Args:
        folder: where they are; made if it is not there.
        every: seconds between two of them.

    Raises:
        TypeError: the folder is no path.
        ValueError: a time that is negative or no number.
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: str | Path, every: float = 60.0) -> None:
        if isinstance(every, bool) or not isinstance(every, SupportsFloat) or not float(every) >= 0:
            raise ValueError(f"checkpoint_every must be a number of seconds that is not negative, got {every!r}.")
        if not isinstance(folder, str | os.PathLike) or not str(folder):
            raise TypeError(f"checkpoint must be the path of a folder, 'runs/first', say, got {folder!r}.")
        self.folder, self.every = Path(folder).expanduser(), float(every)
        self._received: list[int] = []
        self._written = time.monotonic()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            trial = self.folder / f".trial.{os.getpid()}"
            trial.touch()
            trial.unlink()
        except OSError as error:
            raise OSError(
                error.errno,
                f"checkpoint={str(folder)!r}: nothing can be written there ({error.strerror}), and nothing was "
                "trained. Choose a folder that is yours to write",
            ) from error

    @property
    def newest(self) -> Path | None:
        """The folder of the newest checkpoint."""
        return max((p for p in self.folder.iterdir() if WHOLE.fullmatch(p.name)), default=None)

    def read(self) -> dict[str, Any] | None:
        """The state in the newest checkpoint; None where there is none.

        Raises:
            ValueError: a file of it is damaged, missing, or of another version; the message names it.
        """
        if (folder := self.newest) is None:
            return None
        try:
            contents, manifest = check_manifest(folder, (STATE, TENSORS), SCHEMA)
            state = _unpacked(parse_json(contents[STATE], folder / STATE), load(contents[TENSORS]))
        except (KeyError, TypeError, IndexError, SafetensorError, RecursionError) as error:
            raise ValueError(f"{folder / STATE} and {TENSORS} beside it are not a checkpoint: {error!r}.") from error
        except ValueError as error:
            raise ValueError(
                f"{error} An earlier checkpoint may be beside it: it serves once {folder} is moved away."
            ) from error
        if not isinstance(state, dict):
            raise ValueError(f"{folder / STATE} is not the state of a run.")
        changed = [f"{k} {manifest.get(k)} → {v}" for k, v in versions().items() if manifest.get(k) != v]
        if changed:
            log.warning("Training goes on, but not bit for bit as it would have: %s.", ", ".join(changed))
        return state

    @property
    def due(self) -> bool:
        """Whether it is time for the next one."""
        return bool(self._received) or time.monotonic() - self._written >= self.every

    def write(self, steps: int, state: dict[str, Any]) -> None:
        """Writes the state after so many steps, and removes all but the last two.

        Raises:
            OSError: it could not be written; the earlier ones are as they were.
            TypeError: the state holds something that is no number, text or tensor.
        """
        final = self.folder / f"{steps:012d}"
        if final.exists():  # a run that was continued, and stopped before its next step
            return
        tensors: list[Tensor] = []
        packed = json.dumps(_packed(state, tensors, "state")).encode()
        files = {STATE: packed, TENSORS: save(_apart(tensors))}
        temporary = self.folder / f".{final.name}.{os.getpid()}"
        try:
            for left in (p for p in self.folder.iterdir() if LEFT.fullmatch(p.name)):
                shutil.rmtree(left)
            temporary.mkdir()
            for name, content in files.items():
                write_bytes(temporary / name, content)
            write_manifest(temporary, files, SCHEMA)
            _sync(temporary)
            os.rename(temporary, final)
            _sync(self.folder)
            for old in sorted(p for p in self.folder.iterdir() if WHOLE.fullmatch(p.name))[:-KEPT]:
                # Renamed first, so that nothing half removed has a checkpoint's name.
                os.rename(old, self.folder / f".{old.name}.old")
                shutil.rmtree(self.folder / f".{old.name}.old")
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if not isinstance(error, OSError):
                raise
            kept = f"the one of {self.newest} is whole" if self.newest else "there is none before it"
            raise OSError(
                error.errno,
                f"The checkpoint after {steps:,} steps could not be written to {self.folder} ({error.strerror}); "
                f"{kept}, and the model in memory has all of its training. Make room, and continue from there",
            ) from error
        self._written = time.monotonic()

    @contextmanager
    def signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM inside only ask for a checkpoint; :meth:`obey` lets them have their way.

        A second one does not wait. In other threads than the main one, which get no signals, nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._received.clear()
        now = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        # None is a handler that Python did not set, and could not set again.
        before = {number: handler for number, handler in now.items() if handler not in (signal.SIG_IGN, None)}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def receive(number: int, frame: Any) -> None:
            self._received.append(number)
            restore()

        for number in before:
            signal.signal(number, receive)
        try:
            yield
        except KeyboardInterrupt:  # a second one, or what obey has raised
            self._received.clear()
            raise
        except MissingProcess:  # which is why the launcher has sent a SIGTERM to this one
            self._received = [number for number in self._received if number != signal.SIGTERM]
            raise
        finally:
            restore()
            self.obey()  # what came after the last save, or broke something (workers of a loader hear a Ctrl-C, too)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps a second run out of the folder: two would remove one another's checkpoints.

        Raises:
            ValueError: another run is in it.
        """
        path = self.folder / ".lock"
        with ExitStack() as stack:
            # The last holder of a lock may remove its file between our opening and locking it; another run would then
            # lock the next file of that name, so ours is opened anew. (A few times: some file systems tell no files
            # apart.)
            for _ in range(5):
                file = stack.enter_context(open(path, "w"))
                try:
                    if fcntl is not None:  # on Windows nobody is kept out
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise ValueError(
                        f"checkpoint={str(self.folder)!r} is in use by another run: wait for its end, or choose "
                        "another folder."
                    ) from error
                except OSError:  # a file system without locks
                    log.info("%s cannot be locked.", path)
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                        break
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def obey(self, why: str = "") -> None:
        """Hands a signal that was received to whoever would have had it: Ctrl-C raises KeyboardInterrupt.

        Args:
            why: what was saved is not the present state.
        """
        if self._received:
            newest = self.newest
            saved = f"{newest} holds the run after {int(newest.name):,} steps" if newest else "nothing was saved yet"
            log.warning("Stopped by %s; %s%s.", signal.Signals(self._received[0]).name, saved, why)
            signal.raise_signal(self._received.pop(0))


def _sync(folder: Path) -> None:
    """Makes the names in a folder outlast a loss of power."""
    if os.name == "nt":  # which has no such call
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _packed(value: Any, tensors: list[Tensor], where: str) -> Any:
    """A state as JSON: each tensor by its number, and the kinds of container that JSON does not tell apart named."""
    if isinstance(value, Tensor):
        tensors.append(value.detach().cpu())
        return {"tensor": str(len(tensors) - 1)}
    if isinstance(value, dict):
        return {
            "dict": [[_packed(k, tensors, where), _packed(v, tensors, f"{where}[{k!r}]")] for k, v in value.items()]
        }
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_packed(v, tensors, f"{where}[{i}]") for i, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{where} is {type(value).__name__}, which no checkpoint can hold: numbers, texts, tensors, and dictionaries, "
        "lists and tuples of them can."
    )


def _apart(tensors: list[Tensor]) -> dict[str, Tensor]:
    """Tensors by their numbers; two of one memory, which safetensors refuses, become two, and the others no copies."""
    memories, apart = set(), {}
    for i, tensor in enumerate(tensors):
        memory = tensor.untyped_storage().data_ptr()
        known = memory in memories or not tensor.is_contiguous()
        apart[str(i)] = tensor.clone(memory_format=torch.contiguous_format) if known else tensor
        memories.add(memory)
    return apart


def _unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {_unpacked(k, tensors): _unpacked(v, tensors) for k, v in content}
    if kind in ("list", "tuple"):
        items = [_unpacked(v, tensors) for v in content]
        return tuple(items) if kind == "tuple" else items
    raise KeyError(kind)
