"""A daemon put together: what a configuration names, and nothing else, is loaded and started."""

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, MutableMapping, Sequence

from agentd._version import __version__
from agentd.daemon.app import Daemon
from agentd.daemon.config import Config
from agentd.daemon.config.schema import Listen
from agentd.daemon.observe import meter, trace
from agentd.daemon.observe.log import Log
from agentd.daemon.observe.metrics import Metrics
from agentd.ingest.web import web
from agentd.ingest.web.limits import WebLimits
from agentd.ingest.web.listeners import Listener
from agentd.ingest.web.server import Server
from agentd.linux.allocator import give_back_large_blocks
from agentd.linux.process import raise_file_limit
from agentd.model.port import PortDomain
from agentd.serve import doors
from agentd.serve.gatekeeper import Gatekeeper
from agentd.serve.listening import listen
from agentd.serve.process import DaemonProcess, warn
from agentd.serve.systemd import Notifier

# As of a daemon that cannot come up: neither is what it was told to do.
OWN_FAILURE = 125


def serve(
    load: Callable[[], Config],
    ready: Callable[[Sequence[str]], object],
    environ: MutableMapping[str, str] = os.environ,
) -> int:
    """Serve until a signal ends it; return the exit code. ``ready`` is told the addresses.

    Raises AgentdError where it cannot come up. To be called in the main thread.
    """
    config = load()
    notifier = Notifier(environ)
    log = Log(config.log.level, config.log.format)
    with _logging(log), contextlib.ExitStack() as stack:
        if trouble := trace.start():
            log.warning("no traces", reason=trouble)
        stack.callback(trace.stop)
        metrics = Metrics(log) if config.metrics.enabled else None
        warn(log, config)
        mounts = doors.load(name for one in config.listen for name in one.serves)
        # First: one that cannot listen leaves no state, and no log that looks like a daemon's.
        listeners = listen(config, environ)
        for listener, _ in listeners:
            stack.callback(listener.close)
        daemon = Daemon(config, log.info, metrics or meter.NONE, log)
        stack.callback(daemon.close)
        if metrics is not None:
            metrics.watch(daemon)
        raise_file_limit()
        give_back_large_blocks()
        gatekeeper = Gatekeeper(config, daemon)
        server = _server(daemon, gatekeeper, mounts, listeners, metrics)
        process = DaemonProcess(load, daemon, gatekeeper, log, notifier)
        asyncio.run(process.run(server, ready))
    code = OWN_FAILURE if process.is_broken else 0
    _end_threads(log, code)
    return code


def _server(
    daemon: Daemon,
    gatekeeper: Gatekeeper,
    loaded: dict[str, doors.MountFunction],
    listeners: Sequence[tuple[Listener, Listen]],
    metrics: Metrics | None,
) -> Server:
    """Put the doors on the listeners, in front of the gatekeeper."""
    config = daemon.config
    told = None if metrics is None else web.MetricsSource(metrics.render, config.metrics.public)
    set_ = config.ports.url
    daemon.links.domain = _found(listeners) if set_ is None else set_.domain
    domains = [PortDomain(), *([] if set_ is None else [set_.domain])]
    shared = web.Web(_limits(config), told, daemon.ready, domains)
    mounts = doors.mounted(loaded, shared, gatekeeper)
    found = doors.on_listeners([one.serves for _, one in listeners], shared, mounts)
    return Server(
        shared, gatekeeper, [(one, d) for (one, _), d in zip(listeners, found, strict=True)]
    )


def _found(listeners: Sequence[tuple[Listener, Listen]]) -> PortDomain | None:
    """Return where a browser of this machine finds ports, of which REST is the door."""
    for one, wanted in listeners:
        if one.is_local and "rest" in wanted.serves:
            scheme = "https" if one.tls is not None else "http"
            return PortDomain(scheme=scheme, port=one.socket.getsockname()[1])
    return None


def announce(names: Sequence[str]) -> None:
    """The one line on standard output."""
    print(f"agentd {__version__} ready on {', '.join(names)} (pid {os.getpid()})", flush=True)


@contextlib.contextmanager
def _logging(log: Log) -> Iterator[None]:
    """Send what a thread dies of to the log, and what other packages log."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        name = args.thread.name if args.thread else "?"
        log.error("a thread broke", thread=name, exc_info=args.exc_value)

    log.capture()
    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
        log.release()


def _limits(config: Config) -> WebLimits:
    http = config.http
    return WebLimits(
        connections=http.connections, waits=http.waiting, body=int(http.body), idle=float(http.idle)
    )


def _end_threads(log: Log, code: int) -> None:
    """Python waits at its end for threads that a sandbox holds up. All is on disk by now."""
    left = [
        t.name for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()
    ]
    if left:
        log.warning("leaves threads behind", threads=left)
        sys.stdout.flush()
        os._exit(code)
