"""The worker: results, events and errors come back; what goes wrong in the child costs one call and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from laconic import worker as room
from laconic.errors import DataError, DeployError, LaconicError, TrialError
from laconic.worker import InternalError, Worker, WorkerDiedError, environment


def subject_class() -> type:
    """A class without a module that the child could import: it travels by value."""

    class Subject:
        def __init__(self, start: int = 0) -> None:
            self.count = start

        def add(self, n: int) -> int:
            self.count += n
            return self.count

        def pid(self) -> int:
            return os.getpid()

        def fail(self, error: Exception) -> None:
            raise error

        def die(self, status: int) -> None:
            os._exit(status)

        def sleep(self, seconds: float) -> str:
            time.sleep(seconds)
            return "slept"

        def unpicklable(self) -> Any:
            return (n for n in range(3))

        def speak(self) -> str:
            print("a library's chatter", flush=True)
            os.write(1, b"straight to the descriptor\n")
            return sys.stdin.read()

        def swell(self, mib: int, seconds: float) -> int:
            block = bytearray(mib * 2**20)
            block[:: 2**12] = b"x" * len(block[:: 2**12])
            time.sleep(seconds)
            return len(block)

    return Subject


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Turn a call that would hang into a failure."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"nothing came within {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    made: list[Worker] = []

    def build(factory: Any = None, **options: Any) -> Worker:
        kind = subject_class()
        made.append(Worker(factory or (lambda progress: kind()), tmp_path / "log", **options))
        return made[-1]

    with within(30):
        yield build
    for one in made:
        one.stop()


def test_results_and_state(make: Callable[..., Worker]) -> None:
    worker = make()
    assert worker.call("add", 2) == 2
    assert worker.call("add", 40) == 42
    assert worker.call("pid") not in (os.getpid(), None)


@pytest.mark.parametrize("kind", ["lambda", "closure", "partial"])
def test_factories_without_a_module_travel(make: Callable[..., Worker], kind: str) -> None:
    subject, start = subject_class(), 5

    def closure(progress: Any) -> Any:
        return subject(start)

    def of(first: int, progress: Any) -> Any:
        return subject(first)

    factories = {"lambda": lambda progress: subject(start), "closure": closure, "partial": partial(of, start)}
    assert make(factories[kind]).call("add", 1) == 6


def test_progress_arrives_in_order_and_before_the_result(make: Callable[..., Worker]) -> None:
    class Reporting:
        def __init__(self, progress: Any) -> None:
            progress("building", 0.0)
            self.progress = progress

        def work(self) -> str:
            for i in range(5):
                self.progress("working", i / 4)
                time.sleep(0.12)
            return "done"

    seen: list[tuple[str, float]] = []
    worker = make(Reporting)
    assert worker.call("work", progress=lambda text, fraction: seen.append((text, fraction))) == "done"
    assert seen[0] == ("building", 0.0)
    assert [fraction for text, fraction in seen[1:]] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert worker.call("work") == "done", "nobody has to listen"


def test_progress_is_throttled_but_for_its_ends(make: Callable[..., Worker]) -> None:
    class Chatty:
        def __init__(self, progress: Any) -> None:
            self.progress = progress

        def work(self) -> None:
            for i in range(1001):
                self.progress("x", i / 1000)

    seen: list[float] = []
    make(Chatty).call("work", progress=lambda text, fraction: seen.append(fraction))
    assert seen[0] == 0.0
    assert seen[-1] == 1.0
    assert len(seen) < 20


@pytest.mark.parametrize(
    "error", [DataError("no rows", got=0, wanted=1), TrialError("diverged"), DeployError("no file")]
)
def test_errors_keep_their_kind_and_message(make: Callable[..., Worker], error: LaconicError) -> None:
    worker = make()
    with pytest.raises(type(error)) as caught:
        worker.call("fail", error)
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    assert worker.call("add", 1) == 1, "the same child goes on"


def test_a_fault_is_internal_and_its_traceback_is_in_the_log(make: Callable[..., Worker], tmp_path: Path) -> None:
    worker = make()
    worker.call("add", 1)
    with pytest.raises(InternalError, match=r"^ZeroDivisionError: oh$") as caught:
        worker.call("fail", ZeroDivisionError("oh"))
    assert not isinstance(caught.value, TrialError)
    log = (tmp_path / "log").read_text()
    assert "Traceback" in log
    assert "in fail" in log
    with pytest.raises(InternalError, match="AttributeError"):
        worker.call("no_such_method")
    with pytest.raises(InternalError, match="TypeError"):
        worker.call("unpicklable")
    assert worker.call("add", 1) == 2, "the same child goes on"


def test_a_child_that_dies_costs_one_call(make: Callable[..., Worker]) -> None:
    worker = make()
    worker.call("add", 7)
    with pytest.raises(WorkerDiedError, match=r"died with status 3 \(its last words: .*log\)"):
        worker.call("die", 3)
    assert worker.call("add", 1) == 1, "a new child with a new object"


def test_a_child_killed_between_calls_is_replaced(make: Callable[..., Worker]) -> None:
    worker = make()
    pid = worker.call("pid")
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # all of its threads are gone; whoever asks next finds it dead
    assert worker.call("pid") != pid


def test_a_time_limit(make: Callable[..., Worker]) -> None:
    worker = make()
    assert worker.call("sleep", 0.01, seconds=20) == "slept"
    began = time.monotonic()
    with pytest.raises(WorkerDiedError, match="longer than the time"):
        worker.call("sleep", 20, seconds=0.3)
    assert time.monotonic() - began < 5
    assert worker.call("add", 1) == 1


@pytest.mark.parametrize("options", [{"seconds": 0.5}, {"memory": 120}], ids=["time", "memory"])
def test_limits_hold_while_the_child_reports_all_the_time(make: Callable[..., Worker], options: dict[str, Any]) -> None:
    class Busy:
        def __init__(self, progress: Any) -> None:
            self.progress = progress

        def work(self, mib: int) -> None:
            block = b"x" * (mib * 2**20)
            end = time.monotonic() + 15
            while time.monotonic() < end:
                self.progress("x", 0.5)
                time.sleep(0.01)
            assert block

    memory = options.get("memory")
    worker = make(Busy, memory_bytes=memory and memory * 2**20)
    began = time.monotonic()
    with pytest.raises(WorkerDiedError, match="memory" if memory else "time"):
        worker.call("work", 300 if memory else 1, seconds=options.get("seconds"))
    assert time.monotonic() - began < 8


def test_a_memory_limit(make: Callable[..., Worker]) -> None:
    worker = make(memory_bytes=150 * 2**20)
    assert worker.call("swell", 1, 0.5) == 2**20
    with pytest.raises(WorkerDiedError, match=r"used 0\.\d GiB of memory"):
        worker.call("swell", 400, 20)
    assert worker.call("add", 1) == 1


def test_a_factory_that_fails_says_so_every_time(make: Callable[..., Worker]) -> None:
    def broken(progress: Any) -> Any:
        raise DataError("no such data")

    worker = make(broken)
    for _ in range(2):
        with pytest.raises(DataError, match=r"^no such data$"):
            worker.call("add", 1)


def test_a_factory_that_the_child_cannot_load_is_an_error(make: Callable[..., Worker]) -> None:
    ghost = types.ModuleType("ghost_module")
    exec("def build(progress): return progress", ghost.__dict__)
    sys.modules["ghost_module"] = ghost
    try:
        with pytest.raises(InternalError, match="No module named 'ghost_module'"):
            make(ghost.build).call("add", 1)
    finally:
        del sys.modules["ghost_module"]


def test_the_child_finds_the_modules_that_its_parent_finds(
    make: Callable[..., Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_a_user").mkdir()
    (tmp_path / "of_a_user" / "laconic_test_module.py").write_text(
        "class Model:\n    def __init__(self, progress): pass\n    def name(self): return __name__\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "of_a_user")
    import laconic_test_module

    assert make(laconic_test_module.Model).call("name") == "laconic_test_module"


def test_chatter_goes_to_the_log_and_no_input_is_there(make: Callable[..., Worker], tmp_path: Path) -> None:
    assert make().call("speak") == ""
    log = (tmp_path / "log").read_text()
    assert "a library's chatter" in log
    assert "straight to the descriptor" in log


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_the_answer_to_an_interrupted_call_is_not_taken_for_the_next(
    make: Callable[..., Worker], stop: type[BaseException]
) -> None:
    class Slow:
        def __init__(self, progress: Any) -> None:
            self.progress = progress

        def work(self) -> str:
            self.progress("begun", 0.5)
            time.sleep(0.2)
            return "late"

        def other(self) -> str:
            return "mine"

    def interrupt(text: str, fraction: float) -> None:
        raise stop

    worker = make(Slow)
    assert worker.call("other") == "mine"
    with pytest.raises(stop):
        worker.call("work", progress=interrupt)
    time.sleep(0.4)
    assert worker.call("other") == "mine"


def test_ctrl_c_is_the_parents_business(make: Callable[..., Worker]) -> None:
    worker = make()
    pid = worker.call("pid")
    os.kill(pid, signal.SIGINT)
    time.sleep(0.1)
    assert worker.call("pid") == pid


def test_stop_ends_the_child_and_may_come_twice(make: Callable[..., Worker]) -> None:
    with make() as worker:
        process = psutil.Process(worker.call("pid"))
    assert not process.is_running()
    worker.stop()
    assert worker.call("add", 1) == 1


@pytest.mark.parametrize("busy", [False, True])
def test_the_child_ends_with_its_parent(tmp_path: Path, busy: bool) -> None:
    code = f"""
        import os, pathlib, signal, threading, time
        from laconic.worker import Worker
        class Subject:
            def pid(self): return os.getpid()
            def sleep(self): time.sleep(60)
        worker = Worker(lambda progress: Subject(), pathlib.Path({str(tmp_path / "log")!r}))
        print(worker.call("pid"), flush=True)
        if {busy}:
            threading.Thread(target=worker.call, args=("sleep",), daemon=True).start()
            time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    found = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    pid = int(found.stdout)
    end = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "the child outlived its parent"
        time.sleep(0.05)


def test_threads_of_the_child_sleep_while_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert environment()["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert environment()["OMP_WAIT_POLICY"] == "ACTIVE", "the user's own choice stands"


def test_the_errors_of_the_worker_are_trial_errors_where_the_search_may_go_on() -> None:
    assert issubclass(room.WorkerDiedError, TrialError)
    assert not issubclass(room.InternalError, TrialError)
