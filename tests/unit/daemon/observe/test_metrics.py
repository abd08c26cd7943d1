import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agentd.daemon.observe.log import Log
from agentd.daemon.observe.metrics import PROCESS, TABLE, Metrics
from agentd.daemon.store.sqlite import SqliteStore, WriteCounts
from agentd.model.api import ResultView
from agentd.model.result import Cause, CauseCode, SandboxInfo, Timing, Usage
from agentd.sandbox.journal.events import Gap

ROOT = Path(__file__).parents[4]
SUFFIXES = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("",), "gauge": ("",)}
LIVE: Any = SimpleNamespace(
    record=SimpleNamespace(backend="linux", level="namespace"),
    handle=SimpleNamespace(state="ready"),
)


def command(cause: CauseCode = CauseCode.EXITED, out: int = 10, lost: int = 0) -> Any:
    result = ResultView(
        request_id="req-1",
        status="ok",
        exit_code=0,
        signal=None,
        cause=Cause.of(cause, "it ended"),
        stdout="",
        stderr="",
        encoding="utf-8",
        truncated=False,
        usage=Usage(),
        timing=Timing(),
        sandbox=SandboxInfo("sbx-1", "linux", "namespace"),
        enforcement={},
        process="prc-1",
    )
    losses = [Gap("stdout", 0, lost, "disk_full")] if lost else []
    journal = SimpleNamespace(offsets={"stdout": out, "stderr": 1, "pty": 0}, losses=losses)
    usage = Usage(wall_ms=250.0, cpu_ms=100.0)
    listed = SimpleNamespace(live=LIVE, journal=journal)
    return SimpleNamespace(listed=listed, result=result, usage=usage)


class Fake:
    """As much of a daemon as is looked at."""

    def __init__(self) -> None:
        self.running: list[Any] = []
        self.why = ""
        self.lost = False
        self.ready = lambda: self.why
        self.link = SimpleNamespace(lost=SimpleNamespace(is_set=lambda: self.lost))
        self.sandboxes = SimpleNamespace(all=lambda: [LIVE, LIVE])
        self.pool = SimpleNamespace(sizes=lambda: {"default/namespace": 3})
        self.commands = SimpleNamespace(now=lambda: self.running)
        self.store = SimpleNamespace(counts=lambda: WriteCounts(2, 7, 1))
        self.counts = {"sandboxes": 2, "allowed": 5, "denied": 1, "sent": 7, "starts": 1}
        self.network = lambda: self.counts
        self.control = SimpleNamespace(
            counts={"commits": 3, "records": 9, "failures": 1, "lost": 2, "unsent": 5},
            gate=SimpleNamespace(
                decisions=lambda: {"allow": 6, "deny": 2, "undecided": 1},
            ),
        )


@pytest.fixture
def metrics() -> Iterator[tuple[Metrics, Any]]:
    found, daemon = Metrics(Log(write=lambda line: None)), Fake()
    watched: Any = daemon
    found.watch(watched)
    yield found, daemon


