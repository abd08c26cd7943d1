"""What a sandbox changed in its workspace is a long list: there is room for it first."""

import contextlib
from types import SimpleNamespace

from agentd.daemon.observe.observed import Observer
from agentd.daemon.service.sandboxes import DaemonSandboxes
from agentd.model import context
from agentd.model.principal import local


def test_changes_are_listed_once_there_is_room_for_them():
    class Overlay:
        def changes(self):
            done.append("changes")
            return ("A a",)

    class One(DaemonSandboxes):
        def _live(self, scope, id_):
            handle = SimpleNamespace(overlay=Overlay, telling=contextlib.nullcontext)
            return SimpleNamespace(handle=handle, wall=SimpleNamespace(workspace="/workspace"))

        def _judge(self, live, name, **parameters):
            done.append(name)

    done, room = [], []
    service = One(SimpleNamespace(observer=Observer()), local("alice"))
    with context.answering(lambda size: (room.append(size), done.append("room"))):
        assert service.changes("sbx-1") == ("A a",)
    assert done[-2:] == ["room", "changes"]
    assert room[0] >= 3 * 32 << 20  # of the paths alone, as the wall bounds them
