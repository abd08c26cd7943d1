"""The schema, step by step. A step that was released is never changed: the next one is added.

The number of steps done is SQLite's user_version, which changes in the same transaction.
"""

import sqlite3
from collections.abc import Sequence

from agentd.daemon.store.errors import StoreError

APPLICATION_ID = 0x61676E74  # "agnt": file(1) and we tell a store of ours from other databases

_FIRST = """
CREATE TABLE sandboxes (
    id TEXT PRIMARY KEY, principal TEXT NOT NULL, spec TEXT NOT NULL, backend TEXT NOT NULL,
    level TEXT NOT NULL, state TEXT NOT NULL, created REAL NOT NULL, deadline REAL,
    labels TEXT NOT NULL, save TEXT NOT NULL, ended REAL
) STRICT, WITHOUT ROWID;
CREATE INDEX sandboxes_ended ON sandboxes (ended);
CREATE INDEX sandboxes_principal ON sandboxes (principal, id);
CREATE TABLE processes (
    id TEXT PRIMARY KEY, sandbox TEXT NOT NULL, principal TEXT NOT NULL, argv TEXT NOT NULL,
    state TEXT NOT NULL, created REAL NOT NULL, tag TEXT, pid INTEGER, ended REAL, exit TEXT,
    journal TEXT, request TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX processes_sandbox ON processes (sandbox, id);
CREATE INDEX processes_ended ON processes (ended);
CREATE INDEX processes_state ON processes (state, id);
CREATE TABLE api_keys (
    id TEXT PRIMARY KEY, principal TEXT NOT NULL, hash BLOB NOT NULL, created REAL NOT NULL,
    scopes TEXT NOT NULL, expires REAL, revoked REAL, name TEXT NOT NULL,
    created_by TEXT NOT NULL, parent TEXT, last_used REAL
) STRICT, WITHOUT ROWID;
CREATE TABLE idempotency (
    principal TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL, state TEXT NOT NULL,
    created REAL NOT NULL, expires REAL NOT NULL, status INTEGER NOT NULL, headers TEXT NOT NULL,
    body BLOB NOT NULL, size INTEGER NOT NULL, PRIMARY KEY (principal, key)
) STRICT;
CREATE INDEX idempotency_size ON idempotency (principal, size);
CREATE INDEX idempotency_expires ON idempotency (expires);
CREATE INDEX idempotency_state ON idempotency (state, principal, key);
"""

_SIGNED_AND_APPROVED = """
CREATE TABLE nonces (
    key TEXT NOT NULL, nonce TEXT NOT NULL, issued REAL NOT NULL, PRIMARY KEY (key, nonce)
) STRICT, WITHOUT ROWID;
CREATE INDEX nonces_issued ON nonces (issued);
CREATE TABLE replay_marks (
    id TEXT PRIMARY KEY, floor REAL NOT NULL, ceiling REAL NOT NULL, boot TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE approvals (
    id TEXT PRIMARY KEY, principal TEXT NOT NULL, request TEXT NOT NULL, asked TEXT NOT NULL,
    state TEXT NOT NULL, created REAL NOT NULL, expires REAL NOT NULL, decided REAL,
    decided_by TEXT NOT NULL, note TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX approvals_principal ON approvals (principal, state);
CREATE INDEX approvals_state ON approvals (state, id);
CREATE INDEX approvals_expires ON approvals (expires);
"""

# By a sandbox they are found, by their end forgotten: for a third index each command wrote a page.
_FEWER_INDEXES = "DROP INDEX processes_state;"

# Answers are sealed from here on, and forgotten after an hour: those before lay open for a day. The
# variables of a sandbox are with its supervisor, which the daemon tells those of the living. An
# infinite time is one that never comes: a row of a request that runs is not forgotten.
_NOTHING_IN_CLEAR = """
ALTER TABLE idempotency ADD COLUMN approved TEXT NOT NULL DEFAULT '';
UPDATE idempotency SET expires = expires - 82800.0;
UPDATE idempotency SET expires = 9e999 WHERE state = 'started';
UPDATE idempotency SET state = 'interrupted', headers = '{}', body = x'', size = 0
    WHERE state = 'done';
UPDATE sandboxes SET spec = json_remove(spec, '$.env') WHERE state NOT IN ('ready', 'paused');
DROP INDEX idempotency_size;
CREATE INDEX idempotency_of ON idempotency (principal, expires, size);
"""

_NAMES = "ALTER TABLE sandboxes ADD COLUMN name TEXT NOT NULL DEFAULT ''"

_IDLE = """
ALTER TABLE sandboxes ADD COLUMN idle_timeout REAL;
ALTER TABLE sandboxes ADD COLUMN on_idle TEXT NOT NULL DEFAULT '';
ALTER TABLE sandboxes ADD COLUMN paused_by TEXT NOT NULL DEFAULT '';
"""

_SNAPSHOTS = "ALTER TABLE sandboxes ADD COLUMN snapshot TEXT NOT NULL DEFAULT ''"

# They are counted, and the oldest of them found, without what was asked: that may be 64 KiB each.
_SIZES = """
ALTER TABLE approvals ADD COLUMN size INTEGER NOT NULL DEFAULT 0;
UPDATE approvals SET size = length(asked);
CREATE INDEX approvals_of ON approvals (principal, state, created, size);
"""

# Outside of a transaction: the whole file is written anew, without what was deleted from it, and
# takes the place of the old one with the checkpoint.
VACUUM = "VACUUM"

STEPS: tuple[str, ...] = (
    _FIRST, _SIGNED_AND_APPROVED, _FEWER_INDEXES, _NOTHING_IN_CLEAR, VACUUM, _NAMES,
    _IDLE, _SNAPSHOTS, _SIZES,
)  # fmt: skip


def migrate(connection: sqlite3.Connection, steps: Sequence[str] = STEPS) -> int:
    """Take the steps that are missing, each whole or not at all: how many were taken.

    Raises StoreError for another program's database, or one that a newer agentd has migrated.
    """
    version = _pragma(connection, "user_version")
    identity = _pragma(connection, "application_id")
    tables = connection.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()[0]
    if identity != APPLICATION_ID and (identity or tables):
        raise StoreError(
            "the store's file is another program's database",
            remediation="give --state a directory of its own",
        )
    if version > len(steps):
        raise StoreError(
            f"the store has schema {version}, and this agentd knows {len(steps)}",
            remediation="run the newer agentd, or give --state another directory",
        )
    for number in range(version, len(steps)):
        _take(connection, steps[number], number + 1)
    return len(steps) - version


def _take(connection: sqlite3.Connection, step: str, version: int) -> None:
    if step == VACUUM:
        connection.execute(VACUUM)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        step = ""
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Not executescript: it would commit the open transaction first.
        for statement in filter(None, map(str.strip, step.split(";"))):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {version}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value
