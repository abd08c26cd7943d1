from typing import Any

import pytest

from agentd.capability.call import MAX_PIECE, MAX_TIMEOUT, CallContext, perform, timeout
from agentd.model.capability import About, Bounds, CallFailed, Outcome
from agentd.model.errors import AgentdError, InvalidInput, NotFound

ABOUT = About("test.it.v1", "", {}, bounds=Bounds(timeout=7.0, output=100))


class Answers:
    about = ABOUT

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def run(self, call: object, inside: object) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def done(answer: Any) -> Outcome:
    call = CallContext.of(ABOUT, {}, request_id="r")
    return perform(Answers(answer), call, None)  # type: ignore[arg-type]


def test_its_time_is_the_caller_s_the_capability_s_or_the_policy_s() -> None:
    assert timeout(ABOUT, {}) == 7.0
    assert timeout(ABOUT, {"timeout_ms": 250}) == 0.25
    assert timeout(ABOUT, {"timeout_ms": 10**9}) == MAX_TIMEOUT
    assert timeout(ABOUT, {"timeout_ms": 9000}, most=2.0) == 2.0
    assert timeout(ABOUT, {}, most=100.0) == 7.0


def test_what_it_sends_comes_in_bounded_pieces() -> None:
    seen: list[tuple[str, bytes]] = []
    call = CallContext.of(ABOUT, {}, request_id="r", emit=lambda *piece: seen.append(piece))
    call.emit("stdout", b"x" * (MAX_PIECE + 1))
    call.emit("progress", b"")
    assert [(kind, len(data)) for kind, data in seen] == [("stdout", MAX_PIECE), ("stdout", 1)]


def test_it_sends_only_so_much() -> None:
    seen: list[int] = []
    call = CallContext(
        {}, request_id="r", timeout=1, emit=lambda _, data: seen.append(len(data)), max_emitted=10
    )
    call.emit("stdout", b"x" * 10)
    for _ in range(2):
        with pytest.raises(CallFailed) as caught:
            call.emit("stderr", b"y")
        assert caught.value.code == "too_large"
    assert seen == [10]


@pytest.mark.parametrize("kind", ["", "Stdout", "a b", "x" * 33, "a\n", "\x1b"])
def test_a_kind_is_a_short_word(kind: str) -> None:
    with pytest.raises(InvalidInput):
        CallContext.of(ABOUT, {}, request_id="r").emit(kind, b"x")


def test_an_outcome_of_just_the_size_that_it_may_have() -> None:
    assert done(Outcome({"x": "y" * 92})).value == {"x": "y" * 92}
    with pytest.raises(CallFailed) as caught:
        done(Outcome({"x": "y" * 93}))
    assert caught.value.code == "too_large"


def test_it_is_measured_as_the_json_that_is_sent() -> None:
    with pytest.raises(CallFailed):
        done(Outcome({"x": "\x01" * 20}))


@pytest.mark.parametrize(
    "answer", [None, {"x": 1}, Outcome({"x": object()}), Outcome({"x": "\ud800"})]
)
def test_an_answer_that_cannot_be_sent_is_the_capability_s_fault(answer: Any) -> None:
    with pytest.raises(AgentdError, match="gave no answer that can be sent") as caught:
        done(answer)
    assert caught.value.code == "internal"


def test_one_that_holds_itself_is_none_that_can_be_sent() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(AgentdError, match="gave no answer that can be sent"):
        done(Outcome({"x": endless}))


def test_its_own_errors_come_as_they_are_and_others_with_its_name() -> None:
    with pytest.raises(NotFound):
        done(NotFound("gone"))
    with pytest.raises(AgentdError, match=r"capability test\.it\.v1 failed") as caught:
        done(KeyError("x"))
    assert caught.value.code == "internal" and "KeyError" in caught.value.cause