def values(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """By the name and the labels' values, in the order of their names."""
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def used(metrics: Metrics) -> Metrics:
    metrics.request("exec", "quota_exceeded", 0.001)
    metrics.sandbox(LIVE, "pool", 0.001)
    metrics.sandbox_ended(LIVE, "destroyed")
    metrics.command(command(lost=5))
    return metrics


def test_the_table_is_what_is_told(metrics: tuple[Metrics, Any]) -> None:
    text = used(metrics[0]).render().decode()
    told = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    ours = {name: kind for name, kind in told.items() if name.startswith("agentd_")}
    assert ours == {row.name: row.kind for row in TABLE}
    assert set(told) - set(ours) == set(PROCESS)
    for row in TABLE:
        labels = {
            name
            for found in re.findall(rf"^{row.name}(?:_bucket)?{{(.*?)}} ", text, re.M)
            for name in re.findall(r'(\w+)="', found)
        }
        assert labels - {"le"} == set(row.labels), row.name


def test_networks_are_told_of_as_the_supervisor_counts(metrics: tuple[Metrics, Any]) -> None:
    found = values(metrics[0])
    assert found["agentd_network_sandboxes",] == 2
    assert found["agentd_network_connections_total", "denied"] == 1
    assert found["agentd_network_bytes_total", "sent"] == 7
    assert found["agentd_network_bytes_total", "received"] == 0
    assert found["agentd_network_relay_starts_total",] == 1
    metrics[1].counts = {}  # of a supervisor of before, or where there was no network yet
    assert values(metrics[0])["agentd_network_relay_starts_total",] == 0


def test_calls_are_counted_by_their_end(metrics: tuple[Metrics, Any]) -> None:
    for status in ("ok", "ok", "not_found", "full", "quota_exceeded"):
        metrics[0].request("exec", status, 0.02)
    found = values(metrics[0])
    assert found["agentd_requests_total", "ok", "exec"] == 2
    assert found["agentd_requests_total", "not_found", "exec"] == 1
    assert found["agentd_request_seconds_count", "exec"] == 5
    assert found["agentd_request_seconds_bucket", "0.01", "exec"] == 0
    assert found["agentd_request_seconds_bucket", "0.025", "exec"] == 5
    refused = {key[1:] for key in found if key[0] == "agentd_quota_refusals_total"}
    assert refused == {("full", "exec"), ("quota_exceeded", "exec")}


def test_commands_are_counted_by_cause_and_backend(metrics: tuple[Metrics, Any]) -> None:
    metrics[0].command(command())
    metrics[0].command(command(CauseCode.OOM))
    found = values(metrics[0])
    assert found["agentd_commands_total", "linux", "exited"] == 1
    assert found["agentd_commands_total", "linux", "oom"] == 1
    assert found["agentd_command_seconds_sum", "linux"] == 0.5
    assert found["agentd_command_cpu_seconds_total", "linux"] == pytest.approx(0.2)


def test_why_a_sandbox_ended_is_one_of_few(metrics: tuple[Metrics, Any]) -> None:
    for reason in ("destroyed", "lease_expired", "killed by signal 9", "exit code 77"):
        metrics[0].sandbox_ended(LIVE, reason)
    found = values(metrics[0])
    assert found["agentd_sandbox_ends_total", "linux", "lost"] == 2
    assert len([key for key in found if key[0] == "agentd_sandbox_ends_total"]) == 3


def test_gauges_are_the_daemons_own(metrics: tuple[Metrics, Any]) -> None:
    found = values(metrics[0])
    assert found["agentd_sandboxes", "linux", "namespace", "ready"] == 2
    assert found["agentd_pool_ready", "default/namespace"] == 3
    assert found["agentd_ready",] == found["agentd_supervisor_up",] == 1
    assert found["agentd_store_writes_total",] == 7
    metrics[1].why, metrics[1].lost = "it drains", True
    found = values(metrics[0])
    assert found["agentd_ready",] == found["agentd_supervisor_up",] == 0


def test_what_policies_answer_and_what_the_audit_log_loses_is_counted(
    metrics: tuple[Metrics, Any],
) -> None:
    found = values(metrics[0])
    assert [found["agentd_decisions_total", a] for a in ("allow", "deny", "undecided")] == [6, 2, 1]
    counted = {
        name: found[f"agentd_audit_{name}_total",]
        for name in ("records", "commits", "failures", "lost", "unsent")
    }
    assert counted == {"commits": 3, "records": 9, "failures": 1, "lost": 2, "unsent": 5}


def test_output_is_counted_while_it_comes_and_never_goes_back(metrics: tuple[Metrics, Any]) -> None:
    one = command(out=100, lost=5)
    metrics[1].running = [one]
    found = values(metrics[0])
    assert found["agentd_output_bytes_total", "stdout"] == 100
    assert found["agentd_journal_lost_bytes_total", "disk_full"] == 5
    metrics[1].running = []  # it has ended, and is not counted yet
    assert values(metrics[0])["agentd_output_bytes_total", "stdout"] == 100
    metrics[0].command(one)
    found = values(metrics[0])
    assert found["agentd_output_bytes_total", "stdout"] == 100
    assert found["agentd_commands_running",] == 0


def test_the_store_counts_what_shares_a_commit(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "state"))
    try:
        store.write(lambda transaction: None)
        jobs = [store.submit(lambda transaction: None) for _ in range(50)]
        for job in jobs:
            job.result()
        counts = store.counts()
        assert counts.writes == 51 and counts.failures == 0
        assert 1 <= counts.commits <= 51
    finally:
        store.close()


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:agentd|process)_[a-z_]+", expression))


def existing() -> dict[str, tuple[str, ...]]:
    rows = {
        row.name + suffix: (*row.labels, "le") for row in TABLE for suffix in SUFFIXES[row.kind]
    }
    return rows | dict.fromkeys(PROCESS, ())


def test_the_dashboard_asks_for_what_there_is() -> None:
    board = json.loads((ROOT / "deploy/grafana-dashboard.json").read_text())
    there, scraped = existing(), {"instance", "job"}
    asked: set[str] = set()
    targets = [t for panel in board["panels"] for t in panel.get("targets", ())]
    assert len(targets) > 20
    for target in targets:
        names = names_in(target["expr"])
        assert names and names <= there.keys(), target["expr"]
        asked |= names
        labels = {label for name in names for label in there[name]} | scraped
        matchers = re.findall(r'(\w+)(?:=~|!=|!~|=)"', target["expr"])
        grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
        wanted = {*matchers, *(w.strip() for g in grouped for w in g.split(","))}
        wanted |= set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert wanted <= labels, target["expr"]
    shown = {name.removesuffix("_bucket") for name in asked}
    assert {row.name for row in TABLE} - shown == set(), "a metric that no panel shows"
    for variable in board["templating"]["list"][1:]:
        assert names_in(variable["query"]["query"]) <= there.keys()


def test_panels_lie_beside_each_other() -> None:
    board = json.loads((ROOT / "deploy/grafana-dashboard.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)


def test_the_manual_has_a_row_for_each_metric_and_no_other() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    rows = re.findall(r"^\| `(agentd_\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \|$", page, re.M)
    assert [(name, kind, labels, words) for name, kind, labels, words in rows] == [
        (row.name, row.kind, ", ".join(row.labels), row.help) for row in TABLE
    ]
