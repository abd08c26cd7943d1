"""``agentd run``: one command in a fresh sandbox."""

import argparse
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from agentd.client.cli.interrupts import Interrupted, Interrupts
from agentd.client.cli.options import parse_run
from agentd.model.errors import AgentdError, InvalidInput
from agentd.model.isolation import IsolationLevel

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentd.client.embedded import Execution, Pipeline, SandboxHandle, Snapshot
    from agentd.model.mount import Mount
    from agentd.model.result import Result
    from agentd.model.spec import ExecRequest, SandboxSpec

_READ = 64 << 10
_BACKLOG = 256 << 10  # bytes of stdin taken ahead of the command


def main(words: list[str]) -> int:
    options = parse_run(words)
    with Interrupts() as interrupts:
        try:
            return _run(options, interrupts)
        except Interrupted as interrupted:
            return 128 + interrupted.number
        except AgentdError as error:
            if options.json and not isinstance(error, InvalidInput):
                from agentd.client.cli import output

                output.write_all(1, output.error_json(error))
            raise


def _run(options: argparse.Namespace, interrupts: Interrupts) -> int:
    from agentd.client import embedded

    pipeline = embedded.new(begin=(options.backend, _floor(options)))
    try:
        kept = embedded.load_snapshot(options.snapshot) if options.snapshot else None
        spec, request = _judge(options, kept)
        handle = _open(options, pipeline, spec, kept, interrupts)
        result = _execute(options, pipeline, handle, request, interrupts)
        saved = None
        if options.save_snapshot and result.status == "ok":
            saved = pipeline.snapshot(handle, options.save_snapshot)
        return _report(options, handle, result, saved)
    finally:
        pipeline.manager.close()


def _open(
    options: argparse.Namespace,
    pipeline: "Pipeline",
    spec: "SandboxSpec",
    kept: "Snapshot | None",
    interrupts: Interrupts,
) -> "SandboxHandle":
    from agentd.client.cli.progress import Display
    from agentd.client.embedded import principal
    from agentd.sandbox import progress

    if options.save_snapshot and os.path.lexists(options.save_snapshot):
        raise InvalidInput(
            f"snapshot path {options.save_snapshot} exists already",
            remediation="remove it, or name another",
        )
    display = Display(silent=options.json, check=interrupts.check)
    with display, progress.listening(display):
        handle = pipeline.open(principal(), spec, kept)
    if options.save_snapshot:
        handle.snapshots("snapshot")  # refused before the command ran, not after
    return handle


def _floor(options: argparse.Namespace) -> IsolationLevel:
    return IsolationLevel.parse(options.isolation or "namespace")


def _judge(
    options: argparse.Namespace, kept: "Snapshot | None"
) -> "tuple[SandboxSpec, ExecRequest]":
    from agentd.client import build

    here = _visible_here(options)
    wanted: build.SandboxOptions = {
        "isolation": options.isolation,
        "backend": options.backend,
        "memory": options.memory,
        "cpus": options.cpus,
        "pids": options.pids,
        "disk": options.disk,
        "open_files": options.open_files,
        "output": options.output,
        "timeout": options.timeout,
        "workspace": options.workspace,
        "mounts": [*options.mount, *([here] if here else [])],
        "net": options.net,
        "user": options.user,
    }
    if options.image is not None:
        wanted["image"] = options.image
    if kept is None:
        spec = build.sandbox_spec(**wanted)
    else:
        spec = build.restored_spec(kept.spec, **wanted)
    env: dict[str, str] = {}
    for path in options.env_file:
        env |= build.parse_env_file(path)
    env |= dict(build.parse_variable(text) for text in options.env)
    pty = None
    if options.tty:
        from agentd.client.cli import terminal

        terminal.require(0)
        pty = terminal.size(0)
        env.setdefault("TERM", os.environ.get("TERM", "xterm"))
    request = build.exec_request(
        options.command,
        cwd=options.cwd or (here.target if here else None),
        env=env,
        stdin=options.stdin or options.tty,
        pty=pty,
    )
    return spec, request


