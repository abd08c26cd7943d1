"""From the engine's text to a decision. Whatever is not exactly a decision is none.

The engine writes texts into its answer as they stand. A policy that takes a text apart (at a
backslash, say) can make a quote of it that ends the text, and what follows is then the caller's.
They cannot add to a decision so: a member that is there twice, or is not known, makes it none,
and ``allow``, the first in order, is written before any text.
"""

import json
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from agentd.model import typed
from agentd.model.decision import Decision, Obligations
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits

MAX_ANSWER = 256 << 10
_BEGIN = ('{"expressions":[{"allow":true', '{"expressions":[{"allow":false')
_Size = Annotated[int, Meta(gt=0, lt=1 << 62)]
_Real = Annotated[float, Meta(gt=0, lt=1e12)]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class _Limits(_Strict, frozen=True):
    memory: _Size | None = None
    cpus: _Real | None = None
    pids: _Size | None = None
    disk: _Size | None = None
    open_files: _Size | None = None
    output: _Size | None = None
    timeout: _Real | None = None
    net_bytes: _Size | None = None
    net_rate: _Size | None = None


class _Obligations(_Strict, frozen=True):
    level: Literal["none", "process", "namespace", "userspace-kernel", "microvm"] | None = None
    limits: _Limits = _Limits()
    no_network: bool = False
    approve: bool = False


class _Document(_Strict, frozen=True):
    allow: bool
    reasons: Annotated[tuple[str, ...], Meta(max_length=64)] = ()
    obligations: _Obligations = _Obligations()


class _Answer(_Strict, frozen=True):
    expressions: tuple[_Document]


class _Texts(_Strict, frozen=True):
    expressions: tuple[Annotated[tuple[str, ...], Meta(max_length=64)]]


def decision(text: str, bundle: str) -> Decision:
    """Raises ValueError saying why it is none."""
    if text == "undefined":
        raise ValueError("data.agentd.decision is undefined")
    answer = typed.convert(_parsed(text), _Answer).expressions[0]
    if not text.startswith(_BEGIN):
        raise ValueError("the answer does not begin with allow")
    wanted = answer.obligations
    return Decision(
        allow=answer.allow,
        reasons=answer.reasons,
        obligations=Obligations(
            level=None if wanted.level is None else IsolationLevel.parse(wanted.level),
            limits=Limits(**msgspec.structs.asdict(wanted.limits)),
            no_network=wanted.no_network,
            approve=wanted.approve,
        ),
        bundle=bundle,
    )


def texts(text: str) -> tuple[str, ...]:
    """Return a set of texts; none where it is undefined. Raises ValueError."""
    if text == "undefined":
        return ()
    return typed.convert(_parsed(text), _Texts).expressions[0]


def passed(text: str) -> bool:
    """Return whether a test's value is true."""
    if text == "undefined":
        return False
    found = _parsed(text)["expressions"]
    return len(found) == 1 and found[0] is True  # 1 would be equal to it


def _parsed(text: str) -> Any:
    if len(text) > MAX_ANSWER:
        raise ValueError(f"the answer has more than {MAX_ANSWER >> 10} KiB")
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("the answer is too deep") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is in the answer twice")
    return members


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)  # json.loads would make one each time
