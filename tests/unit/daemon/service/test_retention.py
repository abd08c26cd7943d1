from pathlib import Path

from agentd.daemon.config.schema import Config
from agentd.daemon.service.keystore import StoredKeys
from agentd.daemon.service.retention import Retention
from agentd.daemon.store.records import ProcessRecord, SandboxRecord
from agentd.daemon.store.sqlite import SqliteStore
from agentd.model.late_clock import LateClock
from agentd.model.spec import SandboxSpec
from agentd.sandbox.journal.journals import Journals

NOW = 1_000_000.0
HOUR = 3600.0


def sandbox(id_: str, ended: float | None) -> SandboxRecord:
    return SandboxRecord(
        id=id_, principal="a", spec=SandboxSpec(), backend="linux", level="namespace",
        state="ready" if ended is None else "ended", created=1.0, ended=ended,
    )  # fmt: skip


def process(id_: str, ended: float | None) -> ProcessRecord:
    return ProcessRecord(
        id=id_, sandbox="sbx-1", principal="a", argv=("true",),
        state="running" if ended is None else "ended", created=1.0, ended=ended,
        journal=f"sbx-1/{id_}",
    )  # fmt: skip


def test_what_ended_long_ago_goes_with_its_output_and_the_rest_stays(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "store"))
    journals = Journals(str(tmp_path / "journals"))
    for record in (
        sandbox("sbx-1", None),
        sandbox("sbx-2", NOW - 2 * HOUR),
        sandbox("sbx-3", NOW - 10),
        process("prc-1", None),
        process("prc-2", NOW - 2 * HOUR),
        process("prc-3", NOW - 10),
    ):
        store.write(lambda t, record=record: t.put(record))
    for name in ("prc-2", "prc-3"):
        journal = journals.create(f"sbx-1/{name}")
        journal.append("stdout", b"x" * 100)
        journal.finish()
        journal.flush()
    told: list[float] = []

    def more(now: float) -> int:
        told.append(now)
        return 5

    keeper = Retention(Config, store, journals, StoredKeys(store), lambda: NOW, more=(more,))
    assert keeper.sweep() == 2 + 5
    assert keeper.sweep() == 5
    assert told == [NOW, NOW]
    assert [r.id for r in store.find(SandboxRecord)] == ["sbx-1", "sbx-3"]
    assert [r.id for r in store.find(ProcessRecord)] == ["prc-1", "prc-3"]
    journals.close()
    store.close()
    left = sorted(path.name for path in (tmp_path / "journals").rglob("*") if path.is_file())
    assert len(left) == 1 and left[0].startswith("prc-3")


def test_each_leap_of_the_clock_is_followed_in_its_time() -> None:
    """A machine that sleeps every night has one every morning."""
    passed, leapt = 0.0, 0.0
    late = LateClock(lambda: HOUR, lambda: NOW + passed + leapt, lambda: passed)
    passed, leapt = 600.0, 24 * HOUR
    assert late() == NOW + passed
    passed, leapt = 2400.0, 48 * HOUR
    assert late() == NOW + passed
    passed = 600 + HOUR
    assert late() == NOW + passed + 24 * HOUR
    passed = 2400 + HOUR
    assert late() == NOW + passed + 48 * HOUR


def test_a_leap_of_the_clock_takes_nothing_before_its_time(tmp_path: Path) -> None:
    """What is kept for an hour after its end is kept for an hour, whoever sets the clock."""
    store = SqliteStore(str(tmp_path / "store"))
    journals = Journals(str(tmp_path / "journals"))
    passed, leapt = 0.0, 0.0
    late = LateClock(lambda: HOUR, lambda: NOW + passed + leapt, lambda: passed)
    keeper = Retention(Config, store, journals, StoredKeys(store), late)

    def kept() -> list[str]:
        keeper.sweep()
        return [record.id for record in store.find(ProcessRecord)]

    store.write(lambda t: t.put(process("prc-1", NOW)))
    passed, leapt = 600.0, 24 * HOUR
    assert kept() == ["prc-1"]
    store.write(lambda t: t.put(process("prc-2", NOW + passed + leapt)))
    passed = HOUR - 1
    assert kept() == ["prc-1", "prc-2"]
    passed = HOUR + 1
    assert kept() == ["prc-2"]
    passed = 600 + HOUR + 1
    assert kept() == []
    store.write(lambda t: t.put(process("prc-3", NOW + passed + leapt)))
    leapt = 0.0
    assert kept() == ["prc-3"]
    passed += HOUR
    assert kept() == ["prc-3"], "its end was written by the other clock"
    journals.close()
    store.close()
