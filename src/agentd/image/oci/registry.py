"""What skopeo is given to speak to a registry: who asks, whom to trust, which mirrors.

All of it is read here, with the caller's own rights, and is made anew in the cell: there is nothing
else of the caller's in it, and of credentials only those of the one registry.
"""

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from agentd.image.model import ImageError
from agentd.image.oci import mirrors
from agentd.image.oci.source import HUB, ImageSource
from agentd.image.oci.values import architecture
from agentd.model.errors import InvalidInput

#: Places in the cell, which are skopeo's usual ones.
POLICY, AUTH = "/etc/containers/policy.json", "/etc/containers/auth.json"
ANY = b'{"default":[{"type":"insecureAcceptAnything"}]}'
_SYSTEM = "/etc/containers"
_SIGNATURES = f"{_SYSTEM}/registries.d"
_CERTIFICATES = f"{_SYSTEM}/certs.d"
_HUB_KEYS = (HUB, "https://index.docker.io/v1/", "index.docker.io", "registry-1.docker.io")
_HELPER = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HELPER_SECONDS = 60.0
_MAX_FILE = 1 << 20
_MAX_FILES = 256
# Whom credential helpers name where the secret is an identity token.
_IDENTITY_USER = "<token>"

Credentials = dict[str, str]  # as an entry of ``auths``: "auth", or "identitytoken"


class Access(NamedTuple):
    """``files`` are made in the cell, ``words`` stand behind ``copy``."""

    files: dict[str, bytes]
    words: tuple[str, ...]


def access(source: ImageSource, *, insecure: bool, side: str = "src") -> Access:
    """Return how; ``side`` is "dest" where it is pushed to. Raises InvalidInput, ImageError."""
    files = {POLICY: policy(), **_configuration()}
    words = (f"--{side}-tls-verify=false",) if insecure else ()
    asked = [source] if side == "dest" else [source, *_mirrors(source, files)]
    auths = {each.registry: found for each in asked if (found := _credentials(each)) is not None}
    if auths:
        files[AUTH] = json.dumps({"auths": auths}).encode()
        words = (*words, f"--{side}-authfile", AUTH)
    return Access(files, words)


def _mirrors(source: ImageSource, files: Mapping[str, bytes]) -> Iterator[ImageSource]:
    """Yield the source at each of its mirrors: who may read there need not be who may read here."""
    for location in mirrors.locations(source, files):
        mirror = ImageSource("docker", location if "/" in location else f"{location}/x")
        if mirror.registry != source.registry:
            yield mirror


def policy() -> bytes:
    """Say whose signatures are asked for: as the caller's or the machine's policy.json says, else
    nobody's. Its keys come along in it. Raises InvalidInput."""
    own = os.path.join(os.path.expanduser("~"), ".config/containers/policy.json")
    for path in (own, POLICY):
        with contextlib.suppress(FileNotFoundError):
            return json.dumps(_with_keys(_json(path))).encode()
    return ANY


def _with_keys(value: Any) -> Any:
    """The policy with the content of each key in place of its path."""
    if isinstance(value, list):
        return [_with_keys(each) for each in value]
    if not isinstance(value, dict):
        return value
    if isinstance(path := value.get("keyPath"), str):
        rest = {name: each for name, each in value.items() if name != "keyPath"}
        return rest | {"keyData": base64.b64encode(_read(path)).decode()}
    return {name: _with_keys(each) for name, each in value.items()}


def _configuration() -> dict[str, bytes]:
    """Return the caller's own files and the machine's, by where the cell has them: all of it is the
    machine's there, so what would go before the machine's stands in its place."""
    files: dict[str, bytes] = {}
    for top, place in _places():
        for path in _files(top):
            with contextlib.suppress(FileNotFoundError, PermissionError):
                files[place + path.removeprefix(top)] = _read(path)
            if len(files) > _MAX_FILES:
                raise ImageError(f"{top} has more than {_MAX_FILES} files")
    return files


