"""``agentd run``: one command in a fresh sandbox, a daemon's where there is one."""

import argparse
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, cast

from agentd.client.cli.interrupts import Interrupted, Interrupts
from agentd.client.cli.options import parse_run, run_parser, sandbox_options
from agentd.model.errors import AgentdError, InvalidInput, NotFound, Refused
from agentd.model.isolation import IsolationLevel

if TYPE_CHECKING:
    from agentd.client.embedded_service import EmbeddedService
    from agentd.client.http.address import Address
    from agentd.client.ports import Service, Snapshot
    from agentd.model.api import SandboxView
    from agentd.model.result import Result
    from agentd.model.spec import ExecRequest

_parser = run_parser


def main(words: list[str]) -> int:
    options = parse_run(words)
    where = _daemon(options)
    if options.verbose:
        from agentd.client.cli import output

        output.say(f"via {where or 'this process'}")
    with Interrupts(of_daemon=where is not None) as interrupts:
        try:
            return _run(where, options, interrupts)
        except Interrupted as interrupted:
            return 128 + interrupted.number
        except AgentdError as error:
            if options.json and not isinstance(error, InvalidInput):
                from agentd.client.cli import output, streams

                streams.write_all(1, output.error_json(error))
            raise


def _daemon(options: argparse.Namespace) -> "Address | None":
    """The daemon that was named, or one that listens at the usual place. Snapshots at a path are
    read and written by this process alone."""
    if options.embedded or options.snapshot or options.save_snapshot:
        return None
    from agentd.client.http import address

    return address.running(options.url)


def _run(where: "Address | None", options: argparse.Namespace, interrupts: Interrupts) -> int:
    from agentd.client.cli import cassettes, command, held, place

    floor = IsolationLevel.parse(options.isolation or "namespace")
    with place.service(where, (options.backend, floor, _network(options.net))) as service:
        asked = command.request(options) if options.command else None
        files = cassettes.of_a_run(options)
        view = _create(where, service, options, interrupts)
        try:
            cassettes.check_made(view, files)
            files.play(service.network, view.id)
            if asked is None:
                options.command = _of_image(view)
                asked = command.request(options)
            held.tell(view.enforcement, "run", verbose=options.verbose, quiet=options.json)
            if options.save_snapshot:  # refused before the command runs, not after
                cast("EmbeddedService", service).handle(view.id).snapshots("snapshot")
            result = _execute(service, view, options, asked, interrupts)
            return _report(service, view, options, result)
        finally:
            try:
                cassettes.save(files, service.network, view.id)
            finally:
                with suppress(NotFound):  # its lease may have ended it
                    service.sandboxes.kill(view.id)


def _of_image(view: "SandboxView") -> list[str]:
    """Return what the image runs. Raises InvalidInput where it says nothing."""
    if not view.command:
        raise InvalidInput(
            f"no command given, and the image {view.image} has none",
            remediation=f"write it after --: agentd run --image {view.image} -- ls",
        )
    return list(view.command)


def _network(net: str | None) -> str:
    """Its kind, to begin with what it takes: whether it is one at all is looked at later."""
    return net if net in ("none", "host") else "none" if net is None else "restricted"


def _secrets(options: argparse.Namespace) -> list[str]:
    """Return their names. Raises InvalidInput."""
    if not options.secrets:
        return []
    from agentd.model.secret import asked_secrets

    return [asked.binding.name for asked in asked_secrets(options.secrets)]


def _create(
    where: "Address | None", service: "Service", options: argparse.Namespace, interrupts: Interrupts
) -> "SandboxView":
    from agentd.client import build
    from agentd.client.cli import command, place

    asked = sandbox_options(options)
    # Packages are for the Python that the command finds; and no variable is a secret as well.
    names = [*_secrets(options), *(("PATH", "PYTHONPATH") if options.packages else ())]
    if names:
        own = command.environment(options)
        asked["env"] = {name: own[name] for name in names if name in own}
    body = build.sandbox_body(snapshot=options.snapshot, template=options.template, **asked)
    if options.save_snapshot:
        from agentd.sandbox import snapshots

        snapshots.check_path(options.save_snapshot)
    with interrupts.allowed():
        pass  # what came while we were busy ends us before anything is made
    try:
        with place.making(where, "run", options, interrupts.check), interrupts.heeded():
            return service.sandboxes.create(body, cancel=interrupts.ended)
    except Refused as error:
        if where is not None and (options.workspace or options.mounts):
            error.remediation += "; or use --embedded, to mount with your own rights"
        raise


def _execute(
    service: "Service",
    view: "SandboxView",
    options: argparse.Namespace,
    asked: "ExecRequest",
    interrupts: Interrupts,
) -> "Result":
    from agentd.client.cli import waiting
    from agentd.client.cli.follow import Follow

    def stand_still() -> None:
        service.sandboxes.pause(view.id)
        interrupts.stop()
        service.sandboxes.resume(view.id)

    # A daemon's goes on when we stop, as do its other sandboxes.
    pauses = service.url is None and "pause" in view.abilities and not options.tty
    ticks = waiting.ticks(service, options, "run", view)
    if view.deadline is not None:
        lease = max(view.deadline - view.created, 1.0)
        ticks[lambda: service.sandboxes.renew(view.id, lease)] = lease / 3
    with interrupts.heeded():
        begun = service.commands.begin(
            view.id, asked, capture=options.json, cancel=interrupts.ended
        )
    with begun as running:
        Follow(
            running,
            interrupts,
            stdin=options.stdin,
            tty=options.tty,
            stand_still=stand_still if pauses else None,
            ticks=ticks,
        ).run()
        return running.finish()


class _Kept(NamedTuple):
    """What became of a sandbox's files. ``error`` is why no more did: the command has run, and what
    it did is told all the same."""

    saved: "Snapshot | None" = None
    changes: tuple[str, ...] | None = None
    applied: bool = False
    error: AgentdError | None = None


def _keep(
    service: "Service", view: "SandboxView", options: argparse.Namespace, *, ok: bool
) -> _Kept:
    kept = _Kept()
    try:
        if options.save_snapshot and ok:
            kept = kept._replace(saved=service.sandboxes.keep(view.id, options.save_snapshot))
        # A daemon of an older version tells no abilities.
        if "changes" in view.abilities or (options.workspace or "").endswith(":cow"):
            kept = kept._replace(changes=service.sandboxes.changes(view.id))
        if kept.changes and options.apply and ok:
            service.sandboxes.apply(view.id)
            kept = kept._replace(applied=True)
    except AgentdError as error:
        kept = kept._replace(error=error)
    return kept


def _report(
    service: "Service", view: "SandboxView", options: argparse.Namespace, result: "Result"
) -> int:
    from agentd.client.cli import output, refused, streams

    kept = _keep(service, view, options, ok=result.status == "ok")
    if options.json:
        via = service.url or "embedded"
        told = output.as_json(result, kept.changes, kept.saved, via=via, error=kept.error)
        streams.write_all(1, told)
    else:
        output.explain(result.cause, truncated=result.truncated)
        failed = result.status != "ok"
        refused.tell(service, view, failed=failed, verbose=options.verbose)
        if kept.changes is not None:
            output.list_changes(kept.changes, kept.applied)
        if kept.saved is not None:
            output.say(f"snapshot {kept.saved.id} of the sandbox is in {kept.saved.path}")
    if kept.error is not None:
        output.say(str(kept.error))
        return output.OWN_FAILURE
    return output.exit_code(result)
