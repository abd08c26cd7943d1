"""What is asked about, and answered, as the host keeps it."""

from typing import Any

from agentd.egress.asked import MAX_ANSWERS, AskedPlaces


def test_a_sandbox_asks_about_so_many_places_and_no_more() -> None:
    told: list[dict[str, Any]] = []
    places = AskedPlaces(lambda said: told.append(dict(said)))
    places.asker = lambda asked: places.answer(asked.host, asked.port, True, "", None)
    for number in range(MAX_ANSWERS + 1):
        places.ask({"ask": f"h{number}.example.com", "port": 443, "rule": "ask public"})
    assert [each["allowed"] for each in told] == [True] * MAX_ANSWERS + [False]
    assert told[-1]["reason"] == "256 places of the sandbox have been asked about"
