"""``agentd run`` with a daemon: the same, its sandbox renewed for as long as the command runs."""

import argparse
from typing import TYPE_CHECKING

from agentd.client.cli.interrupts import Interrupts
from agentd.client.cli.options import sandbox_options
from agentd.model.errors import Refused

if TYPE_CHECKING:
    from agentd.client.http.address import Address
    from agentd.client.http.sandbox import RemoteSandbox
    from agentd.model.result import Result
    from agentd.model.spec import ExecRequest


def run(
    where: "Address",
    options: argparse.Namespace,
    request: "ExecRequest",
    interrupts: Interrupts,
) -> int:
    from agentd.client.cli import held, slow
    from agentd.client.http import sandbox

    with interrupts.allowed():
        pass  # what came while we were busy ends us before anything is made
    try:
        with slow.told("run", where, options):
            made = sandbox.create(where, **sandbox_options(options))
    except Refused as error:
        if options.workspace or options.mount:
            error.remediation += "; or use --embedded, to mount with your own rights"
        raise
    try:
        held.tell(made.view.enforcement, "run", verbose=options.verbose, quiet=options.json)
        result = _execute(options, made, request, interrupts)
        return _report(options, made, result)
    finally:
        made.kill()


def _execute(
    options: argparse.Namespace,
    made: "RemoteSandbox",
    request: "ExecRequest",
    interrupts: Interrupts,
) -> "Result":
    from agentd.client.cli.follow import Follow

    view = made.view
    lease = None if view.deadline is None else max(view.deadline - view.created, 1.0)
    with made.start(request, capture=options.json) as running:
        Follow(
            running,
            interrupts,
            stdin=options.stdin,
            tty=options.tty,
            tick=None if lease is None else lambda: made.renew(lease),
            every=(lease or 0.0) / 3,
        ).run()
        return running.finish()


def _report(options: argparse.Namespace, made: "RemoteSandbox", result: "Result") -> int:
    from agentd.client.cli import output

    changes = None
    # A daemon of an older version tells no abilities.
    if "changes" in made.view.abilities or (options.workspace or "").endswith(":cow"):
        changes = made.changes()
    applied = bool(changes) and options.apply and result.status == "ok"
    if applied:
        made.apply()
    if options.json:
        line = output.as_json(result, changes, via=str(made.client.address))
        output.write_all(1, line)
    else:
        output.explain(result.cause, truncated=result.truncated)
        if changes is not None:
            output.list_changes(changes, applied)
    return output.exit_code(result)