def _visible_here(options: argparse.Namespace) -> "Mount | None":
    """The caller's directory, read-only, for a wall without a file tree of its own.

    Not the whole machine and not a home directory: what lies there was not meant to be shown.
    """
    wanted = options.isolation == "process" or options.backend == "landlock"
    if not wanted or options.workspace is not None:
        return None
    from agentd.model.mount import Mount, MountMode, check_target

    try:
        here = os.getcwd()
        check_target(here)
    except (OSError, InvalidInput):
        return None
    home = os.path.realpath(os.path.expanduser("~"))
    if (home + "/").startswith(here + "/"):
        return None
    return Mount(here, here, MountMode.RO)


def _execute(
    options: argparse.Namespace,
    pipeline: "Pipeline",
    handle: "SandboxHandle",
    request: "ExecRequest",
    interrupts: Interrupts,
) -> "Result":
    from agentd.client.embedded import principal
    from agentd.sandbox.ports import Pausable

    def stand_still() -> None:
        pipeline.pause(handle)
        interrupts.stop()
        pipeline.resume(handle)

    with ExitStack() as stack:
        execution = stack.enter_context(
            pipeline.start(principal(), handle, request, capture=options.json)
        )
        if options.tty:
            from agentd.client.cli import terminal

            stack.enter_context(terminal.raw(0))
        # Only here may a signal cut in: the terminal and the sandbox are put in order around it.
        pauses = isinstance(handle.wall, Pausable) and not options.tty
        if pauses:
            interrupts.take_stops()
        with interrupts.allowed():
            _follow(execution, request, interrupts, stand_still if pauses else None)
        return execution.finish()


def _follow(
    execution: "Execution",
    request: "ExecRequest",
    interrupts: Interrupts,
    stand_still: "Callable[[], None] | None",
) -> None:
    """Output out, input in, size changes and stops through, until the command has ended."""
    from agentd.client.cli.output import write_all

    feeding = request.stdin
    while True:
        waiting = [interrupts.wake] if request.pty or stand_still else []
        if feeding and execution.running.backlog < _BACKLOG:
            waiting.append(0)
        chunks, ready = execution.step(None, waiting)
        for name, data in chunks:
            write_all(1 if name == "stdout" else 2, data)
        if interrupts.wake in ready:
            _woken(execution, request, interrupts, stand_still)
        if 0 in ready:
            feeding = _feed(execution)
        if execution.exit is not None and not chunks:
            return


def _feed(execution: "Execution") -> bool:
    """One read of our stdin passed on; False at its end, or where there is none."""
    try:
        data = os.read(0, _READ)
    except BlockingIOError:
        return True
    except OSError:
        data = b""
    if data:
        execution.write(data)
    else:
        execution.close_stdin()
    return bool(data)


def _woken(
    execution: "Execution",
    request: "ExecRequest",
    interrupts: Interrupts,
    stand_still: "Callable[[], None] | None",
) -> None:
    stopped = interrupts.drain()
    if stopped and stand_still is not None:
        stand_still()
    if request.pty is not None:
        from agentd.client.cli import terminal

        now = terminal.size(0)
        execution.running.resize(now.rows, now.cols)


def _report(
    options: argparse.Namespace,
    handle: "SandboxHandle",
    result: "Result",
    saved: "Snapshot | None",
) -> int:
    from agentd.client.cli import output

    changes = None
    overlay = getattr(handle.wall, "changes", None)
    if overlay is not None:
        changes = tuple(overlay())
    applied = bool(changes) and options.apply and result.status == "ok"
    if applied:
        handle.wall.apply()  # type: ignore[attr-defined]  # CopyOnWrite, as above
    if options.json:
        output.write_all(1, output.as_json(result, changes, saved))
    else:
        output.explain(result.cause)
        if changes is not None:
            output.list_changes(changes, applied)
        if saved is not None:
            output.say(f"snapshot {saved.id} of the sandbox is in {saved.path}")
    return output.exit_code(result)
