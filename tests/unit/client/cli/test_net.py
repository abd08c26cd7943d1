"""What ``agentd net watch`` tells, and how it ends."""

import msgspec
import pytest
from tests.unit.client.http.conftest import Scripted
from tests.unit.client.http.conftest import daemon as daemon  # noqa: PLC0414

from agentd.client.cli import net
from agentd.model.network import ConnectionPage, ConnectionView

_OVER = {
    "gone": (404, {}, b'{"code": "not_found", "message": "there is no sandbox"}'),
    "ended meanwhile": (410, {}, b'{"code": "cancelled", "message": "its sandbox ended"}'),
}


def _page(numbers: list[int], lost: int = 0) -> tuple[int, dict[str, str], bytes]:
    rows = tuple(ConnectionView(n, f"{n}.example", "", None, False) for n in numbers)
    totals = {"allowed": 0, "lost": lost}
    return 200, {}, msgspec.json.encode(ConnectionPage(rows, max(numbers), totals, {}))


@pytest.mark.parametrize("over", _OVER)
def test_what_came_too_fast_is_told(
    daemon: Scripted,
    over: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(net, "_LOOK_SECONDS", 0.0)
    first, next_, many = _page([7, 8], 5), _page([8, 9], 5), _page([8, 1500, 1501], 7)
    daemon.answers = [first, next_, many, _OVER[over]]
    assert net.main(["watch", "sbx-a", "--url", f"unix:{daemon.server_address}"]) == 0
    told = capsys.readouterr()
    assert told.err == "agentd net: 1492 came too fast to be listed\n"
    shown = [line.split()[1] for line in told.out.splitlines()]
    assert shown == [f"{n}.example" for n in (7, 8, 8, 9, 8, 1500, 1501)]
