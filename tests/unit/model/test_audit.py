import pytest

from agentd.model.audit import Position
from agentd.model.errors import InvalidInput

HASH = "0123456789abcdef" * 4


def test_a_position_is_written_and_read() -> None:
    assert Position.parse(f" {Position(7, HASH)}\n") == Position(7, HASH)


@pytest.mark.parametrize(
    "text", ["", "1", f"0:{HASH}", f"-1:{HASH}", f"1:{HASH.upper()}", f"1:{HASH}0", f"²:{HASH}"]
)
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="SEQ:HASH"):
        Position.parse(text)
