"""What the tests of calls share: a principal, policies that say what the test wants, acts."""

from types import SimpleNamespace

from agentd.daemon.admission.acts import Act, Place
from agentd.model.decision import Decision, Obligations
from agentd.model.enforcement import Control
from agentd.model.isolation import IsolationLevel
from agentd.model.principal import Principal
from agentd.model.result import SandboxInfo
from agentd.model.spec import SandboxSpec

ALICE = Principal("alice", frozenset({"run", "read", "create", "files"}), "key", "k1")
DIGEST = "sha256:" + "a" * 64


class Says:
    """A policy that gives one answer to all, and notes what it was asked."""

    def __init__(self, decision=None, digest=DIGEST):
        self.decision = decision or Decision(allow=True, reasons=("as you like",), bundle=digest)
        self.digest = digest
        self.asked = []

    def decide(self, asked):
        self.asked.append(asked)
        return self.decision


def allowing(**obligations):
    return Says(Decision(allow=True, bundle=DIGEST, obligations=Obligations(**obligations)))


def handle_of(spec=None, level=IsolationLevel.NAMESPACE, id_="sbx-1"):
    """As much of a sandbox as is decided on and told."""
    return SimpleNamespace(
        spec=spec or SandboxSpec(),
        id=id_,
        level=level,
        backend="linux",
        enforcement={"seccomp": Control("default", True)},
        info=SandboxInfo(id_, "linux", level.label),
    )


def act(name="shell.exec.v1", **fields):
    known = {"who": ALICE, "parameters": {}, "place": Place.new(SandboxSpec()), "request": "req-1"}
    return Act(name=name, **(known | fields))
