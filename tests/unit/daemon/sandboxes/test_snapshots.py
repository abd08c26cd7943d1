"""How many snapshots a principal may have, while others take some."""

import threading

from agentd.daemon.sandboxes.snapshots import Snapshots


def test_who_counts_theirs_holds_up_nobody(tmp_path, monkeypatch):
    kept, going, go = Snapshots(str(tmp_path)), threading.Event(), threading.Event()
    found = kept._ids

    def slowly():
        if threading.current_thread().name == "slow":
            going.set()
            assert go.wait(120)
        return found()

    def take():
        with kept.making("alice"):
            pass

    monkeypatch.setattr(kept, "_ids", slowly)
    slow = threading.Thread(target=take, name="slow")
    slow.start()
    assert going.wait(120)
    other = threading.Thread(target=take, daemon=True)
    other.start()
    try:
        other.join(20)
        assert not other.is_alive()
    finally:
        go.set()
        slow.join(120)
    assert kept._making["alice"] == 0