def _places() -> Iterator[tuple[str, str]]:
    """Yield what is read, and where the cell has it: as containers/image finds it (its
    sysregistriesv2, lookaside and tlsclientconfig), what comes later in the place of the same."""
    own = os.path.join(os.path.expanduser("~"), ".config/containers")
    mirrored = os.path.isfile(f"{own}/registries.conf")
    yield f"{own if mirrored else _SYSTEM}/registries.conf", mirrors.MIRRORS
    if not mirrored:
        yield f"{_SYSTEM}/registries.conf.d", f"{mirrors.MIRRORS}.d"
    for path in _files(f"{own}/registries.conf.d"):  # read last: they go before the machine's
        yield path, f"{mirrors.MIRRORS}.d/~{os.path.basename(path)}"
    signatures = f"{own}/registries.d"
    yield signatures if os.path.isdir(signatures) else _SIGNATURES, _SIGNATURES
    hosts = set()
    for folder in (f"{own}/certs.d", _CERTIFICATES, "/etc/docker/certs.d"):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            for host in sorted(os.listdir(folder)):
                if host not in hosts and os.path.isdir(f"{folder}/{host}"):
                    hosts.add(host)  # the first folder of a host is all that it has
                    yield f"{folder}/{host}", f"{_CERTIFICATES}/{host}"


def _files(top: str) -> Iterator[str]:
    if os.path.isfile(top):
        yield top
    for folder, _, names in os.walk(top):
        yield from (os.path.join(folder, name) for name in sorted(names))


def _credentials(source: ImageSource) -> Credentials | None:
    """What docker or podman would send there, None for nothing. Raises InvalidInput, ImageError."""
    for path in _auth_files():
        try:
            config = _json(path)
        except FileNotFoundError:
            continue
        if (found := _of(config, source)) is not None:
            return found
    return None


def _auth_files() -> list[str]:
    home = os.path.expanduser("~")
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    docker = os.environ.get("DOCKER_CONFIG") or os.path.join(home, ".docker")
    files = [os.environ.get("REGISTRY_AUTH_FILE", "")]
    files += [os.path.join(runtime, "containers/auth.json")] if runtime else []
    files += [os.path.join(home, ".config/containers/auth.json")]
    return [path for path in (*files, os.path.join(docker, "config.json")) if path]


def _of(config: Any, source: ImageSource) -> Credentials | None:
    registry, parts = source.registry, source.repository.split("/")
    # Of a namespace, or one repository: containers-auth.json(5) has the longest first.
    within = ["/".join(parts[:count]) for count in range(len(parts), 1, -1)]
    keys = _HUB_KEYS if registry == HUB else (registry, f"https://{registry}")
    helpers, auths = _table(config, "credHelpers"), _table(config, "auths")
    for key in keys:
        if isinstance(helper := helpers.get(key), str):
            return _ask(helper, key)
    # A URL means its host, whatever its path: docker has kept it so, and podman takes it.
    urls = [key for key in auths if key.partition("://")[2].partition("/")[0] in keys]
    for key in (*within, *keys, *urls):
        entry = auths.get(key)
        if isinstance(entry, dict) and (entry.get("auth") or entry.get("identitytoken")):
            return {n: str(entry[n]) for n in ("auth", "identitytoken") if entry.get(n)}
    store = config.get("credsStore") if isinstance(config, dict) else None
    if isinstance(store, str) and store:
        for key in keys if registry == HUB else keys[:1]:
            if (found := _ask(store, key)) is not None:
                return found
    return None


