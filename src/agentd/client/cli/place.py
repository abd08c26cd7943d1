"""Where ``run`` and ``call`` happen: at a daemon, or in this process."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentd.client.http.address import Address
    from agentd.client.ports import Service
    from agentd.model.isolation import IsolationLevel


@contextmanager
def service(
    where: "Address | None", begin: "tuple[str | None, IsolationLevel, str] | None" = None
) -> "Iterator[Service]":
    """Open that daemon's service, or one of this process, which ends with the block.

    ``begin`` is the wall and the kind of network that will be asked for, so that their slow start
    goes on meanwhile.
    """
    if where is not None:
        from agentd.client.http.service import alone

        with closing(alone(where)) as made:
            yield made
        return
    from agentd.client import embedded
    from agentd.linux import process

    process.raise_file_limit()  # of a process of our own: who imports us has limits of their choice
    pipeline = embedded.new(begin)
    try:
        from agentd.client.embedded_service import EmbeddedService

        yield EmbeddedService(pipeline)
    finally:
        pipeline.manager.close()


@contextmanager
def making(
    where: "Address | None",
    command: str,
    options: argparse.Namespace,
    check: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Show a person at a terminal, in the block, how far a sandbox's making has come, or that it is
    waited for. ``check`` may raise to give it up."""
    if where is not None:
        from agentd.client.cli import slow

        with slow.told(command, where, options):
            yield
        return
    from agentd.client.cli.progress import Display
    from agentd.sandbox import progress

    display = Display(command, silent=options.json, check=check)
    with display, progress.listening(display):
        yield
