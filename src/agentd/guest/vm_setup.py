"""The request of sys.setup: parsed whole before anything is done; docs/guest-protocol.md."""

import re

from agentd.guest import vm_net
from agentd.guest.operation import RequestError, get_bool, get_int
from agentd.guest.system import parse_entropy
from agentd.guest.vm_root import SCRATCH, Shared

MAX_ID = (1 << 32) - 2
MAX_BYTES = 1 << 50
MAX_PIDS = 1 << 22
MAX_CPUS = 4096
MAX_ENV = 256
MAX_RESOLVERS = 8
MAX_PLACES = 64
_MAX_PATH = 4095
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?\Z")
_MACHINE_ID = re.compile(r"[0-9a-f]{32}\Z")
_BOOT_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_FIELDS = frozenset(
    {"op", "entropy", "unix_ns", "hostname", "machine_id", "boot_id", "user", "env", "limits"}
    | {"cpus", "net", "root"}
)
_CERTIFICATE = re.compile(
    r"-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]{1,65536}\n-----END CERTIFICATE-----\n\Z"
)
_TAG = re.compile(r"[a-z0-9-]{1,20}\Z")
_LIMITS = {
    "memory": (1 << 20, MAX_BYTES),
    "pids": (1, MAX_PIDS),
    "disk": (4096, MAX_BYTES),
    "open_files": (8, 1 << 20),
}


class Net:
    """A card's address and mask, the gateway and the resolvers; ``device`` None is the first.
    Or ``relay``, the host's port that all goes to which is dialled: there is no card then.
    ``authority``, PEM, is whom programs trust, where connections are read there."""

    def __init__(self, request: dict[str, object]) -> None:
        self.relay: int | None = None
        self.authority: str | None = None
        if "relay" in request:
            _known(request, {"relay", "authority"}, "net")
            self.relay = get_int(request, "relay", 0, 1, MAX_ID)
            self.authority = _matching(request, "authority", _CERTIFICATE, "a certificate, PEM")
            return
        _known(request, {"address", "gateway", "dns", "device"}, "net")
        try:
            self.address, self.mask = vm_net.parse(_text(request, "address") or "")
            gateway = _text(request, "gateway")
            self.gateway = None if gateway is None else vm_net.parse_host(gateway)
            dns = request.get("dns", [])
            if not isinstance(dns, list) or len(dns) > MAX_RESOLVERS:
                raise RequestError(f"'dns' must be a list of at most {MAX_RESOLVERS} addresses")
            for resolver in dns:
                vm_net.parse_host(str(resolver))
        except ValueError as error:
            raise RequestError(f"net: {error}") from None
        self.dns: list[str] = dns
        self.device = _text(request, "device")


class ImageDisk:
    """An OCI image, on the disk of that serial number: what is mounted on in its root, as (path
    behind its links, whether it is a directory), the host's directories among it, and what commands
    begin with."""

    def __init__(self, request: dict[str, object]) -> None:
        known = {"disk", "writable", "places", "shares", "shown", "workdir", "env"}
        _known(request, known, "root")
        self.serial = _named(request, "disk", "a serial number")
        self.writable = get_bool(request, "writable")
        self.places = [_place(each) for each in _list(request, "places")]
        self.shares = [_shared(each) for each in _list(request, "shares")]
        self.shown = [_path(each) for each in _list(request, "shown")]
        if not set(self.shown) <= set(SCRATCH):
            raise RequestError(f"'shown' must be some of {', '.join(SCRATCH)}")
        self.workdir = None if request.get("workdir") is None else _path(request["workdir"])
        self.env = _env(request.get("env")) or {}


