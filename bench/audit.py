"""The audit log and receipts: what a record costs, on disk, and how many there can be."""

import os
import tempfile
import threading
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from stats import Case, Row, Target, milliseconds

THREADS = 32
EACH = 1000  # appends of one thread, in one sample
SAMPLES = 5
RECORDS = 200_000  # to verify
RECEIPTS = 2000
NOTE = "one record of an execution's end, about 500 bytes; the log on the disk of this checkout"
HERE = Path(__file__).resolve().parent / "out"  # a tmpfs would make fsync free
DIGEST = f"sha256:{sha256(b'').hexdigest()}"


def audit(rounds: int) -> list[Case]:
    HERE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="audit-", dir=HERE) as folder:
        return [
            _latency(Path(folder, "one"), rounds),
            _rate(Path(folder, "many")),
            _verify(Path(folder, "whole")),
            _receipts(Path(folder, "receipts")),
        ]


def _event() -> Any:
    from agentd.model.audit import Event, Kind

    return Event(
        kind=Kind.END,
        principal="uid:1000",
        request="req-0123456789abcdef",
        sandbox="sbx-abcdefghijkl",
        capability="shell.exec.v1",
        fields={
            "cause": "exited",
            "exit_code": 0,
            "usage": {"wall_ms": 12.5, "cpu_ms": 3.25, "peak_memory_bytes": 12_345_678},
            "argv": DIGEST,
        },
    )


def _latency(folder: Path, rounds: int) -> Case:
    from agentd.audit.log import AuditLog

    case = Case("audit-append", "one record, one caller", "ms", note=NOTE)
    log, event = AuditLog(str(folder)), _event()
    fd = os.open(folder / "raw", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def raw() -> None:
        os.write(fd, b"x" * 500)
        os.fdatasync(fd)

    rows = [
        Row("append: chained, on disk", "", []),
        Row("write and fdatasync of 500 bytes", "", []),
    ]

    def measure() -> None:
        for _ in range(rounds):  # in turns: the disk is not always the same
            for row, work in zip(rows, (lambda: log.append(event), raw), strict=True):
                row.samples += [milliseconds(work) for _ in range(10)]

    thread = threading.Thread(target=measure)  # as the daemon's requests are
    thread.start()
    thread.join()
    os.close(fd)
    log.close()
    case.rows = rows
    target = Target("append at most 1.5 fdatasyncs", case.ratio(rows[0].name, rows[1].name), 1.5)
    case.targets = [target]
    return case


def _rate(folder: Path) -> Case:
    from agentd.audit.log import AuditLog

    case = Case("audit-rate", f"records a second, {THREADS} callers that wait", "per s", note=NOTE)
    log, event = AuditLog(str(folder)), _event()

    def work() -> None:
        for _ in range(EACH):
            log.append(event)

    row = Row("append: chained, on disk", "", [_together(work) for _ in range(SAMPLES)])
    counts = log.counts
    log.close()
    case.rows = [row]
    case.note = f"{NOTE}; {counts.records / counts.commits:.1f} records an fsync"
    case.targets = [Target("append at least 20000 a second", row.median, 20_000, True)]
    return case


def _together(work: Callable[[], None]) -> float:
    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return THREADS * EACH / (time.perf_counter() - begin)


def _verify(folder: Path) -> Case:
    from agentd.audit.chain import Chain
    from agentd.audit.record import entry
    from agentd.audit.verify import verify

    case = Case("audit-verify", "records verified a second", "per s", note=NOTE)
    folder.mkdir()
    chain = Chain(str(folder))
    bodies = [entry(_event(), time.time()).body] * 500
    for _ in range(RECORDS // len(bodies)):
        chain.write(bodies)
    head = chain.head
    chain.close()
    samples = []
    for _ in range(SAMPLES):
        begin = time.perf_counter()
        verdict = verify(str(folder), head)
        samples.append(verdict.records / (time.perf_counter() - begin))
        assert verdict.ok and verdict.records == RECORDS
    case.rows = [Row("verify, with a head", "", samples)]
    case.targets = [Target("verify at least 300000 a second", case.rows[0].median, 300_000, True)]
    return case


def _receipts(folder: Path) -> Case:
    from agentd.audit import receipt
    from agentd.audit.keypair import KeyPair
    from agentd.audit.receipts import ReceiptStore
    from agentd.model.audit import Position

    case = Case("audit-receipts", "a signed receipt", "ms")
    key = KeyPair.load_or_create(str(folder / "key"))
    kept = ReceiptStore(str(folder / "kept"))
    facts = receipt.ReceiptFacts(_execution(), Position(7, "0" * 64))
    pem, envelope = key.public_pem(), receipt.issue(facts, key)
    works: dict[str, Callable[[int], object]] = {
        "issue and store": lambda n: kept.put(f"req-{n}", receipt.issue(facts, key)),
        "get": lambda n: kept.get(f"req-{n}"),
        "verify": lambda _: receipt.verify(envelope, pem),
    }
    for name, work in works.items():
        row = Row(name, "", [])
        for number in range(RECEIPTS):
            row.samples.append(milliseconds(lambda n=number, work=work: work(n)))
        case.rows.append(row)
    kept.close()
    case.note = f"{len(envelope)} bytes, with {len(facts.execution.enforcement)} controls"
    case.targets = [Target("issue and store at most 0.2 ms", case.median("issue and store"), 0.2)]
    return case


def _execution() -> Any:
    from agentd.audit.receipt import Decided, Execution
    from agentd.model.enforcement import Control
    from agentd.model.result import Cause, CauseCode

    controls = {
        f"control_{number}": Control("default", True, "as the kernel enforces it")
        for number in range(16)
    }
    return Execution(
        principal="uid:1000",
        request="req-0123456789abcdef",
        request_digest=DIGEST,
        sandbox="sbx-abcdefghijkl",
        capability="shell.exec.v1",
        decision=Decided(True, DIGEST, ("the default bundle allows it",)),
        backend="linux",
        level="namespace",
        code_digest=DIGEST,
        outputs={"stdout": DIGEST, "stderr": DIGEST},
        enforcement=controls,
        cause=Cause.of(CauseCode.EXITED, "it ended by itself"),
        exit_code=0,
        started=time.time(),
        ended=time.time(),
    )
