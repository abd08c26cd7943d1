"""An execution as a receipt tells of it."""

import msgspec

from agentd.audit.receipt import Decided, Execution
from agentd.model.enforcement import Control
from agentd.model.result import Cause, CauseCode, Usage

DIGEST = "sha256:" + "ab" * 32


def execution(**changes: object) -> Execution:
    made = Execution(
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
        enforcement={"seccomp": Control("default", True, "profile sandbox")},
        usage=Usage(12.5, 3.25, 1234),
        cause=Cause.of(CauseCode.EXITED, "it ended by itself"),
        exit_code=0,
        started=1.0,
        ended=2.0,
    )
    return msgspec.structs.replace(made, **changes)
