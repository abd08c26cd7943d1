import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.model.errors import Conflict, SandboxError
from agentd.sandbox.lifecycle import Do, LifecycleEvent, State, advance


def walk(events):
    """The instructions of a life; events that make no sense are refused and change nothing."""
    state, done = State.CREATED, []
    for event in events:
        try:
            step = advance(state, event)
        except (Conflict, SandboxError):
            continue
        state = step.state
        done += step.instructions
    return state, done


def test_a_whole_life_in_order():
    state, done = walk(
        [
            LifecycleEvent.START,
            LifecycleEvent.WALL_UP,
            LifecycleEvent.GUEST_READY,
            LifecycleEvent.PAUSE,
            LifecycleEvent.RESUME,
            LifecycleEvent.DESTROY,
            LifecycleEvent.WALL_GONE,
        ]
    )
    assert state is State.ENDED
    assert done == [
        Do.LAUNCH,
        Do.CONNECT,
        Do.FREEZE,
        Do.THAW,
        Do.DISCONNECT,
        Do.KILL,
        Do.FORGET,
    ]


@pytest.mark.parametrize(
    "event",
    [
        LifecycleEvent.PAUSE,
        LifecycleEvent.RESUME,
        LifecycleEvent.GUEST_READY,
        LifecycleEvent.FAILED,
    ],
)
def test_an_event_that_makes_no_sense_is_refused_by_name(event):
    with pytest.raises(SandboxError, match=f"cannot {event} a sandbox that is created"):
        advance(State.CREATED, event)


def test_what_could_not_be_ended_is_ended_again():
    again = advance(State.ENDING, LifecycleEvent.DESTROY)
    assert again == (State.ENDING, (Do.DISCONNECT, Do.KILL))
    assert advance(State.ENDING, LifecycleEvent.LOST) == (State.ENDING, ())


def test_what_was_never_built_is_not_killed():
    assert advance(State.CREATED, LifecycleEvent.DESTROY) == (State.ENDED, (Do.FORGET,))


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([LifecycleEvent.PAUSE], State.PAUSED),
        ([LifecycleEvent.PAUSE, LifecycleEvent.NOT_PAUSED], State.READY),
        ([LifecycleEvent.PAUSE, LifecycleEvent.RESUME], State.READY),
        ([LifecycleEvent.PAUSE, LifecycleEvent.RESUME, LifecycleEvent.NOT_RESUMED], State.PAUSED),
        ([LifecycleEvent.SNAPSHOT], State.SNAPSHOTTING),
        ([LifecycleEvent.SNAPSHOT, LifecycleEvent.PAUSE], State.SNAPSHOTTING),
        ([LifecycleEvent.SNAPSHOT, LifecycleEvent.SNAPSHOT_OVER], State.READY),
        ([LifecycleEvent.PAUSE, LifecycleEvent.SNAPSHOT], State.PAUSED),
        (
            [LifecycleEvent.SNAPSHOT, LifecycleEvent.DESTROY, LifecycleEvent.SNAPSHOT_OVER],
            State.ENDING,
        ),
        ([LifecycleEvent.PAUSE, LifecycleEvent.LOST, LifecycleEvent.NOT_PAUSED], State.ENDING),
    ],
)
def test_what_a_ready_sandbox_may_do(events, state):
    assert (
        walk([LifecycleEvent.START, LifecycleEvent.WALL_UP, LifecycleEvent.GUEST_READY, *events])[0]
        is state
    )


def test_what_a_paused_sandbox_cannot_do_names_the_fix():
    with pytest.raises(Conflict, match=r"cannot snapshot .* is paused \(resume it first\)"):
        advance(State.PAUSED, LifecycleEvent.SNAPSHOT)


@given(st.lists(st.sampled_from(LifecycleEvent)))
def test_nothing_is_done_twice_and_what_was_launched_is_killed_before_it_is_forgotten(events):
    state, done = walk(events)
    # One wall a life. CONNECT repeats only while the wall says that it is up; DISCONNECT and KILL
    # where it is to be ended again before it is gone.
    assert done.count(Do.LAUNCH) <= 1
    assert done.count(Do.FORGET) <= 1
    assert done.count(Do.KILL) <= 1 + events.count(LifecycleEvent.DESTROY)
    if Do.FORGET in done:
        assert done[-1] is Do.FORGET
        assert state is State.ENDED
        assert (Do.LAUNCH in done) == (Do.KILL in done)


@given(st.lists(st.sampled_from(LifecycleEvent)))
def test_every_life_can_be_ended_from_anywhere(events):
    state, _ = walk(events)
    state = advance(state, LifecycleEvent.DESTROY).state
    assert advance(state, LifecycleEvent.WALL_GONE).state is State.ENDED
    assert advance(State.ENDED, LifecycleEvent.DESTROY) == (State.ENDED, ())
