"""The daemon as a process: it comes up, takes signals, reloads, drains, and goes down.

SIGTERM and SIGINT drain; a second one ends at once, which loses nothing that was acknowledged.
SIGHUP reads the configuration again.
"""

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any

import msgspec

from agentd._version import __version__
from agentd.daemon import config as configuration
from agentd.daemon import entry
from agentd.daemon.app import Daemon
from agentd.daemon.config import RELOADED, Config
from agentd.daemon.listening import listen
from agentd.daemon.observe import meter, trace
from agentd.daemon.observe.log import Log
from agentd.daemon.observe.metrics import Metrics
from agentd.daemon.observe.observed import observed
from agentd.daemon.systemd import Notifier
from agentd.ingest.web.limits import Limits
from agentd.ingest.web.listeners import Listener
from agentd.ingest.web.server import Server
from agentd.linux.process import raise_file_limit
from agentd.model.errors import AgentdError

# Between the end of the drain and that of the connections: for the answers of ended commands.
_LAST_WORDS = 2.0
_LOOK_SECONDS = 1.0  # between looks at whether it works
# As of a daemon that cannot come up: neither is what it was told to do.
OWN_FAILURE = 125


def serve(
    load: Callable[[], Config],
    ready: Callable[[Sequence[str]], object],
    environ: MutableMapping[str, str] = os.environ,
) -> int:
    """Until a signal ends it: the exit code. ``ready`` is told the addresses once it takes work.

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
        _warn(log, config)
        # First: one that cannot listen leaves no state, and no log that looks like a daemon's.
        listeners = listen(config, environ)
        for listener in listeners:
            stack.callback(listener.close)
        daemon = Daemon(config, log.info, metrics or meter.NONE)
        stack.callback(daemon.close)
        if metrics is not None:
            metrics.watch(daemon)
        raise_file_limit()
        process = Process(load, daemon, log, notifier, metrics)
        asyncio.run(process.run(listeners, ready))
    code = OWN_FAILURE if process.is_broken else 0
    _end_threads(log, code)
    return code


class Process:
    """What happens between ready and the end; belongs to the event loop."""

    def __init__(
        self,
        load: Callable[[], Config],
        daemon: Daemon,
        log: Log,
        notifier: Notifier,
        metrics: Metrics | None,
    ) -> None:
        self._load = load
        self._daemon = daemon
        self._log = log
        self._notifier = notifier
        self._metrics = metrics
        self._ending = asyncio.Event()
        self._reload_wanted = asyncio.Event()
        self._names = ""
        self._passing = ""
        #: Ended because it could not work any more.
        self.is_broken = False

    async def run(
        self, listeners: Sequence[Listener], ready: Callable[[Sequence[str]], object]
    ) -> None:
        config = self._daemon.config
        service = observed(
            self._daemon.service, self._metrics or meter.NONE, self._log, self._daemon.forbidden
        )
        render = self._metrics.render if self._metrics is not None else None
        app = entry.application(
            service, _limits(config), render, public_metrics=config.metrics.public
        )
        server = Server(app, listeners)
        with self._signals():
            await server.start()
            self._daemon.unreachable = lambda: server.trouble
            tasks = [
                asyncio.create_task(work) for work in (self._reload_often(), self._watch(server))
            ]
            try:
                self._names = ", ".join(server.names)
                self._log.info("ready", listeners=server.names, profile=config.profile)
                self._notifier.ready(f"listening on {self._names}")
                ready(server.names)
                await self._ending.wait()
                await self._drain(server)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await server.close()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        handlers = {
            signal.SIGTERM: self._end,
            signal.SIGINT: self._end,
            signal.SIGHUP: self._reload_wanted.set,
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def _end(self) -> None:
        if self._ending.is_set():
            self._log.warning("ends at once, as it was told twice")
            os._exit(128 + signal.SIGTERM)
        self._ending.set()

    async def _drain(self, server: Server) -> None:
        """Requests that were taken are answered. Commands that somebody waits for may go on for a
        while, and are then ended, so that whoever waits is told."""
        seconds = float(self._daemon.config.daemon.drain)
        commands = self._daemon.commands
        self._log.info("draining", seconds=seconds, commands=commands.running())
        self._notifier.stopping(f"draining for at most {seconds:g} s")
        drained = asyncio.create_task(server.drain(seconds + _LAST_WORDS))
        # Whoever waits for one would wait for nothing.
        await _at_most(_LAST_WORDS, self._daemon.approvals.close)
        await asyncio.wait((drained,), timeout=seconds)
        if not drained.done():
            self._log.warning("ends what still runs", commands=commands.running())
            await _at_most(_LAST_WORDS, commands.end_awaited)
            await _at_most(_LAST_WORDS, self._daemon.service.ends.end)
        whole = await drained
        self._daemon.sandboxes.draining = True
        await _at_most(_LAST_WORDS, commands.wait_idle, _LAST_WORDS)
        self._log.info("drained", whole=whole, left_running=commands.running())

    async def _reload_often(self) -> None:
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            self._notifier.reloading()
            try:
                await asyncio.to_thread(self.reload)
            except Exception as error:
                self._log.error("the configuration is not taken over", error=str(error))
            self._notifier.ready(f"listening on {self._names}")

    def reload(self) -> None:
        """Raises AgentdError where the new configuration is wrong: the old one holds then."""
        old, read = self._daemon.config, self._load()
        found = configuration.changes(old, read)
        taken = {section: getattr(read, section) for section in RELOADED}
        new: Config = msgspec.structs.replace(old, **taken)
        self._daemon.reload(new)
        self._log.set(new.log.level, new.log.format)
        changed = found.reloaded or "nothing"
        self._log.info("the configuration is taken over", changed=changed)
        _warn(self._log, new)
        if found.waiting:
            self._log.warning("holds after the next start only", changed=found.waiting)

    def _tell_passing(self, trouble: str) -> None:
        """What may end by itself: a full disk, a socket that is gone."""
        before, self._passing = self._passing, trouble
        if trouble and trouble != before:
            self._log.error("is not ready", reason=trouble)
        elif before and not trouble:
            self._log.info("is ready again", was=before)

    async def _watch(self, server: Server) -> None:
        """Tell systemd that the loop goes round, as long as there is some use in that."""
        every = min(self._notifier.watchdog_seconds or _LOOK_SECONDS, _LOOK_SECONDS)
        trouble = ""
        while True:
            await server.look()
            before, trouble = trouble, self._daemon.trouble()
            self._tell_passing(self._daemon.full() or server.trouble)
            if trouble and trouble != before:
                self._log.error("cannot work", reason=trouble)
            if self._daemon.is_hopeless and not self._ending.is_set():
                self._log.error("ends, so that another is started", reason=trouble)
                self.is_broken = True
                self._ending.set()
            if not trouble:
                self._notifier.alive()
            await asyncio.sleep(every)


def announce(names: Sequence[str]) -> None:
    """The one line on standard output."""
    print(f"agentd {__version__} ready on {', '.join(names)} (pid {os.getpid()})", flush=True)


async def _at_most(seconds: float, call: Callable[..., Any], *args: Any) -> None:
    """In a thread that nobody waits for: it may be held up by what a sandbox does."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def work() -> None:
        with contextlib.suppress(AgentdError):
            call(*args)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=work, name="drain", daemon=True).start()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(done.wait(), seconds)


@contextlib.contextmanager
def _logging(log: Log) -> Iterator[None]:
    """What a thread dies of goes to the log, and what other packages log."""
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


def _warn(log: Log, config: Config) -> None:
    for doubt in configuration.doubts(config):
        log.warning("the configuration is doubtful", doubt=doubt)


def _limits(config: Config) -> Limits:
    http = config.http
    return Limits(
        connections=http.connections,
        waits=http.waiting,
        body=int(http.body),
        idle=float(http.idle),
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