def _ask(helper: str, server: str) -> Credentials | None:
    """What ``docker-credential-HELPER get`` says; None where it knows nothing of the server."""
    name = f"docker-credential-{helper}"
    if not _HELPER.fullmatch(helper) or (path := shutil.which(name)) is None:
        raise ImageError(
            f"the credential helper {name} is not installed",
            remediation="install it, or take it out of docker's config.json",
        )
    try:
        done = subprocess.run(
            [path, "get"],
            input=server.encode(),
            capture_output=True,
            timeout=_HELPER_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        what = f"the credential helper {name} gave no answer"
        raise ImageError(what, cause=str(error)) from error
    said = done.stdout[:_MAX_FILE].decode("utf-8", "replace")
    if done.returncode:
        if "not found" in said:
            return None
        raise ImageError(
            f"the credential helper {name} failed for {server}", cause=" ".join(said.split())[:300]
        )
    try:
        answer = json.loads(said)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        raise ImageError(f"the credential helper {name} did not answer as one does") from None
    if user == _IDENTITY_USER:
        return {"identitytoken": secret}
    return {"auth": base64.b64encode(f"{user}:{secret}".encode()).decode()}


def _table(config: Any, name: str) -> dict[str, Any]:
    found = config.get(name) if isinstance(config, dict) else None
    return found if isinstance(found, dict) else {}


def _json(path: str) -> Any:
    """Raises InvalidInput, FileNotFoundError."""
    try:
        return json.loads(_read(path))
    except (ValueError, IsADirectoryError, PermissionError) as error:
        raise InvalidInput(
            f"{path} cannot be read", cause=str(error), remediation="mend it, or move it away"
        ) from error


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        data = file.read(_MAX_FILE + 1)
    if len(data) > _MAX_FILE:
        raise InvalidInput(f"{path} has more than {_MAX_FILE} bytes", remediation="mend it")
    return data


# What skopeo says, what that means, and what to do about it.
_MEANINGS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("http response to https client",),
        "{host} speaks plain HTTP",
        "say so if the network is to be trusted: agentd image {action} --insecure",
    ),
    (
        ("x509", "tls: "),
        "the certificate of {host} does not hold",
        "put its CA into /etc/containers/certs.d/{host}, or say --insecure",
    ),
    (
        ("unauthorized", "authentication required", "resource is denied"),
        "{host} does not let us {verb} {text}",
        "see to the name; log in with docker login {host}, or skopeo login",
    ),
    (
        ("getting username and password",),
        "the credentials for {host} cannot be read",
        "have them written anew: docker login {host}, or skopeo login",
    ),
    (
        ("loading registries configuration",),
        "the configuration of registries cannot be read",
        "mend /etc/containers/registries.conf, or the file of registries.conf.d that is named",
    ),
    (("manifest unknown", "name unknown"), "{host} has no {text}", "see to its name and tag"),
    (
        ("no descriptor found for reference",),
        "{place} has no image of that tag",
        "name one of its tags, or none where it has one image",
    ),
    (
        ("more than one image in oci",),
        "{place} has several images",
        "name one of them by its tag, as oci:./layout:tag",
    ),
    (
        ("invalid tar header", 'component "manifest.json"', "unexpected eof"),
        "{place} is no archive of an image",
        "give what docker save or skopeo copy has written, whole",
    ),
    (
        ("/index.json: no such file", "/oci-layout: no such file"),
        "{place} is no OCI layout",
        "give a folder that has index.json and blobs",
    ),
    (
        ("rejected by policy", "signature was required"),
        "the signature policy does not allow {text}",
        "see ~/.config/containers/policy.json and /etc/containers/policy.json",
    ),
    (
        ("no image found in image index", "no image found in manifest list"),
        "{text} has no image for this machine, which is {platform}",
        "name one of its images by digest, as skopeo inspect --raw lists them, if it runs here",
    ),
    (
        ("unexpectedly received a manifest list",),
        "{text} is an index of indexes, of which none is taken",
        "name one of its images by digest, as skopeo inspect --raw lists them",
    ),
    (
        ("connection refused", "no such host", "i/o timeout"),
        "{host} cannot be reached",
        "see to its name, and to HTTPS_PROXY",
    ),
    (
        ("unexpected eof",),
        "{host} broke off",
        "try again; or see to what is between, such as HTTPS_PROXY",
    ),
)


def explained(error: ImageError, source: ImageSource, action: str = "pull") -> ImageError:
    """Return the same with what to do about it, where that is known."""
    for inside in (source.transport != "docker") * ("/dev/archive", "/mnt/layout"):
        error.cause = error.cause.replace(inside, source.place)
    said = error.cause.lower()
    words = {"host": source.registry, "text": source.text, "place": source.place}
    words |= {"action": action, "verb": "have" if action == "pull" else action}
    words["platform"] = f"linux/{architecture()}"
    others = "{place}" if source.transport == "docker" else "{host}"  # alike words mean another
    for signs, message, fix in _MEANINGS:
        if others not in message and any(sign in said for sign in signs):
            return ImageError(
                message.format(**words), cause=error.cause, remediation=fix.format(**words)
            )
    return error
