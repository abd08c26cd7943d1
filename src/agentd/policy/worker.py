"""The process that evaluates policies: it has the engine, and nothing else.

It answers on descriptor 0, a stream socket. It has no environment but where libraries and temporary
files are, and an alarm that ends it when an answer takes too long: nothing else interrupts the
engine. Whoever asked then finds the stream ended. Its memory is bounded by that time alone: the
engine's allocator reserves 256 GiB of addresses at its start, which every limit of the kernel's
counts.
"""

import contextlib
import os
import resource
import signal
import socket
from collections.abc import Iterator

import msgspec

from agentd.policy.frames import Build, Compiled, EngineInfo, Load, Query, receive, send
from agentd.policy.patience import CPU_SECONDS
from agentd.policy.program import Program, Uncompiled, Unevaluated, compile_to


class Worker:
    def __init__(self, *, stand_in: bool) -> None:
        self._stand_in = stand_in
        self._program: Program | None = None
        self._seconds = 0.0  # what it has loaded comes with its own

    def answer(self, frame: bytes) -> bytes:
        operation, body = frame[:1], frame[1:]
        try:
            if operation == b"d":
                return self._query("agentd/decision", body)
            if operation == b"q":
                query = msgspec.json.decode(body, type=Query)
                return self._query(query.entrypoint, bytes(query.input))
            if operation == b"l":
                load = msgspec.json.decode(body, type=Load)
                with _alarm(CPU_SECONDS):
                    self._program, self._seconds = Program(load.path), load.seconds
                return b"+"
            if operation == b"v":
                return b"+" + msgspec.json.encode(EngineInfo(_version(), self._stand_in))
            return b"+" + msgspec.json.encode(_build(msgspec.json.decode(body, type=Build)))
        except Unevaluated as error:
            return b"-" + str(error).encode()
        except Exception as error:
            return b"-" + f"{type(error).__name__}: {error}"[:500].encode(errors="replace")

    def _query(self, entrypoint: str, document: bytes) -> bytes:
        if self._program is None:
            raise Unevaluated("no policy is loaded")
        with _alarm(self._seconds):
            return b"+" + self._program.query(entrypoint, msgspec.json.decode(document)).encode()


def main(*, stand_in: bool) -> None:
    """``stand_in`` says whether another library is in the place of libatomic."""
    # What the kernel does with an alarm that nobody handles needs no help of a busy process.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _die_first()
    worker = Worker(stand_in=stand_in)
    with socket.socket(fileno=0) as stream:
        while (frame := receive(stream)) is not None:
            send(stream, worker.answer(frame))
    os._exit(0)  # the engine's own end at exit is nothing to wait for


def _version() -> str:
    from importlib.metadata import version  # a third of a worker's start, asked for by doctor alone

    return f"regopy {version('regopy')}"


def _die_first() -> None:
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _build(wanted: Build) -> Compiled:
    try:
        with _alarm(CPU_SECONDS):
            called, read = compile_to(
                wanted.path, wanted.modules, wanted.data.encode(), wanted.entrypoints
            )
        return Compiled(called, read)
    except Uncompiled as error:
        return Compiled([], None, error.problems)


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Bound what it computes: a slow machine, or a busy one, is no reason to end it."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
