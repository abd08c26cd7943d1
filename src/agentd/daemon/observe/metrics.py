"""The daemon's metrics for Prometheus. TABLE names all; docs/operations.md is checked by it."""

import platform
import threading
import time
from collections import Counter as Count
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from agentd._version import __version__
from agentd.daemon.observe.meter import Meter
from agentd.model.result import CauseCode

if TYPE_CHECKING:
    from agentd.daemon.admission.control import AdmissionControl
    from agentd.daemon.app import Daemon
    from agentd.daemon.commands.command import Command
    from agentd.daemon.observe.log import Log
    from agentd.daemon.sandboxes.live import Live
    from agentd.sandbox.journal.journal import Journal

_QUICK = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_LONG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1, 5, 30, 120, 600, 3600)
# Whatever else a wall says it ended of is one of a kind, and would be a series of its own.
_REASONS = frozenset(("destroyed", "lease_expired", "idle", "backend_lost"))
_OVER_QUOTA = frozenset(("quota_exceeded", "full"))
_Values = Mapping[Any, float]  # by the values of its labels


_MADE = "from pool or snapshot, by fork, or cold"


class Row(NamedTuple):
    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


TABLE = (
    Row("agentd_build_info", "gauge", ("version", "python"), "1"),
    Row("agentd_uptime_seconds", "gauge", (), "since the daemon came up"),
    Row("agentd_ready", "gauge", (), "1 while it takes work, 0 while it starts or drains"),
    Row("agentd_supervisor_up", "gauge", (), "1 while the supervisor of the sandboxes answers"),
    Row("agentd_requests_total", "counter", ("op", "code"), "calls, by their end: ok or an error"),
    Row("agentd_request_seconds", "histogram", ("op",), "how long calls took"),
    Row("agentd_quota_refusals_total", "counter", ("op", "code"), "calls refused for want of room"),
    Row("agentd_sandboxes", "gauge", ("backend", "level", "state"), "sandboxes there are now"),
    Row("agentd_sandboxes_made_total", "counter", ("backend", "source"), _MADE),
    Row("agentd_sandbox_seconds", "histogram", ("backend", "source"), "how long making one took"),
    Row("agentd_sandbox_ends_total", "counter", ("backend", "reason"), "why sandboxes ended"),
    Row(
        "agentd_pool_ready",
        "gauge",
        ("shelf",),
        "sandboxes kept ready, by image/level, or template/NAME",
    ),
    Row("agentd_commands_running", "gauge", (), "commands that run now"),
    Row("agentd_commands_total", "counter", ("backend", "cause"), "commands, by why they ended"),
    Row("agentd_command_seconds", "histogram", ("backend",), "how long commands ran, inside"),
    Row("agentd_command_cpu_seconds_total", "counter", ("backend",), "CPU time of ended commands"),
    Row("agentd_output_bytes_total", "counter", ("stream",), "output of commands"),
    Row("agentd_journal_lost_bytes_total", "counter", ("reason",), "output that was not kept"),
    Row("agentd_network_sandboxes", "gauge", (), "sandboxes whose network is one of rules"),
    Row(
        "agentd_network_connections_total",
        "counter",
        ("verdict",),
        "connections of these: allowed, or denied, names that were asked for too",
    ),
    Row(
        "agentd_network_bytes_total",
        "counter",
        ("direction",),
        "what connections that have ended sent and received",
    ),
    Row("agentd_network_asked_total", "counter", (), "connections that somebody was asked about"),
    Row("agentd_network_names_total", "counter", (), "names that were given an address"),
    Row("agentd_network_lost_total", "counter", (), "lines that nobody took in time"),
    Row("agentd_network_relay_starts_total", "counter", (), "relays that were started"),
    Row("agentd_network_relay_deaths_total", "counter", (), "relays that died, and were followed"),
    Row("agentd_store_commits_total", "counter", (), "transactions: many writes share one"),
    Row("agentd_store_writes_total", "counter", (), "writes in them: many share one"),
    Row("agentd_store_failures_total", "counter", (), "transactions that the disk refused"),
    Row("agentd_decisions_total", "counter", ("answer",), "of policies: allow, deny, undecided"),
    Row("agentd_audit_records_total", "counter", (), "records of the audit log"),
    Row("agentd_audit_commits_total", "counter", (), "syncs to disk: many records share one"),
    Row("agentd_audit_failures_total", "counter", (), "syncs that the disk refused"),
    Row("agentd_audit_lost_total", "counter", (), "events that could not be written down"),
    Row("agentd_audit_unsent_total", "counter", (), "records that sinks did not get"),
    Row("agentd_log_lines_total", "counter", ("level",), "lines of the log"),
    Row("agentd_log_dropped_total", "counter", (), "lines left out, for they came too fast"),
)
_ROWS = {row.name: row for row in TABLE}
#: Of the process itself, by prometheus-client.
PROCESS = (
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
)


