"""One long-lived child process that does the work, so that a trial can be stopped, or can die, and cost only itself.

The parent sends ``(method, args)``; the child calls that method of one object, which it built from a function sent
first, and answers with events while it works and one result or error. The child ends when its parent does. Functions
and arguments travel by cloudpickle between two processes of the same program, never to or from a file. The child looks
for modules where its parent does.

The standard output of the child carries the messages, so what its libraries print goes to the log.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import cloudpickle
import psutil

from laconic.errors import LaconicError, TrialError

_LENGTH = struct.Struct("<Q")
_POLL_S = 0.2
_CHILD = "from laconic.worker import serve; serve()"  # with -m its errors would be of other classes than the parent's

Progress = Callable[[str, float], None]


class WorkerDiedError(TrialError):
    """The child died, ran out of its time or its memory: what it was doing is lost, nothing else."""


class InternalError(LaconicError):
    """A fault of laconic itself in the child; its traceback is in the log."""


def environment() -> dict[str, str]:
    """The child's environment, two measured traps avoided (what the user has set stays).

    GNU OpenMP's threads spin while they wait for each other, which made training a small network 26 times slower when
    other programs wanted the cores: let them sleep. glibc gives large tensors back to the system at once and gets them
    anew, zeroed page by page, which took as long as the arithmetic itself: let it keep them.
    """
    keep = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    return {"OMP_WAIT_POLICY": "PASSIVE", **keep, **os.environ}


class Worker:
    """The parent's side: ``call`` runs a method of the object in the child and waits for its result.

    ``factory`` builds the object in the child and may report progress. After the child died, the next call starts
    another one.
    """

    def __init__(self, factory: Callable[[Progress], Any], log: Path, memory_bytes: int | None = None) -> None:
        self._factory, self._log, self._memory_bytes = factory, log, memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._inbox: queue.Queue[bytes | None] = queue.Queue()
        self._answered = True

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def call(self, method: str, *args: Any, progress: Progress | None = None, seconds: float | None = None) -> Any:
        """The result of ``object.method(*args)``. Errors of laconic are raised here as they were there; raises
        :class:`WorkerDiedError` if the child dies or needs more than ``seconds``."""
        process = self._process
        if process is None or process.poll() is not None or not self._answered:  # a late answer belongs to nobody
            process = self._start(progress)
        return self._exchange(process, (method, args), progress, seconds)

    def stop(self) -> None:
        """End the child, whatever it is doing."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def _start(self, progress: Progress | None) -> subprocess.Popen[bytes]:
        self.stop()
        with self._log.open("ab") as log:
            command, pipe = [sys.executable, "-c", _CHILD], subprocess.PIPE
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, env=environment())
        self._process, self._inbox = process, queue.Queue()
        threading.Thread(target=_read_all, args=(process.stdout, self._inbox), daemon=True).start()
        try:
            assert process.stdin is not None
            _write(process.stdin, cloudpickle.dumps(sys.path))
            self._exchange(process, self._factory, progress, None)
        except BaseException:
            self.stop()  # without its object a child is of no use
            raise
        return process

    def _exchange(
        self, process: subprocess.Popen[bytes], message: object, progress: Progress | None, seconds: float | None
    ) -> Any:
        assert process.stdin is not None
        deadline = None if seconds is None else time.monotonic() + seconds
        data = cloudpickle.dumps(message)
        self._answered = False
        try:
            _write(process.stdin, data)
        except BrokenPipeError as error:
            raise WorkerDiedError(f"the worker process died (its last words: {self._log})") from error
        while True:
            self._check_limits(process, deadline)
            try:
                received = self._inbox.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if received is None:
                code = process.wait()
                raise WorkerDiedError(f"the worker process died with status {code} (its last words: {self._log})")
            kind, value = pickle.loads(received)
            if kind == "progress":
                if progress is not None:
                    progress(*value)
                continue
            self._answered = True
            if kind == "error":
                raise value
            return value

    def _check_limits(self, process: subprocess.Popen[bytes], deadline: float | None) -> None:
        if deadline is not None and time.monotonic() > deadline:
            self.stop()
            raise WorkerDiedError("stopped: it took longer than the time it was given")
        if self._memory_bytes is not None and process.poll() is None:
            try:
                used = psutil.Process(process.pid).memory_info().rss
            except psutil.Error:  # it ended this moment: its pipe will say so
                return
            if used > self._memory_bytes:
                self.stop()
                raise WorkerDiedError(f"stopped: it used {used / 2**30:.1f} GiB of memory")


def _write(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(_LENGTH.pack(len(data)) + data)
    pipe.flush()


def _read(pipe: IO[bytes]) -> bytes:
    header = pipe.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        raise EOFError
    data = pipe.read(_LENGTH.unpack(header)[0])
    if len(data) < _LENGTH.unpack(header)[0]:
        raise EOFError
    return data


def _read_all(pipe: IO[bytes] | None, inbox: queue.Queue[Any]) -> None:
    """Put every message into the inbox, and None when the other side is gone."""
    assert pipe is not None
    try:
        while True:
            inbox.put(_read(pipe))
    except (EOFError, OSError, ValueError):
        inbox.put(None)


# ----------------------------------------------------------------------------------------------------- the child's side


def serve() -> None:
    """Build the object, then do what is asked until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides
    inbox: queue.Queue[Any] = queue.Queue()
    messages_in, messages_out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    sys.path[:] = pickle.loads(_read(messages_in))
    threading.Thread(target=_read_or_exit, args=(messages_in, inbox), daemon=True).start()

    def answer(kind: str, value: object) -> None:
        _write(messages_out, cloudpickle.dumps((kind, value)))

    last = 0.0

    def progress(text: str, fraction: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > _POLL_S / 2 or fraction in (0.0, 1.0):
            last = now
            answer("progress", (text, fraction))

    subject: Any = None
    while True:
        data = inbox.get()
        try:
            message = pickle.loads(data)
            if subject is None:
                subject, result = message(progress), None
            else:
                method, args = message
                result = getattr(subject, method)(*args)
            answer("result", result)
        except LaconicError as error:
            answer("error", error)
        except Exception as error:  # an internal fault: its traceback goes to the log, its name to the parent
            traceback.print_exc()
            sys.stderr.flush()
            answer("error", InternalError(f"{type(error).__name__}: {error}"))


def _read_or_exit(pipe: IO[bytes], inbox: queue.Queue[Any]) -> None:
    _read_all(pipe, inbox)
    os._exit(1)  # the parent is gone; whatever is under way has nobody to report to
