import errno

import msgspec
import pytest

from agentd.client.http.errors import from_answer, from_event
from agentd.model import errors
from agentd.model.capability import CallFailed


def answer(status=400, headers=None, **fields):
    body = {"message": "m", "cause": "c", "remediation": "r"} | fields
    return from_answer(status, headers or {}, msgspec.json.encode(body))


@pytest.mark.parametrize(
    "kind",
    [
        errors.InvalidInput,
        errors.Unauthenticated,
        errors.Forbidden,
        errors.Refused,
        errors.PolicyDenied,
        errors.Undecided,
        errors.NotFound,
        errors.Conflict,
        errors.SandboxError,
        errors.BackendLost,
        errors.GuestError,
        errors.Unavailable,
        errors.Full,
        errors.QuotaExceeded,
    ],
)
def test_a_code_is_its_class(kind):
    error = answer(code=kind.code)
    assert type(error) is kind
    assert error.as_dict() == {"code": kind.code, "message": "m", "cause": "c", "remediation": "r"}


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("approval_expired", 403, errors.Refused),
        ("nonce_replayed", 401, errors.Unauthenticated),
        ("busy", 422, CallFailed),
        ("forbidden", 422, CallFailed),
        ("lease_expired", 410, errors.SandboxEnded),
        ("idempotency_mismatch", 422, errors.InvalidInput),
        ("draining", 503, errors.Full),
        ("never_heard_of", 409, errors.Conflict),
        ("never_heard_of", 500, errors.AgentdError),
    ],
)
def test_a_code_without_a_class_keeps_its_name(code, status, kind):
    error = answer(status, code=code)
    assert type(error) is kind
    assert error.code == code


@pytest.mark.parametrize(("text", "seconds"), [("2.5", 2.5), ("", 1.0), ("soon", 1.0), ("-1", 0.0)])
def test_when_to_come_back(text, seconds):
    assert answer(429, {"retry-after": text}, code="full").retry_after == seconds


@pytest.mark.parametrize(
    ("fields", "number"),
    [
        ({"message": "/a: No such file or directory"}, errno.ENOENT),
        ({"cause": "Is a directory", "message": "x"}, errno.EISDIR),
        ({"message": "x", "errno": errno.EXDEV}, errno.EXDEV),
        ({"message": "nothing the kernel says"}, 0),
    ],
)
def test_the_kernels_number_comes_back(fields, number):
    assert answer(code="operation_failed", **fields).errno == number


def test_an_answer_of_somebody_else():
    error = from_answer(502, {}, b"<html>\n\x1b[31mBad gateway" + b"x" * 10_000)
    assert "502" in str(error) and "Bad gateway" in str(error)
    assert "\x1b" not in str(error) and len(str(error)) < 1000


def test_the_last_event_of_a_call_says_what_its_status_would_have_been():
    body = {"code": "no_match", "message": "m", "cause": "", "remediation": "", "status": 422}
    error = from_event(msgspec.json.encode(body))
    assert (type(error), error.code, error.status) == (CallFailed, "no_match", 422)
