"""A backend in a supervisor, as a daemon has it: streams come as descriptors."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from agentd.daemon.pipeline import Pipeline
from agentd.sandbox.manager import Manager
from agentd.sandbox.supervisor.client import SupervisorLink
from agentd.sandbox.supervisor.remote import loader
from agentd.sandbox.supervisor.server import Supervisor


class Supervised(NamedTuple):
    """``ended`` is set when the end of a sandbox was told."""

    pipeline: Pipeline
    supervisor: Supervisor
    ended: threading.Event


@contextlib.contextmanager
def supervised(backend: Any) -> Iterator[Supervised]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    supervisor = Supervisor(lambda _: backend)
    threads = [threading.Thread(target=supervisor.serve, args=(theirs,))]
    threads.append(threading.Thread(target=supervisor.watch))
    for thread in threads:
        thread.start()
    ended = threading.Event()
    link = SupervisorLink(ours, lambda *_: ended.set())
    pipeline = Pipeline(Manager(load=loader(link)))
    try:
        yield Supervised(pipeline, supervisor, ended)
    finally:
        pipeline.manager.close()
        supervisor.close()
        link.close()
        for thread in threads:
            thread.join()