class Metrics(Meter):
    """``watch`` a daemon, then ``render`` as often as Prometheus asks."""

    def __init__(self, log: "Log | None" = None) -> None:
        # A second series beside each, that nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = self._counter("agentd_requests_total")
        self._seconds = self._histogram("agentd_request_seconds", _QUICK)
        self._refusals = self._counter("agentd_quota_refusals_total")
        self._made = self._counter("agentd_sandboxes_made_total")
        self._making = self._histogram("agentd_sandbox_seconds", _QUICK)
        self._ends = self._counter("agentd_sandbox_ends_total")
        self._commands = self._counter("agentd_commands_total")
        self._ran = self._histogram("agentd_command_seconds", _LONG)
        self._cpu = self._counter("agentd_command_cpu_seconds_total")
        self._state = _State(log)
        self._registry.register(self._state)

    def watch(self, daemon: "Daemon") -> None:
        """Read the gauges from it from now on."""
        self._state.daemon = daemon

    def render(self) -> bytes:
        """Render it in the text format 0.0.4."""
        return generate_latest(self._registry)

    def request(self, op: str, status: str, seconds: float) -> None:
        self._requests(op, status).inc()
        self._seconds(op).observe(seconds)
        if status in _OVER_QUOTA:
            self._refusals(op, status).inc()

    def sandbox(self, live: "Live", source: str, seconds: float) -> None:
        labels = live.record.backend, source
        self._made(*labels).inc()
        self._making(*labels).observe(seconds)

    def sandbox_ended(self, live: "Live", reason: str) -> None:
        known = reason if reason in _REASONS else "lost"
        self._ends(live.record.backend, known).inc()

    def command(self, command: "Command") -> None:
        backend = command.listed.live.record.backend
        code = command.result.cause.code if command.result else CauseCode.BACKEND_LOST
        self._commands(backend, str(code)).inc()
        self._ran(backend).observe(command.usage.wall_ms / 1000)
        self._cpu(backend).inc(command.usage.cpu_ms / 1000)
        self._state.count(command)

    # The series of each by its labels: to find one takes the client longer than to count.

    def _counter(self, name: str) -> Callable[..., Counter]:
        row, short = _ROWS[name], name.removesuffix("_total")
        return cache(Counter(short, row.help, row.labels, registry=self._registry).labels)

    def _histogram(self, name: str, buckets: Sequence[float]) -> Callable[..., Histogram]:
        row = _ROWS[name]
        made = Histogram(name, row.help, row.labels, registry=self._registry, buckets=buckets)
        return cache(made.labels)


