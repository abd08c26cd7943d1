"""What tells programs where the certificates are that a sandbox trusts, and who signs them."""

from collections.abc import Mapping
from typing import Any

from agentd.egress.authority import Authority, make
from agentd.egress.table import EgressTable
from agentd.guest.zygote.certificates import BUNDLE
from agentd.model.errors import Refused

# Who looks at none of the system's places, and by which variable it is told: all but Node's and
# Deno's are in place of what the program brings along.
VARIABLES = (
    *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT"),
    *("NODE_EXTRA_CA_CERTS", "npm_config_cafile", "DENO_CERT", "CARGO_HTTP_CAINFO"),
    *("AWS_CA_BUNDLE", "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"),
    *("NIX_SSL_CERT_FILE", "HEX_CACERTS_PATH"),
)
Table = Mapping[str, Any]


def variables(table: Table | None) -> dict[str, str]:
    """Return what commands have in their environment; nothing where nothing is read."""
    return dict.fromkeys(VARIABLES, BUNDLE) if reads(table) else {}


def reads(table: Table | None) -> bool:
    """Tells whether some connection by these rules is read."""
    return table is not None and EgressTable(table).reads


def authority(table: Table | None) -> Authority | None:
    """Return a new one for the names of these rules; None where nothing is read."""
    if table is None or not reads(table):
        return None
    hosts = [rule["host"] for rule in table["rules"] if "host" in rule and rule["host"] != "*"]
    return make([*_terminated(table), *hosts])


def check_covered(table: Table, own: Authority | None) -> None:
    """Raises Refused where these rules would have connections read that the programs of a sandbox
    with the authority ``own`` would not trust: what they trust is settled as it is made."""
    hosts = [rule["host"] for rule in table["rules"] if "http" in rule]
    for host in (*_terminated(table), *hosts):
        if own is None or not own.covers(host):
            what = "has no authority" if own is None else "has an authority for other names"
            raise Refused(
                f"requests to {host} cannot be judged in this sandbox: it {what}",
                remediation=f"make one with a rule of that host, as 'read {host}'",
            )


def _terminated(table: Table) -> list[str]:
    return [host.partition(":")[0] for host in table.get("terminated", ())]
