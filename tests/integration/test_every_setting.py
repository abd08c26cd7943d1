"""Each key of the configuration's schema with a value that is not its default: a daemon starts with
it, serves, and is reloaded with. A new key without a value here fails."""

import grp
import os
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.configured import bundle_copy, jwks, signers, tls
from tests.integration.test_profiles import metric, reload, serves
from tests.security.daemons import Daemon, running, until

from agentd.daemon import config
from agentd.daemon.config.reader import known_keys
from agentd.policy.source import locate
from agentd.policy.source import read as read_bundle

# Tables that go together are one daemon's; those that exclude each other are others'.
_MOST = """
profile = "server"
[daemon]
state = "{folder}/state"
drain = "3s"
[[listen]]
address = "unix:{folder}/agentd.sock"
mode = "0660"
group = "{group}"
[[listen]]
address = "127.0.0.1:0"
cert = "{folder}/cert.pem"
key = "{folder}/key.pem"
client_ca = "{folder}/ca.pem"
plain = true
serves = ["rest"]
[auth]
containers = true
[[auth.peers]]
uid = {uid}
scopes = ["admin"]
principal = "boss"
[auth.keys]
default_ttl = "1h"
max_ttl = "2h"
[[auth.jwt]]
name = "ours"
issuer = "https://issuer.example"
audience = ["agentd"]
algorithms = ["ES256"]
jwks_file = "{folder}/jwks.json"
claim = "roles"
grants = {{ builder = ["run"] }}
scopes = ["run"]
subject = "name"
leeway = "10s"
[[auth.certificates]]
match = "dns:ci"
principal = "ci"
scopes = ["run"]
[auth.signed]
signers = "{folder}/signers"
max_age = "2m"
skew = "10s"
audience = "here"
[ids]
start = 2100007936
blocks = 100
[packages]
index = "https://packages.example.com/simple"
net = ["packages.example.com"]
keep = "2h"
size = "2G"
[ports]
url = "https://ports.example.org:8443"
max_ttl = "2h"
[idempotency]
keep = "2m"
keys = 100
answers = "1M"
[quotas.default]
sandboxes = 3
memory = "2G"
disk = "1G"
cpu_seconds = 100
requests = 100
burst = 200
concurrency = 5
[quotas.principals.boss]
sandboxes = 6
memory = "3G"
disk = "3G"
cpu_seconds = 200
requests = 300
burst = 400
concurrency = 50
[[pool]]
image = "default"
isolation = "namespace"
backend = "linux"
min = 1
max = 2
ttl = "5m"
[[template]]
name = "made"
image = "none-such"
isolation = "namespace"
backend = "linux"
runtime = "crun"
net = "pypi"
packages = ["numpy"]
user = "root"
writable = true
env = {{ A = "b" }}
start = ["true"]
ready = ["true"]
ready_timeout = "5s"
min = 1
max = 2
ttl = "5m"
memory = "192M"
cpus = 1.5
pids = 100
disk = "64M"
open_files = 512
output = "1M"
timeout = "50s"
net_bytes = "1M"
net_rate = "1M"
[leases]
default = "5m"
max = "1h"
[journal]
memory = "128K"
process = "8M"
total = "1G"
keep = "10m"
compress = false
[limits.default]
memory = "192M"
cpus = 1.5
pids = 100
disk = "64M"
open_files = 512
output = "1M"
timeout = "50s"
net_bytes = "1G"
net_rate = "10M"
[limits.max]
memory = "512M"
cpus = 2
pids = 200
disk = "128M"
open_files = 65536
output = "2M"
timeout = "5m"
net_bytes = "2G"
net_rate = "20M"
[sandbox]
minimum = "process"
backends = ["linux"]
runtime = "crun"
networks = ["none", "host", "restricted"]
mounts = ["{folder}/shown"]
private_programs = true
host_configuration = "minimal"
host_configuration_show = ["/etc/maven"]
host_configuration_hide = ["/etc/perl"]
[egress]
allow = ["pypi", "db.internal:5432"]
ca_file = "{folder}/cert.pem"
[[egress.host]]
name = "db.internal"
address = "127.0.0.1:5432"
[http]
waiting = 200
connections = 100
body = "9M"
idle = "20s"
[log]
level = "debug"
format = "json"
[metrics]
public = true
[policy]
bundle = "{folder}/policy"
sha256 = "{sha256}"
[audit]
file = "1M"
files = 5
keep = "30d"
sinks = ["syslog:udp:127.0.0.1:9"]
receipts = "4M"
[capabilities]
fetch_hosts = ["*.example.org"]
fetch_networks = ["10.1.0.0/16"]
[approvals]
ttl = "1m"
max = 5
self_approve = true
"""
_INSECURE = """
[daemon]
insecure = true
state = "{folder}/state"
[[listen]]
address = "unix:{folder}/agentd.sock"
[[listen]]
address = "127.0.0.1:0"
[auth.keys]
enabled = false
[[auth.peers]]
uid = {uid}
scopes = ["admin"]
[[auth.jwt]]
name = "theirs"
issuer = "https://issuer.example"
audience = ["agentd"]
algorithms = ["EdDSA"]
jwks_url = "https://issuer.example/jwks"
[metrics]
enabled = false
[policy]
bundle = "none"
"""
_SIGNED = """
[daemon]
state = "{folder}/state"
[[listen]]
address = "unix:{folder}/agentd.sock"
[[auth.peers]]
uid = {uid}
scopes = ["admin"]
[auth.signed]
signers = "{folder}/signers"
required = true
"""


