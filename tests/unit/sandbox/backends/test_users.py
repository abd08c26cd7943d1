import pytest

from agentd.model.errors import InvalidInput
from agentd.sandbox.backends.users import parse_user


@pytest.mark.parametrize(
    ("user", "uid"), [(None, 1000), ("sandbox", 1000), ("root", 0), ("0", 0), ("77", 77)]
)
def test_users(user: str | None, uid: int) -> None:
    assert parse_user(user) == uid


@pytest.mark.parametrize("user", ["", "daemon", "-1", "1.0", "\u0663", "2147483648", "1000 "])
def test_users_that_are_none(user: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_user(user)
    assert caught.value.remediation
