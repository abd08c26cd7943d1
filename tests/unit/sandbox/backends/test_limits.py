import pytest

from agentd.model.limits import DEFAULTS, Limits
from agentd.sandbox.backends.limits import group_controls, limit_control, with_defaults


def test_defaults_fill_what_was_not_asked() -> None:
    limits = with_defaults(Limits(pids=3, timeout=1.5))
    assert (limits.pids, limits.timeout, limits.memory) == (3, 1.5, DEFAULTS.memory)


@pytest.mark.parametrize(
    ("asked", "value", "text"),
    [
        (None, 1 << 30, "default 1G"),
        (64 << 20, 64 << 20, "64M"),
        (0.5, 0.5, "0.5"),
        (None, 512, "default 512"),
    ],
)
def test_limits_read_as_people_write_them(asked: float | None, value: float, text: str) -> None:
    assert limit_control(asked, value, True, "how").asked == text


def test_without_a_group_nothing_is_claimed() -> None:
    asked = Limits(cpus=2.0)
    table = group_controls(asked, with_defaults(asked), None, "why not")
    assert set(table) == {"memory", "cpus", "pids"}
    assert not any(control.enforced for control in table.values())
    assert {control.detail for control in table.values()} == {"why not"}


def test_a_limit_that_has_no_value_has_no_entry() -> None:
    assert "cpus" not in group_controls(Limits(), with_defaults(Limits()), None, "x")
