"""Who is to blame for each end is decided, and the page says the same."""

import re
from pathlib import Path

import msgspec
import pytest

import agentd
from agentd.model import errors
from agentd.model.errors import AgentdError
from agentd.model.result import INFRASTRUCTURE, Cause, CauseCode

PAGE = (Path(__file__).parents[3] / "docs/causes.md").read_text()


def test_each_cause_of_the_model_is_decided():
    assert set(INFRASTRUCTURE) == set(CauseCode)
    for code in CauseCode:
        assert Cause.of(code, "so").infrastructure is INFRASTRUCTURE[code]


def test_the_page_has_each_cause_as_it_is():
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (true|false|as the error) \|$", PAGE, re.M)
    assert [name for name, _ in rows] == list(CauseCode)
    for name, blame in rows:
        if name != CauseCode.FAILED:
            assert blame == str(INFRASTRUCTURE[CauseCode(name)]).lower(), name


def test_the_page_has_each_error_as_it_is():
    rows = re.findall(r"^\| (`[A-Z].*`) \| (true|false) \|$", PAGE, re.M)
    told = {name: blame == "true" for names, blame in rows for name in re.findall(r"\w+", names)}
    named = {n: getattr(agentd, n) for n in dir(agentd) if n != "CommandFailed"}
    public = {
        name: kind
        for name, kind in {**named, **vars(errors)}.items()
        if isinstance(kind, type) and issubclass(kind, AgentdError) and kind is not AgentdError
    }
    assert told == {name: kind.infrastructure for name, kind in public.items()}


@pytest.mark.parametrize(("code", "blamed"), [("backend_lost", True), ("timeout", False)])
def test_what_an_older_one_wrote_is_read_alike(code, blamed):
    old = msgspec.json.encode({"code": code, "message": "m", "remediation": "r"})
    assert msgspec.json.decode(old, type=Cause).infrastructure is blamed


def test_a_single_cause_may_blame_the_machine():
    told = Cause(CauseCode.OOM, "the host had no memory for it", infrastructure=True)
    again = msgspec.json.decode(msgspec.json.encode(told), type=Cause)
    assert again == told and again.infrastructure
