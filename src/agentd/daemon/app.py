"""The daemon put together: what it holds, in which order it comes up, and how it goes down."""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from agentd.audit.errors import AuditError
from agentd.daemon import seal
from agentd.daemon.admission.approvals import Approvals
from agentd.daemon.admission.control import AdmissionControl
from agentd.daemon.admission.parked import Parked, ended_note
from agentd.daemon.admission.signed import SignedRequests
from agentd.daemon.calls.calls import Calls
from agentd.daemon.calls.places import Places
from agentd.daemon.commands.commands import Commands
from agentd.daemon.config import Config
from agentd.daemon.disk import Disk, make_room
from agentd.daemon.events import EventFeed
from agentd.daemon.idempotency import Idempotency
from agentd.daemon.keyed import KeyedBounds
from agentd.daemon.observe import meter
from agentd.daemon.observe.log import EventReport, Log
from agentd.daemon.observe.observed import Observer
from agentd.daemon.packages import rules
from agentd.daemon.pipeline import Pipeline
from agentd.daemon.sandboxes.adoption import reason_of
from agentd.daemon.sandboxes.asked import AskedConnections
from agentd.daemon.sandboxes.endings import Endings
from agentd.daemon.sandboxes.live import Live
from agentd.daemon.sandboxes.pools import Pools
from agentd.daemon.sandboxes.sandboxes import Sandboxes
from agentd.daemon.sandboxes.snapshots import Snapshots
from agentd.daemon.sandboxes.supervision import Supervision
from agentd.daemon.secrets import SecretStore
from agentd.daemon.service.keystore import StoredKeys, key_service
from agentd.daemon.service.links import Links
from agentd.daemon.service.nonces import StoredNonces
from agentd.daemon.service.noun import Parts
from agentd.daemon.service.quotas import Ledger
from agentd.daemon.service.repeats import Repeats
from agentd.daemon.service.retention import Retention, journals_of
from agentd.daemon.service.service import DaemonService
from agentd.daemon.store.records import SandboxRecord
from agentd.daemon.store.sqlite import SqliteStore
from agentd.model.api import Stats
from agentd.model.audit import Kind
from agentd.model.errors import AgentdError, Forbidden, InvalidInput, Refused
from agentd.model.events import EventKind
from agentd.model.late_clock import LateClock
from agentd.sandbox import guard
from agentd.sandbox.backends import identity
from agentd.sandbox.manager import Manager
from agentd.sandbox.supervisor import client, remote
from agentd.sandbox.volumes import VolumeStore

if TYPE_CHECKING:
    from agentd.auth.keys import KeyService

_TICK_SECONDS = 0.5
_MAX_PATH = 100  # sun_path has 108 bytes, and the supervisor's lock and log lie beside it


