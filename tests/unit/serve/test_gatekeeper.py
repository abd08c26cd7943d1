import json
import os

import pytest

from agentd.auth.keys import KeyRecord
from agentd.daemon import config
from agentd.daemon.service.keystore import key_service
from agentd.linux.peer import peer_of
from agentd.model.credential import Credential
from agentd.model.errors import Forbidden, InvalidInput, Unauthenticated
from agentd.model.principal import local
from agentd.serve.gatekeeper import chain_of


class Memory(dict):
    def add(self, record: KeyRecord) -> None:
        self[record.id] = record

    def list(self):
        return self.values()

    def touch(self, key_id, when):
        pass


ADMIN = local("ops")


def load(tmp_path, text="", env=None):
    path = tmp_path / "agentd.toml"
    path.write_text(text)
    return config.load(str(path), env or {})


def test_a_workstation_lets_in_oneself_and_ones_keys(tmp_path):
    store, found = Memory(), load(tmp_path)
    chain = chain_of(found, store)
    me = chain.authenticate(Credential(peer_uid=os.geteuid()))
    assert me.may("admin") and me.via == "peer"
    made = key_service(found, store).create(me, "ci", ["run"])
    who = chain.authenticate(Credential(authorization=f"Bearer {made.key}"))
    assert (who.name, who.scopes) == ("ci", {"run"})
    with pytest.raises(Forbidden):
        chain.authenticate(Credential(peer_uid=os.geteuid() + 1))
    with pytest.raises(Unauthenticated):
        chain.authenticate(Credential())


def test_keys_that_are_switched_off_open_nothing(tmp_path):
    store, found = Memory(), load(tmp_path, "auth.keys.enabled = false")
    made = key_service(found, store).create(ADMIN, "ci", ["run"])
    with pytest.raises(Unauthenticated, match="of this kind"):
        chain_of(found, store).authenticate(Credential(api_key=made.key))


def test_the_bounds_of_keys_are_the_configurations(tmp_path):
    service = key_service(load(tmp_path, "auth.keys.max_ttl = '1m'"), Memory())
    with pytest.raises(InvalidInput, match="at most 1m"):
        service.create(ADMIN, "ci", ["run"], ttl=61)


def test_insecure_lets_in_anyone_and_only_then(tmp_path):
    text = "daemon.insecure = true\n[[listen]]\naddress = '127.0.0.1:1'\n"
    chain = chain_of(load(tmp_path, text), Memory())
    assert chain.authenticate(Credential()).may("run")


def test_tokens_and_certificates_are_as_configured(tmp_path):
    jwks = tmp_path / "jwks.json"
    jwks.write_text(json.dumps({"keys": []}))
    for name in ("cert", "key"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o600)
    text = f"""
        [[listen]]
        address = "0.0.0.0:8443"
        cert = "{tmp_path}/cert"
        key = "{tmp_path}/key"
        client_ca = "{tmp_path}/cert"
        [[auth.jwt]]
        name = "corp"
        issuer = "https://id.example"
        audience = ["agentd"]
        algorithms = ["ES256"]
        jwks_file = "{jwks}"
        grants = {{dev = ["run"]}}
        [[auth.certificates]]
        match = "dns:ci"
        principal = "ci"
    """
    chain = chain_of(load(tmp_path, text), Memory())
    with pytest.raises(Unauthenticated, match="token is not valid"):
        chain.authenticate(Credential(authorization="Bearer a.b.c"))
    with pytest.raises(Unauthenticated, match="certificate is malformed"):
        chain.authenticate(Credential(certificate=b"x"))


def test_the_peer_of_a_socket_becomes_a_principal(tmp_path):
    import socket

    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = peer_of(ours)
    credential = Credential(peer_uid=peer.uid, peer_pid=peer.pid, foreign=peer.foreign)
    assert chain_of(load(tmp_path), Memory()).authenticate(credential).may("admin")
