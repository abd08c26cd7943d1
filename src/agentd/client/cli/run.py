"""``agentd run``: one command in a fresh sandbox, a daemon's where there is one."""

import argparse
import os
from typing import TYPE_CHECKING

from agentd.client.cli.interrupts import Interrupted, Interrupts
from agentd.client.cli.options import parse_run, run_parser, sandbox_options
from agentd.model.errors import AgentdError, InvalidInput
from agentd.model.isolation import IsolationLevel

if TYPE_CHECKING:
    from agentd.client.embedded import Pipeline, SandboxHandle, Snapshot
    from agentd.client.http.address import Address
    from agentd.model.result import Result
    from agentd.model.spec import ExecRequest, SandboxSpec

_parser = run_parser


def main(words: list[str]) -> int:
    options = parse_run(words)
    where = _daemon(options)
    if options.verbose:
        from agentd.client.cli import output

        output.say(f"via {where or 'this process'}")
    with Interrupts() as interrupts:
        try:
            if where is not None:
                from agentd.client.cli import run_remote

                return run_remote.run(where, options, request(options), interrupts)
            return _run(options, interrupts)
        except Interrupted as interrupted:
            return 128 + interrupted.number
        except AgentdError as error:
            if options.json and not isinstance(error, InvalidInput):
                from agentd.client.cli import output

                output.write_all(1, output.error_json(error))
            raise


def request(options: argparse.Namespace) -> "ExecRequest":
    """The command that is asked for. Raises InvalidInput."""
    from agentd.client import build

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
    return build.exec_request(
        options.command,
        cwd=options.cwd,
        env=env,
        stdin=options.stdin or options.tty,
        pty=pty,
    )


def _daemon(options: argparse.Namespace) -> "Address | None":
    """The daemon that was named, or one that listens at the usual place. Snapshots at a path are
    read and written by this process alone."""
    if options.embedded or options.snapshot or options.save_snapshot:
        return None
    from agentd.client.http import address

    return address.running(options.url)


# --- in this process ---


def _run(options: argparse.Namespace, interrupts: Interrupts) -> int:
    from agentd.client import embedded
    from agentd.client.cli import held

    embedded.raise_file_limit()
    pipeline = embedded.new(begin=(options.backend, _floor(options)))
    try:
        kept = embedded.load_snapshot(options.snapshot) if options.snapshot else None
        spec, asked = _judge(options, kept)
        handle = _open(options, pipeline, spec, kept, interrupts)
        held.tell(handle.enforcement, "run", verbose=options.verbose, quiet=options.json)
        result = _execute(options, pipeline, handle, asked, interrupts)
        saved = None
        if options.save_snapshot and result.status == "ok":
            saved = pipeline.manager.snapshot(handle, options.save_snapshot)
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
    from agentd.client.embedded import check_snapshot_path, principal
    from agentd.sandbox import progress

    if options.save_snapshot:
        check_snapshot_path(options.save_snapshot)
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

    wanted = sandbox_options(options)
    if kept is None:
        spec = build.sandbox_spec(**wanted)
    else:
        spec = build.restored_spec(kept.spec, **wanted)
    return spec, request(options)


def _execute(
    options: argparse.Namespace,
    pipeline: "Pipeline",
    handle: "SandboxHandle",
    asked: "ExecRequest",
    interrupts: Interrupts,
) -> "Result":
    from agentd.client.cli.follow import Follow
    from agentd.client.embedded import principal
    from agentd.client.local import LocalCommand
    from agentd.sandbox.abilities import PAUSE

    def stand_still() -> None:
        pipeline.manager.pause(handle)
        interrupts.stop()
        pipeline.manager.resume(handle)

    command = pipeline.start(principal(), handle, asked, capture=options.json)
    with LocalCommand(command) as running:
        pauses = PAUSE.of(handle.wall) is not None and not options.tty
        Follow(
            running,
            interrupts,
            stdin=options.stdin,
            tty=options.tty,
            stand_still=stand_still if pauses else None,
        ).run()
        return running.finish()


def _report(
    options: argparse.Namespace,
    handle: "SandboxHandle",
    result: "Result",
    saved: "Snapshot | None",
) -> int:
    from agentd.client.cli import output
    from agentd.sandbox.abilities import CHANGES

    changes = None
    overlay = CHANGES.of(handle.wall)
    if overlay is not None:
        changes = overlay.changes()
    applied = bool(changes) and options.apply and result.status == "ok"
    if applied and overlay is not None:
        overlay.apply()
    if options.json:
        output.write_all(1, output.as_json(result, changes, saved, via="embedded"))
    else:
        output.explain(result.cause, truncated=result.truncated)
        if changes is not None:
            output.list_changes(changes, applied)
        if saved is not None:
            output.say(f"snapshot {saved.id} of the sandbox is in {saved.path}")
    return output.exit_code(result)