class Daemon:
    """Owns all that a daemon has. Raises AgentdError where it cannot come up."""

    def __init__(
        self,
        config: Config,
        report: EventReport,
        counts: meter.Meter = meter.NONE,
        log: Log | None = None,
    ) -> None:
        """``counts`` and ``log`` are told of each call of the service."""
        self.config = config
        self._report = report
        #: Why nobody can connect to it, which the listeners know; "" at first.
        self.unreachable: Callable[[], str] = lambda: ""
        self.links = Links()
        self._closing = threading.Event()
        self._up, self._began = False, time.time()
        self.observer = Observer(counts, log, self.denied)
        state = str(config.daemon.state)
        socket_path = os.path.join(state, "supervisor.sock")
        if len(socket_path) > _MAX_PATH:
            raise InvalidInput(
                f"the state directory {state} has too long a path",
                remediation=f"give one of at most {_MAX_PATH - 16} bytes with --state",
            )
        with contextlib.ExitStack() as undo:
            make_room(state)
            # First of all: it refuses where another daemon has this state.
            self.store = SqliteStore(state)
            undo.callback(self.store.close)
            self.journals = journals_of(config.journal, self.store)
            undo.callback(self.journals.close)
            identity.configure(config.ids.range())
            # Walls may end from the first moment on, before anything else of us is there.
            self._endings, self.asked = Endings(), AskedConnections()
            undo.callback(self._endings.close)
            self.link = client.connect(socket_path, self._endings.tell, self.asked.tell)
            undo.callback(self.link.close)
            self.manager = Manager(
                load=remote.loader(self.link),
                allowed=lambda: self.config.sandbox.backends,
                least=lambda: self.config.sandbox.level,
            )
            self.events = EventFeed()
            self.approvals = Approvals(
                self.store, lambda: self.config.approvals, publish=self.events.publish
            )
            self._damage = ""  # of the audit log, as it was told last
            self.control = AdmissionControl(
                state,
                config.policy,
                config.audit,
                Parked(self.approvals),
                config.capabilities,
                publish=self.events.publish,
            )
            undo.callback(self.control.close)
            self.pipeline = Pipeline(self.manager, self.control.gate, lambda: rules.of(self.config))
            self.ledger = Ledger(config.quotas)
            self.pool = Pools(lambda: self.config, self.manager, self.control.gate, report)
            undo.callback(self.pool.close)
            self.commands = Commands(
                self.store,
                self.control.gate,
                self.journals,
                self.ledger,
                counts,
                self.events.publish,
            )
            self.sandboxes = Sandboxes(
                lambda: self.config,
                self.store,
                self.link,
                self.pipeline,
                self.pool,
                self.ledger,
                self._on_sandbox_made,
                self._on_sandbox_end,
                counts,
                self.events.publish,
            )
            self.keys = StoredKeys(self.store)
            self._nonces = StoredNonces(self.store, time.time())
            self._retention = self._retained()
            self.signed = self._signed_requests(config)
            self._idempotency = self._remembering(state)
            #: ``of(caller)`` is what that one, who has been authenticated, may ask.
            self.of = partial(DaemonService, self._put_together(state))
            self._adopt()
            self._endings.start(self.sandboxes.lost)
            self._supervision = Supervision(
                self.link, socket_path, self.sandboxes.sort_out, self._lose_all, report
            )
            # Not before: walls that no record tells of are taken for those of the daemon before.
            self.pool.reshape()
            undo.pop_all()
        self._disk = Disk(state, self._disk_failures, self.store.missing)
        self._timer = threading.Thread(target=self._keep_time, name="daemon-timer", daemon=True)
        self._timer.start()
        self._up = True

    def ready(self) -> str:
        """Return why it takes no work, or ""."""
        if not self._up:
            return "it is starting"
        if self.sandboxes.draining:
            return "it is about to end"
        return self.trouble() or self.full() or self.unreachable() or self.control.damage

    def reload(self, config: Config) -> None:
        """Take over what a running daemon can, or nothing: then it raises AgentdError."""
        signed = self._signed_requests(config)
        self.control.reload(config.policy)
        self.signed = signed
        self.config, self.ledger.quotas = config, config.quotas
        self.pool.want()

    def denied(self, op: str, who: str, sandbox: str, error: Refused) -> None:
        """Write down what a principal's scopes or quotas do not let it do: no policy has refused
        it."""
        code = {} if isinstance(error, Forbidden) else {"code": error.code}
        with contextlib.suppress(AuditError):
            self.control.denied(who, sandbox, op=op, reasons=[str(error)], **code)

    def begin_end(self) -> None:
        """Note that what is cut off from now on is so because we shut down. Never blocks."""
        self.control.records.shuts_down = True

    def end_waiting(self) -> None:
        """Tell those who wait for an approval or for room: they would wait for nothing."""
        self.ledger.close()
        self.asked.close()
        self.approvals.close()

    def close(self) -> None:
        """Go down. Sandboxes stay for the next daemon, until their leases end; idempotent."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._timer.join()
        self.end_waiting()
        self.pool.close()
        self.link.close()
        self._endings.close()
        self.journals.close()
        self.control.close()
        self._nonces.close()
        self.store.close()

    def _retained(self) -> Retention:
        more = (
            lambda _: self._nonces.forget(time.time() - float(self.config.auth.signed.max_age)),
            self.approvals.sweep,
            lambda _: self.commands.parts.forget(time.time()),
            lambda _: self._idempotency.sweep(),
        )
        return Retention(lambda: self.config, self.store, self.journals, self.keys, more=more)

    def _put_together(self, state: str) -> Parts:
        snapshots = Snapshots(os.path.join(state, "snapshots"))
        snapshots.sweep()
        gate, sandboxes = self.control.gate, self.sandboxes
        places = Places(lambda: self.config, sandboxes, self.commands)
        calls = Calls(self.control.registry, gate, places)
        return Parts(
            config=lambda: self.config,
            keys=self._key_service,
            signed=lambda: self.signed,
            idempotency=lambda: self._idempotency,
            stats=self._stats,
            ledger=self.ledger,
            pipeline=self.pipeline,
            sandboxes=sandboxes,
            commands=self.commands,
            snapshots=snapshots,
            volumes=VolumeStore(os.path.join(state, "volumes")),
            secrets=SecretStore(os.path.join(state, "secrets.json")),
            calls=calls,
            approvals=self.approvals,
            asked=self.asked,
            control=self.control,
            events=self.events,
            repeats=Repeats(
                lambda: self.config, gate, calls, sandboxes, snapshots, lambda: self.signed
            ),
            links=self.links,
            observer=self.observer,
        )

    def _stats(self) -> Stats:
        return Stats(
            sandboxes=len(self.sandboxes.all()),
            processes=self.commands.running(),
            pool=self.pool.sizes(),
            queue=self.ledger.waiting,
            totals={
                "commands": self.commands.count,
                "uptime_seconds": round(time.time() - self._began, 1),
            },
        )

    def _remembering(self, state: str) -> Idempotency:
        kept, secret = self.config.idempotency, seal.of_state(state)
        bounds = KeyedBounds(ttl=float(kept.keep), keys=kept.keys, bytes=int(kept.answers))
        return Idempotency(self.store, secret, bounds, past=LateClock(lambda: bounds.ttl))

    def _key_service(self) -> "KeyService":
        return key_service(self.config, self.keys)

    def _signed_requests(self, config: Config) -> SignedRequests:
        signed = SignedRequests(config.auth.signed, self._nonces)
        for problem in signed.problems:
            self._report("a signer is not trusted", problem=problem)
        return signed

    def _adopt(self) -> None:
        before = self.control.before()

        def tell(record: SandboxRecord) -> None:
            if record.id not in before.sandboxes_ended:  # a daemon before died as it ended it
                self._tell_end(record, reason_of(record), written=True)

        adopted, gone = self.sandboxes.adopt(tell)
        self.asked.start(self.link, self.control.gate, self.sandboxes.all)
        going = sum(self.commands.adopt(live, before.ended) for live in self.sandboxes.all())
        paused = {
            request
            for live in self.sandboxes.all()
            for request in self.commands.end_unheard(live, before.started(live.id), before.end_one)
        }
        ended = before.end(self.commands.taken_over | paused, time.time())
        if ended:
            self._report("ended what the daemon before had begun", executions=ended)
        if adopted or gone:
            self._report("went on after a restart", sandboxes=adopted, commands=going, reaped=gone)

    def _on_sandbox_made(self, live: Live) -> None:
        # That it was asked for is in the log already; this tells which one came of it.
        record = live.record
        self.commands.list_begun(live)
        about = {"backend": record.backend, "level": record.level, **live.origin}
        with contextlib.suppress(AgentdError):
            self.control.note(Kind.SANDBOX_CREATED, record.principal, live.id, lazily=True, **about)
        self.events.publish(EventKind.CREATED, record.principal, live.id, **about)

    def _on_sandbox_end(self, live: Live, reason: str) -> None:
        self.commands.sandbox_ended(live)
        with contextlib.suppress(AgentdError):
            self.approvals.sandbox_ended(live.id, ended_note(live.handle.ended_for(0)))
        self._tell_end(live.record, reason, live.why)

    def _tell_end(
        self, record: SandboxRecord, reason: str, why: str = "", *, written: bool = False
    ) -> None:
        who, about = (record.principal, record.id), {"reason": reason}
        about |= {"why": why} if why else {}
        with contextlib.suppress(AgentdError):
            self.control.note(Kind.SANDBOX_ENDED, *who, lazily=not written, **about)
        self.events.publish(EventKind.ENDED, *who, **about)
        self._report("sandbox ended", sandbox=record.id, **about)

    def _keep_time(self) -> None:
        works = (
            self._supervision.look,
            self.sandboxes.expire,
            self.sandboxes.rest,
            self._retention.tick,
            self._look_at_log,
            self._disk.look,
            self.pool.look,
            self.control.denials.tick,
        )
        while not self._closing.wait(_TICK_SECONDS):
            for work in works:
                try:
                    work()
                except AgentdError as error:
                    self._report(f"{error}")
                except Exception as error:  # the others are done all the same
                    guard.tell(error)

    def trouble(self) -> str:
        """Return why it cannot work, for the moment or for good; "" where it can."""
        if dead := self._dead_threads():
            return f"its thread for the {dead[0]} has ended; the log tells of what"
        return self._supervision.trouble

    def network(self) -> dict[str, int]:
        """Return what the sandboxes' networks have done, as of some seconds ago."""
        return self._supervision.network

    def full(self) -> str:
        """Return what the disk refuses, or has no more; "" where it takes all. That may come back
        by itself."""
        return self._disk.trouble

    def _disk_failures(self) -> int:
        return self.store.counts().failures + self.control.counts.get("failures", 0)

    @property
    def is_hopeless(self) -> bool:
        """Return whether it will not work again by itself: its service manager starts another."""
        return self._supervision.hopeless or bool(self._dead_threads())

    def _dead_threads(self) -> list[str]:
        threads = {
            "leases": self._timer.is_alive(),
            "ends of walls": self._endings.works,
            "store": self.store.works,
            "journals": self.journals.works,
            "pool": self.pool.works,
        }
        gone = [name for name, lives in threads.items() if not lives]
        return [] if self._closing.is_set() else gone

    def _look_at_log(self) -> None:
        """Look whether its files are there: they may go while nothing is written."""
        before, now = self._damage, self.control.look()
        self._damage = now
        if now != before:
            told = "not as it was written" if now else "whole again"
            self._report(f"the audit log is {told}", problem=now or before)

    def _lose_all(self) -> None:
        """The kernel has ended them all."""
        for live in self.sandboxes.all():
            self.sandboxes.end(live, "backend_lost")
