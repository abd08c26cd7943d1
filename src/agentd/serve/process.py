"""The daemon as a process: it takes signals, reloads, drains, and goes down.

SIGTERM and SIGINT drain; a second one ends at once, which loses nothing that was acknowledged.
SIGHUP reads the configuration again.
"""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from agentd.daemon import config as configuration
from agentd.daemon.app import Daemon
from agentd.daemon.config import RELOADED, Config
from agentd.daemon.observe.log import Log
from agentd.ingest.web.server import Server
from agentd.model.errors import AgentdError
from agentd.serve.gatekeeper import Gatekeeper
from agentd.serve.systemd import Notifier

# Between the end of the drain and that of the connections: for the answers of ended commands.
_LAST_WORDS = 2.0
_LOOK_SECONDS = 1.0  # between looks at whether it works


class DaemonProcess:
    """Runs a daemon from ready to its end; belongs to the event loop."""

    def __init__(
        self,
        load: Callable[[], Config],
        daemon: Daemon,
        gatekeeper: Gatekeeper,
        log: Log,
        notifier: Notifier,
    ) -> None:
        self._load = load
        self._daemon = daemon
        self._gatekeeper = gatekeeper
        self._log = log
        self._notifier = notifier
        self._ending = asyncio.Event()
        self._reload_wanted = asyncio.Event()
        self._names = ""
        self._passing = ""
        #: Ended because it could not work any more.
        self.is_broken = False

    async def run(self, server: Server, ready: Callable[[Sequence[str]], object]) -> None:
        profile = self._daemon.config.profile
        with self._signals():
            await server.start()
            self._daemon.unreachable = lambda: server.trouble
            tasks = [
                asyncio.create_task(work) for work in (self._reload_often(), self._watch(server))
            ]
            try:
                self._names = ", ".join(server.names)
                self._log.info("ready", listeners=server.names, profile=profile)
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
        self._daemon.begin_end()
        drained = asyncio.create_task(server.drain(seconds + _LAST_WORDS))
        await _at_most(_LAST_WORDS, self._daemon.end_waiting)
        await asyncio.wait((drained,), timeout=seconds)
        if not drained.done():
            self._log.warning("ends what still runs", commands=commands.running())
            await _at_most(_LAST_WORDS, commands.awaited.end)
        whole = await drained
        self._daemon.sandboxes.draining = True
        await _at_most(_LAST_WORDS, commands.awaited.wait_idle, _LAST_WORDS)
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
        chain = self._gatekeeper.chain(new)
        self._daemon.reload(new)
        self._gatekeeper.take(chain)
        self._log.set(new.log.level, new.log.format)
        changed = found.reloaded or "nothing"
        self._log.info("the configuration is taken over", changed=changed)
        warn(self._log, new)
        if found.waiting:
            self._log.warning("holds after the next start only", changed=found.waiting)

    def _tell_passing(self, trouble: str) -> None:
        """Tell what may end by itself: a full disk, a socket that is gone."""
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


def warn(log: Log, config: Config) -> None:
    for doubt in configuration.doubts(config):
        log.warning("the configuration is doubtful", doubt=doubt)


async def _at_most(seconds: float, call: Callable[..., Any], *args: Any) -> None:
    """Do it in a thread that nobody waits for: it may be held up by what a sandbox does."""
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
