"""``agentd exec -d``, interrupted."""

import signal
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest

from agentd.client.cli import exec
from agentd.client.cli.interrupts import Interrupts


class Early(Interrupts):
    @contextmanager
    def heeded(self):
        signal.raise_signal(signal.SIGINT)
        with super().heeded():
            yield


class Late(Interrupts):
    @contextmanager
    def heeded(self):
        with super().heeded():
            yield
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("when", "code"), [(Early, 130), (Late, 0)])
def test_what_goes_on_is_told_and_what_is_not_told_is_killed(monkeypatch, capsys, when, code):
    killed = []
    commands = SimpleNamespace(
        start=lambda *args, **options: SimpleNamespace(id="proc-1"),
        signal=lambda *args: killed.append(args),
    )
    monkeypatch.setattr(exec, "Interrupts", when)
    monkeypatch.setattr(
        exec.remote, "service", lambda options: nullcontext(SimpleNamespace(commands=commands))
    )
    assert exec.main(["-d", "sbx-abcdefghijkl", "--", "true"]) == code
    assert capsys.readouterr().out == ("proc-1\n" if when is Late else "")
    assert killed == ([] if when is Late else [("sbx-abcdefghijkl", "proc-1", signal.SIGKILL)])