def seen(daemon: Daemon) -> None:
    """The values in force, where a caller can see them."""
    serves(daemon)
    made = daemon.ask("POST", "/v1/sandboxes", {})
    assert made.status == 201, made.body
    held, id_ = made.json["enforcement"], made.json["id"]
    assert held["memory"]["asked"] == "192M" and held["pids"]["asked"] == "100"
    assert (held["disk"]["asked"], held["open_files"]["asked"]) == ("64M", "512")
    assert held["cpus"]["asked"] == "1.5" and made.json["backend"] == "linux"
    assert 250 < made.json["deadline"] - time.time() <= 300
    for body, said in (
        ({"memory": "1G"}, "memory of 1 GiB is more than the 512 MiB allowed here"),
        ({"timeout": "10m"}, "timeout of 600 s is more than the 300 s allowed here"),
        ({"backend": "landlock"}, "landlock may not be used here"),
        ({"workspace": "/etc:ro"}, "/etc may not be mounted"),
        ({"ttl": "2h"}, "lease"),
    ):
        refused = daemon.ask("POST", "/v1/sandboxes", body)
        assert refused.status in (400, 403) and said in refused.json["message"], refused.body
    # No wall of another name is taken where none is named.
    weak = daemon.ask("POST", "/v1/sandboxes", {"isolation": "process"})
    assert weak.json["backend"] == "linux", weak.body
    until(lambda: metric(daemon, "agentd_pool_ready") >= 1)
    flood = {"cmd": ["head", "-c", "3000000", "/dev/zero"]}
    cut = daemon.ask("POST", f"/v1/sandboxes/{id_}/exec", flood)
    assert cut.json["cause"]["code"] == "output_limit"
    key = daemon.key("other", "create")
    assert daemon.ask("POST", "/v1/sandboxes", {}, key=key).status == 201
    assert 3000 < daemon.ask("GET", "/v1/keys").json[0]["expires"] - time.time() <= 3600
    daemon.sandbox(key)
    daemon.sandbox(key)
    refused = daemon.ask("POST", "/v1/sandboxes", {}, key=key)
    assert refused.status == 429 and "3 sandboxes" in refused.json["message"]


def lets_everybody_in(daemon: Daemon) -> None:
    serves(daemon)
    assert daemon.ask("GET", "/metrics").status == 404
    until(lambda: b"127.0.0.1:" in daemon.log)


def wants_signatures(daemon: Daemon) -> None:
    refused = daemon.call("shell.exec.v1", {"command": "true"})
    assert refused.status in (401, 403) and "sign" in refused.json["message"], refused.body


GROUPS = [
    pytest.param(_MOST, seen, id="most"),
    pytest.param(_INSECURE, lets_everybody_in, id="insecure"),
    pytest.param(_SIGNED, wants_signatures, id="signed"),
]


def filled(text: str, folder: Path) -> str:
    tls(folder)
    (folder / "shown").mkdir(exist_ok=True)
    digest = read_bundle(locate(bundle_copy(folder))).digest.removeprefix("sha256:")
    signers(folder)
    jwks(folder)
    return text.format(
        folder=folder, uid=os.getuid(), group=grp.getgrgid(os.getgid()).gr_name, sha256=digest
    )


def said(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that a file's tree says, dotted as the schema's, and what it says."""
    if isinstance(value, dict):
        for name, item in value.items():
            star = "*" if path == "quotas.principals" else name
            yield from said(item, f"{path}.{star}" if path else star)
        if path in ("auth.jwt.grants", "template.env"):
            yield path, value
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for item in value:
            yield from said(item, path)
    else:
        yield path, value


def test_each_key_of_the_schema_has_a_value_that_is_not_its_default(tmp_path: Path) -> None:
    keys = set(known_keys())
    leaves = {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)}
    leaves -= {"quotas.principals"}
    usual = config.plain(config.Config())
    different = set()
    for group in GROUPS:
        text = filled(str(group.values[0]), tmp_path)
        for key, value in said(tomllib.loads(text)):
            default: Any = usual
            for part in key.split("."):
                default = default.get(part) if isinstance(default, dict) else None
            if value != default:
                different.add(key)
    assert leaves - different == set()


@pytest.mark.parametrize(("text", "works"), GROUPS)
def test_a_daemon_serves_with_each_setting_and_is_reloaded_with(
    text: str, works: Callable[[Daemon], None]
) -> None:
    with running() as daemon:
        plain = (daemon.folder / "agentd.toml").read_text()
        (daemon.folder / "agentd.toml").write_text(filled(text, daemon.folder))
        checked = daemon.cli("config", "check", f"{daemon.folder}/agentd.toml")
        assert checked.returncode == 0, checked.stdout.decode()
        reload(daemon)
        daemon.stop()
        daemon.start()
        assert daemon.is_up, daemon.log.decode()
        works(daemon)
        reload(daemon)
        (daemon.folder / "agentd.toml").write_text(plain)
        reload(daemon)
        serves(daemon)
