"""When receipts are issued: at once, or behind the answer that names them.

To sign one takes as long as to write its record, and it says what the record says, which is on
disk. So a daemon does it some milliseconds later, or when somebody asks for it; what it had not
done when it was killed, it does when it is started again.
"""

import contextlib
import threading
from itertools import takewhile
from queue import Empty, SimpleQueue

from agentd.audit import reissue
from agentd.audit.errors import AuditError
from agentd.audit.keypair import KeyPair
from agentd.audit.receipt import ReceiptFacts, issue
from agentd.audit.receipts import ReceiptStore

DELAY_SECONDS = 0.02
RETRY_SECONDS = 1.0  # after one that could not be kept: of a full disk, say
MAX_WAITING = 1024  # more are issued at once


class AtOnce:
    """Thread-safe."""

    def __init__(self, receipts: ReceiptStore, key: KeyPair) -> None:
        self._receipts = receipts
        self._key = key

    def keep(self, facts: ReceiptFacts) -> None:
        """Keep a receipt. One that cannot be kept can be issued again from its record: no error."""
        self._put(facts)

    def _put(self, facts: ReceiptFacts) -> bool:
        """Return False where there may be room for it later."""
        try:
            self._receipts.put(facts.execution.request, issue(facts, self._key))
        except AuditError as error:
            return not isinstance(error.__cause__, OSError)
        return True

    def get(self, id_: str) -> bytes | None:
        """Raises AuditError."""
        return self._receipts.get(id_)

    def close(self) -> None:
        """The receipts and the key are the caller's."""


class Behind(AtOnce):
    """With a thread; ``close`` issues what waits."""

    def __init__(self, receipts: ReceiptStore, key: KeyPair, log_directory: str) -> None:
        super().__init__(receipts, key)
        self._log_directory = log_directory
        self._guard = threading.Lock()
        self._waiting: dict[str, ReceiptFacts] = {}
        self._closed = False
        self._wake: SimpleQueue[bool] = SimpleQueue()  # whether to go on
        self._thread = threading.Thread(target=self._run, name="agentd-receipts", daemon=True)
        self._thread.start()

    def keep(self, facts: ReceiptFacts) -> None:
        with self._guard:
            wakes = not self._waiting
            waits = len(self._waiting) < MAX_WAITING and not self._closed
            if waits:
                self._waiting[facts.execution.request] = facts
                if wakes:
                    self._wake.put(True)
        if not waits:
            super().keep(facts)

    def get(self, id_: str) -> bytes | None:
        with self._guard:
            facts = self._waiting.get(id_)
        if facts is None:
            return super().get(id_)
        self._put(facts)  # maybe twice: it is the same each time
        return issue(facts, self._key)

    def close(self) -> None:
        """Idempotent."""
        with self._guard:
            if not self._closed:
                self._closed = True
                self._wake.put(False)
        self._thread.join()

    def _run(self) -> None:
        try:
            reissue.reissue_newest(self._log_directory, self._receipts, self._key)
        except (AuditError, OSError):
            pass  # a later start looks again
        except Exception as error:  # so it does then; those of now are issued all the same
            about = type(error), error, error.__traceback__, threading.current_thread()
            threading.excepthook(threading.ExceptHookArgs(about))
        goes_on, all_kept = True, True
        while goes_on and (goes_on := self._wake.get()):
            with contextlib.suppress(Empty):
                goes_on = self._wake.get(timeout=DELAY_SECONDS if all_kept else RETRY_SECONDS)
            all_kept = self._issue_waiting()
        self._issue_waiting()  # those that came beside the end

    def _issue_waiting(self) -> bool:
        """Return whether all were kept; those that were not wait for the next time."""
        with self._guard:
            waiting = list(self._waiting.values())
        kept = list(takewhile(self._put, waiting))
        with self._guard:  # not before: whoever asks finds it here or there
            for facts in kept:
                self._waiting.pop(facts.execution.request, None)
            if self._waiting:
                self._wake.put(True)
        return len(kept) == len(waiting)
