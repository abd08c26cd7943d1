import threading
from types import SimpleNamespace

import pytest

from agentd.daemon.commands.begin import BeginStreamed
from agentd.daemon.commands.command import Command
from agentd.daemon.commands.commands import Commands
from agentd.daemon.commands.ends import completed
from agentd.daemon.commands.listed import Listed
from agentd.daemon.store.records import ProcessRecord
from agentd.daemon.store.sqlite import SqliteStore
from agentd.model.isolation import IsolationLevel
from agentd.model.principal import Principal
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox.journal.journals import Journals
from agentd.sandbox.manager import Manager

WHO = Principal("anna", frozenset(), "local")
WORDS = ("true", "x" * 5000)


@pytest.fixture
def ended(tmp_path):
    """A command that has ended, and what records it."""
    manager, journals = Manager(), Journals(str(tmp_path / "journals"))
    store = SqliteStore(str(tmp_path / "state"))
    try:
        handle = manager.create(SandboxSpec(isolation=IsolationLevel.NONE, backend="host"))
        listed = Listed("prc-1", SimpleNamespace(id="sbx-1"), WORDS, journals.create("prc-1"))
        begin = BeginStreamed(completed(ExecRequest(WORDS), handle))
        command = Command(handle, begin, None, listed)
        command.drive(keep=False)
        yield command, Commands(store, None, journals, None), store
    finally:
        store.close()
        manager.close()
        journals.close()


def test_all_words_are_recorded_though_it_has_ended_before_it_is_known_to_run(ended):
    """Who began it writes it down, and then who drove it."""
    command, commands, store = ended
    for _ in range(2):
        commands._record(WHO, command)
    assert store.get(ProcessRecord, "prc-1").argv == WORDS
    assert command.view().argv_cut == 5004 - 4096


class LateStore(SqliteStore):
    """Who does not drive the command is late, as long as that may matter."""

    ended: threading.Event

    def write(self, work, *, synced=True):
        drives = threading.current_thread() is not threading.main_thread()
        if not drives:
            self.ended.wait(1)
        written = super().write(work, synced=synced)
        if drives:
            self.ended.set()
        return written


def test_what_a_template_began_is_recorded_as_ended_once_it_has(tmp_path, monkeypatch):
    manager, journals = Manager(), Journals(str(tmp_path / "journals"))
    store = LateStore(str(tmp_path / "state"))
    store.ended = threading.Event()
    try:
        handle = manager.create(SandboxSpec(isolation=IsolationLevel.NONE, backend="host"))
        live = SimpleNamespace(id="sbx-1", record=SimpleNamespace(principal="anna"))
        listed = Listed("prc-1", live, ("true",), journals.create("prc-1"))
        begin = BeginStreamed(completed(ExecRequest(("true",)), handle))
        command = Command(handle, begin, None, listed)
        monkeypatch.setattr("agentd.daemon.commands.begun.found", lambda *_: command)
        used = SimpleNamespace(used_cpu=lambda *_: None, command=lambda *_: None)
        Commands(store, None, journals, used, counts=used).list_begun(live)
        assert store.ended.wait(60)
        assert store.get(ProcessRecord, "prc-1").state == "ended"
    finally:
        store.close()
        manager.close()
        journals.close()


def test_of_a_call_s_command_that_is_to_be_followed_the_first_words_are_kept(ended):
    command, commands, _ = ended
    commands.parts.add(command.listed)
    assert sum(map(len, command.listed.argv)) == 4096