class Setup:
    """Raises RequestError for what is malformed. None is what was not asked for."""

    def __init__(self, request: dict[str, object]) -> None:
        _known(request, _FIELDS, "sys.setup")
        self.hostname = _matching(request, "hostname", _HOSTNAME, "letters, digits, '-' and '.'")
        self.machine_id = _matching(request, "machine_id", _MACHINE_ID, "32 hexadecimal digits")
        self.boot_id = _matching(request, "boot_id", _BOOT_ID, "a UUID in lower case")
        self.entropy = parse_entropy(request) if "entropy" in request else None
        self.unix_ns = _number(request, "unix_ns", 0, (1 << 63) - 1)
        self.user = _number(request, "user", 0, MAX_ID)
        self.env = _env(request.get("env"))
        self.cpus = _cpus(request.get("cpus"))
        limits = _object(request, "limits") or {}
        _known(limits, set(_LIMITS), "limits")
        found = {name: _number(limits, name, *bounds) for name, bounds in _LIMITS.items()}
        self.memory, self.pids = found["memory"], found["pids"]
        self.disk, self.open_files = found["disk"], found["open_files"]
        net = _object(request, "net")
        self.net = None if net is None else Net(net)
        root = _object(request, "root")
        self.root = None if root is None else ImageDisk(root)


def _known(value: dict[str, object], names: frozenset[str] | set[str], what: str) -> None:
    unknown = sorted(set(value) - names)
    if unknown:
        # A control that is passed over in silence would be believed to hold.
        raise RequestError(f"{what} has no field {unknown[0][:64]!r}")


def _object(request: dict[str, object], key: str) -> dict[str, object] | None:
    value = request.get(key)
    if value is not None and not isinstance(value, dict):
        raise RequestError(f"{key!r} must be an object")
    return value


def _list(request: dict[str, object], key: str) -> list[object]:
    value = request.get(key, [])
    if not isinstance(value, list) or len(value) > MAX_PLACES:
        raise RequestError(f"{key!r} must be a list of at most {MAX_PLACES}")
    return value


def _place(value: object) -> tuple[str, bool]:
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], bool):
        raise RequestError("each of 'places' must be a path, and whether it is a directory")
    return _path(value[0]), value[1]


def _shared(value: object) -> Shared:
    if not isinstance(value, dict):
        raise RequestError("each of 'shares' must be an object")
    _known(value, {"tag", "target", "readonly"}, "shares")
    return Shared(
        _named(value, "tag", "a tag"), _path(value.get("target")), get_bool(value, "readonly")
    )


def _named(request: dict[str, object], key: str, what: str) -> str:
    found = _matching(request, key, _TAG, what)
    if found is None:
        raise RequestError(f"{key!r} must be a string")
    return found


def _path(value: object) -> str:
    """An absolute one that leads nowhere but down."""
    plain = isinstance(value, str) and value.startswith("/") and "\0" not in value
    if not isinstance(value, str) or not plain or len(value) > _MAX_PATH:
        raise RequestError("root: a path must be absolute")
    if ".." in value.split("/"):
        raise RequestError("root: a path must not have '..'")
    return value


def _text(request: dict[str, object], key: str) -> str | None:
    value = request.get(key)
    if value is not None and not isinstance(value, str):
        raise RequestError(f"{key!r} must be a string")
    return value


def _matching(
    request: dict[str, object], key: str, form: "re.Pattern[str]", what: str
) -> str | None:
    value = _text(request, key)
    if value is not None and not form.match(value):
        raise RequestError(f"{key!r} must be {what}")
    return value


def _number(request: dict[str, object], key: str, low: int, high: int) -> int | None:
    return None if request.get(key) is None else get_int(request, key, low, low, high)


def _cpus(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= MAX_CPUS:
        raise RequestError(f"'cpus' must be a number over 0, {MAX_CPUS} at most")
    return float(value)


def _env(value: object) -> dict[str, str] | None:
    if value is None:
        return None
    if (
        not isinstance(value, dict)
        or len(value) > MAX_ENV
        or not all(isinstance(text, str) and "\0" not in text for text in value.values())
    ):
        raise RequestError(f"'env' must be an object of at most {MAX_ENV} strings")
    return value