class _State(Collector):
    """Collects what is read when Prometheus asks, and not counted as it happens."""

    def __init__(self, log: "Log | None") -> None:
        self.daemon: Daemon | None = None
        self._log = log
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._output: Count[str] = Count()  # of commands that have ended
        self._lost: Count[str] = Count()
        self._told: tuple[Count[str], Count[str]] = Count(), Count()

    def count(self, command: "Command") -> None:
        """Count one that has ended."""
        with self._lock:
            _add(self._output, self._lost, command.listed.journal)

    def collect(self) -> Iterator[Metric]:
        yield _gauge("agentd_build_info", {(__version__, platform.python_version()): 1})
        yield _gauge("agentd_uptime_seconds", {(): round(time.monotonic() - self._began, 1)})
        if self._log is not None:
            lines = {(level,): count for level, count in self._log.lines.items()}
            yield _count("agentd_log_lines_total", lines)
            yield _count("agentd_log_dropped_total", {(): self._log.bound.dropped})
        if self.daemon is not None:
            yield from self._of(self.daemon)

    def _of(self, daemon: "Daemon") -> Iterator[Metric]:
        yield _gauge("agentd_ready", {(): int(not daemon.ready())})
        yield _gauge("agentd_supervisor_up", {(): int(not daemon.link.lost.is_set())})
        there: Count[tuple[str, ...]] = Count()
        for live in daemon.sandboxes.all():
            there[live.record.backend, live.record.level, str(live.handle.state)] += 1
        yield _gauge("agentd_sandboxes", there)
        sizes = {(shelf,): ready for shelf, ready in daemon.pool.sizes().items()}
        yield _gauge("agentd_pool_ready", sizes)
        running = daemon.commands.now()
        yield _gauge("agentd_commands_running", {(): len(running)})
        output, lost = self._sums(running)
        yield _count("agentd_output_bytes_total", {(name,): n for name, n in output.items()})
        yield _count("agentd_journal_lost_bytes_total", {(why,): n for why, n in lost.items()})
        counts = daemon.store.counts()
        yield _count("agentd_store_commits_total", {(): counts.commits})
        yield _count("agentd_store_writes_total", {(): counts.writes})
        yield _count("agentd_store_failures_total", {(): counts.failures})
        yield from _of_control(daemon.control)
        yield from _of_network(daemon.network())

    def _sums(self, running: "list[Command]") -> "tuple[Count[str], Count[str]]":
        with self._lock:
            output, lost = Count(self._output), Count(self._lost)
            for command in running:
                _add(output, lost, command.listed.journal)
            # One that ends while we look is in neither for a moment; a counter must not go back.
            self._told = output | self._told[0], lost | self._told[1]
            return self._told


def _of_control(control: "AdmissionControl") -> Iterator[Metric]:
    decisions = control.gate.decisions()
    yield _count("agentd_decisions_total", {(answer,): n for answer, n in decisions.items()})
    audit = control.counts
    for name in ("records", "commits", "failures", "lost", "unsent"):
        yield _count(f"agentd_audit_{name}_total", {(): audit[name]})


def _of_network(found: Mapping[str, int]) -> Iterator[Metric]:
    """Yield the supervisor's counts: they begin anew with it, and are 0 before the first
    network."""
    known = Count(found)
    yield _gauge("agentd_network_sandboxes", {(): known["sandboxes"]})
    for name, kinds in (("connections", ("allowed", "denied")), ("bytes", ("sent", "received"))):
        yield _count(f"agentd_network_{name}_total", {(kind,): known[kind] for kind in kinds})
    for name, key in (
        ("asked", "asked"),
        ("names", "names"),
        ("lost", "lost"),
        ("relay_starts", "starts"),
        ("relay_deaths", "deaths"),
    ):
        yield _count(f"agentd_network_{name}_total", {(): known[key]})


def _add(output: "Count[str]", lost: "Count[str]", journal: "Journal") -> None:
    for stream, size in journal.offsets.items():
        output[stream] += size
    for gap in journal.losses:
        lost[gap.reason] += gap.length


def _gauge(name: str, values: _Values) -> Metric:
    family = GaugeMetricFamily(name, _ROWS[name].help, labels=_ROWS[name].labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _count(name: str, values: _Values) -> Metric:
    row = _ROWS[name]
    family = CounterMetricFamily(name.removesuffix("_total"), row.help, labels=row.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family
