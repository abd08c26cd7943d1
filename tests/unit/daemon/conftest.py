"""A log, receipts and a key as a daemon has them."""

import pytest
from tests.unit.ingest.fake import until

from agentd.audit import read
from agentd.audit.issuing import AtOnce
from agentd.audit.keypair import KeyPair
from agentd.audit.log import AuditLog
from agentd.audit.receipts import ReceiptStore
from agentd.daemon.admission.gate import Gate
from agentd.daemon.admission.records import Records


class Kept:
    """The real log, in a folder of the test's."""

    def __init__(self, folder):
        self.folder = str(folder / "audit")
        self.log = AuditLog(self.folder)

    def raw(self):
        """All of its lines; the log is closed with that."""
        self.log.close()
        return b"".join(read.lines(self.folder))

    def records(self):
        self.log.close()
        return [r for r in read.records(self.folder) if r.kind != "opened"]

    def kinds(self):
        return [record.kind for record in self.records()]

    def until(self, kind):
        """Once it has one of that kind."""

        def found():
            return [r for r in read.records(self.folder) if r.kind == kind]

        until(lambda: bool(found()))
        return found()[0]


@pytest.fixture
def kept(tmp_path):
    found = Kept(tmp_path)
    yield found
    found.log.close()


@pytest.fixture
def receipts(tmp_path):
    found = ReceiptStore(str(tmp_path / "receipts"))
    yield found
    found.close()


@pytest.fixture
def key(tmp_path):
    return KeyPair.load_or_create(str(tmp_path / "receipt.key"))


@pytest.fixture
def records(kept, receipts, key):
    return Records(kept.log, AtOnce(receipts, key))


@pytest.fixture
def gate(records):
    """Makes one that asks this policy."""
    return lambda policy=None, **options: Gate(policy, records, **options)
