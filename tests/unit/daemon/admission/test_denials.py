"""Denials are written one by one, then counted, and none is forgotten."""

from agentd.daemon.admission.denials import BURST, MAX_PRINCIPALS, PER_SECOND, Denials
from agentd.model.audit import Event, Kind


class Log:
    def __init__(self) -> None:
        self.now = 1000.0
        self.written: list[Event] = []
        self.denials = Denials(self.written.append, lambda: self.now)

    def refuse(self, who: str, count: int = 1) -> None:
        for number in range(count):
            self.denials.write(Event(kind=Kind.DENIAL, principal=who, fields={"n": number}))

    def told(self, who: str) -> int:
        mine = [event for event in self.written if event.principal == who]
        return sum(int(event.fields.get("repeated", 1)) for event in mine)


def test_a_burst_is_written_and_the_rest_counted_once_there_is_room() -> None:
    log = Log()
    log.refuse("a", 1000)
    assert len(log.written) == BURST
    log.denials.tick()
    assert len(log.written) == BURST
    log.now += 1 / PER_SECOND
    log.denials.tick()
    assert log.written[-1].fields == {"n": 999, "repeated": 800, "seconds": 1 / PER_SECOND}
    assert log.told("a") == 1000
    log.denials.close()
    assert log.told("a") == 1000


def test_one_who_is_refused_does_not_hide_another() -> None:
    log = Log()
    log.refuse("a", 5000)
    log.refuse("b", 3)
    assert [event.principal for event in log.written[-3:]] == ["b"] * 3
    log.denials.close()
    assert log.told("a") == 5000 and log.told("b") == 3


def test_many_principals_take_no_more_memory_and_lose_nothing() -> None:
    log = Log()
    log.refuse("a", int(BURST) + 7)
    for number in range(2 * MAX_PRINCIPALS):
        log.refuse(f"p{number}")
    assert log.told("a") == BURST + 7
    assert len(log.denials._of) <= MAX_PRINCIPALS


def test_who_goes_on_is_bounded_over_time() -> None:
    log = Log()
    for _ in range(1000):
        log.now += 0.1
        log.refuse("a", 10)
    log.denials.close()
    assert log.told("a") == 10_000
    assert len(log.written) <= BURST + 100 * PER_SECOND + 2
