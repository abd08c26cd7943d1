"""Commands of the daemon before, however many they are."""

from types import SimpleNamespace

from agentd.daemon.commands.commands import Commands
from agentd.daemon.store.records import ProcessRecord
from agentd.daemon.store.sqlite import SqliteStore
from agentd.daemon.store.view import MAX_PAGE
from agentd.model.errors import NotFound

MANY = MAX_PAGE + 10


def test_more_than_a_page_of_commands_go_on(tmp_path):
    class Taking(Commands):
        def _take_over(self, live, record, told):
            taken.append(record.id)
            if record.id.endswith("7"):
                raise NotFound("the agent has forgotten it")

    def put(transaction):
        for number in range(MANY):
            transaction.put(
                ProcessRecord(
                    id=f"prc-{number:05}",
                    sandbox="sbx-1",
                    principal="alice",
                    argv=("sleep", "inf"),
                    state="running",
                    created=1.0,
                )
            )

    taken, store = [], SqliteStore(str(tmp_path / "state"))
    try:
        store.write(put)
        commands = Taking(store, None, None, None)
        assert commands.adopt(SimpleNamespace(id="sbx-1")) == MANY - MANY // 10
        assert len(set(taken)) == len(taken) == MANY
        commands.adopt(SimpleNamespace(id="sbx-1"))
        assert len(taken) == 2 * MANY - MANY // 10  # those that had ended are told as ended
    finally:
        store.close()
