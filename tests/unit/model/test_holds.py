import itertools

import pytest

from agentd.model.errors import Full
from agentd.model.holds import Holds


def test_streams_that_last_leave_room_for_an_answer_of_their_caller() -> None:
    """They end when their client likes: an answer that waited for them could wait for ever."""
    holds = Holds(1024, "of answers", "read them")
    held = []
    with pytest.raises(Full):
        for _ in itertools.count():
            held.append(holds.hold("alice", 64, lasting=True))
    assert len(held) == 6
    assert holds.wait("alice", 10_000) == 256
