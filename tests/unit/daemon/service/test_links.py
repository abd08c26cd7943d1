"""Tokens of links: of one port of one sandbox, for as long as was said, and so many of each."""

import pytest

from agentd.daemon.service import links
from agentd.daemon.service.links import Links
from agentd.model.errors import Unauthenticated
from agentd.model.principal import Principal


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def kept(clock: _Clock) -> Links:
    return Links(clock)


def _again() -> Principal:
    raise AssertionError("nobody asks who made it")


def _add(kept: Links, who: str = "alice", port: int = 80, seconds: float = 60) -> str:
    return kept.add(who, "sbx-one", port, seconds, _again)


def test_a_token_is_valid_until_it_ends_and_no_longer(kept: Links, clock: _Clock) -> None:
    token = _add(kept)
    clock.now += 59
    assert kept.maker(token, "sbx-one", 80) is _again
    clock.now += 1
    with pytest.raises(Unauthenticated, match="not valid, or not any more"):
        kept.maker(token, "sbx-one", 80)


@pytest.mark.parametrize(("sandbox", "port"), [("sbx-two", 80), ("sbx-one", 81)])
def test_a_token_is_for_one_port_of_one_sandbox(kept: Links, sandbox: str, port: int) -> None:
    token = _add(kept)
    with pytest.raises(Unauthenticated, match="for another port"):
        kept.maker(token, sandbox, port)
    assert kept.maker(token, "sbx-one", 80) is _again


def test_a_token_that_nobody_was_given_is_none(kept: Links) -> None:
    token = _add(kept)
    for other in ("", token[:-1], token.swapcase()):
        with pytest.raises(Unauthenticated):
            kept.maker(other, "sbx-one", 80)


def test_who_asks_for_many_loses_their_own_and_nobody_elses(kept: Links) -> None:
    bobs, oldest = _add(kept, "bob"), _add(kept)
    others = [_add(kept) for _ in range(links.MOST_OF_ONE)]
    with pytest.raises(Unauthenticated):
        kept.maker(oldest, "sbx-one", 80)
    for token in (bobs, others[0], others[-1]):
        assert kept.maker(token, "sbx-one", 80) is _again


def test_there_are_so_many_of_all_together(kept: Links, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "MOST", 4)
    bobs = _add(kept, "bob")
    alices = [_add(kept) for _ in range(3)]
    carols = _add(kept, "carol")
    with pytest.raises(Unauthenticated):  # of who has most
        kept.maker(alices[0], "sbx-one", 80)
    for token in (bobs, *alices[1:], carols):
        assert kept.maker(token, "sbx-one", 80) is _again
