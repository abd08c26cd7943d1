"""Public keys of a token issuer (RFC 7517), from a file or a URL, kept while they are fresh."""

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from agentd.model.errors import InvalidInput, Unauthenticated

MAX_BYTES = 256 << 10
MAX_KEYS = 64
FETCH_SECONDS = 5.0  # for all of it
FRESH_SECONDS = 600.0  # a key that the issuer takes back holds no longer than this
STALE_SECONDS = 3600.0  # while the issuer cannot be reached; after that no token holds
REFETCH_SECONDS = 30.0  # the least time between two fetches, whatever tokens come

Jwk = Mapping[str, Any]
_PUBLIC_KINDS = ("RSA", "EC", "OKP")  # "oct" is a shared secret, and shows nothing of who signed


class KeySet(Protocol):
    """Thread-safe."""

    def find(self, kid: str | None) -> list[Jwk]:
        """Return the keys of that id, or all without one; [] where there is none.

        Raises Unauthenticated where there are no keys at all to go by.
        """


class FileKeySet:
    """Read again when the file is another one: replace it by a rename."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._keys: list[Jwk] = []

    def find(self, kid: str | None) -> list[Jwk]:
        with self._lock:
            try:
                self._read()
            except (OSError, ValueError) as error:
                # Not the old keys: the file may have been emptied to take them back.
                raise _no_keys(self._path, error) from error
            return _with_id(self._keys, kid)

    def _read(self) -> None:
        now = os.stat(self._path)
        seen = (now.st_ino, now.st_size, now.st_mtime_ns)
        if seen != self._seen:
            with open(self._path, "rb") as file:
                self._keys = parse(file.read(MAX_BYTES + 1))
            self._seen = seen


class UrlKeySet:
    """Fetched when first needed, when no longer fresh, and once for a key id never seen."""

    def __init__(
        self,
        url: str,
        fetch: Callable[[str], bytes] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_url(url)
        self._url = url
        self._fetch = fetch or fetch_url
        self._clock = clock
        self._lock = threading.Lock()  # of the next two
        self._fetching: threading.Thread | None = None  # one at a time; who waits finds its result
        self._until = 0.0  # when nobody waits for it any more
        self._keys: list[Jwk] = []
        self._fetched: float | None = None  # when it last succeeded
        self._tried: float | None = None
        self._error: Exception | None = None
        self._doubted = False

    def doubt(self) -> None:
        """Have them fetched before they are gone by again; where that fails they hold as before."""
        self._tried, self._doubted = None, True

    def find(self, kid: str | None) -> list[Jwk]:
        if self._wants_fetch(kid):
            self._await_fetch(kid)
        if self._age(self._fetched) > STALE_SECONDS:
            raise _no_keys(self._url, self._error)
        return _with_id(self._keys, kid)

    def _wants_fetch(self, kid: str | None) -> bool:
        if self._age(self._tried) < REFETCH_SECONDS:
            return False
        is_old = self._doubted or self._age(self._fetched) > FRESH_SECONDS
        return is_old or not _with_id(self._keys, kid)

    def _age(self, moment: float | None) -> float:
        return float("inf") if moment is None else self._clock() - moment

    def _await_fetch(self, kid: str | None) -> None:
        """Wait for a fetch, a new one unless one goes on; not for ever: whoever answers slowly, or
        not at all, would hold up all who log in."""
        with self._lock:
            if self._fetching is None and self._wants_fetch(kid):
                thread = threading.Thread(target=self._refresh, name="keys", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    self._error = error
                    return
                self._fetching, self._until = thread, time.monotonic() + FETCH_SECONDS
            fetching = self._fetching
        if fetching is not None:
            fetching.join(max(0.0, self._until - time.monotonic()))
            if fetching.is_alive():
                self._error = TimeoutError(f"no answer within {FETCH_SECONDS:g} s")

    def _refresh(self) -> None:
        try:
            self._keys = parse(self._fetch(self._url))
        except (OSError, ValueError) as error:
            self._error = error
        else:
            self._fetched, self._error, self._doubted = self._clock(), None, False
        finally:
            # Only now: until it is known what came of it, others wait for it.
            self._tried = self._clock()
            with self._lock:
                self._fetching = None


def parse(data: bytes) -> list[Jwk]:
    """Return the public signing keys of a JWK set. Raises ValueError where it is none."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    found = msgspec.json.decode(data)  # its errors are ValueErrors
    keys = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
        raise ValueError("it is no JWK set: it has no list of keys")
    usable = [key for key in keys if _usable(key)]
    if len(usable) > MAX_KEYS:
        raise ValueError(f"it has more than {MAX_KEYS} keys")
    return usable


def check_url(url: str) -> None:
    """Raises InvalidInput for what anybody on the way could change."""
    parts = urlsplit(url)
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and local)):
        raise InvalidInput(
            f"keys cannot be trusted from {url!r}", remediation="give an https:// URL"
        )


def fetch_url(url: str) -> bytes:
    """Fetch at most MAX_BYTES and one more. Raises OSError."""
    import http.client
    import urllib.request

    class NoRedirect(urllib.request.HTTPRedirectHandler):
        # It would lead past the check of the URL.
        def redirect_request(self, *args: Any) -> None:
            return None

    opener, until, data = urllib.request.build_opener(NoRedirect), time.monotonic(), b""
    until += FETCH_SECONDS
    try:
        with opener.open(url, timeout=FETCH_SECONDS) as answer:
            while len(data) <= MAX_BYTES and (piece := answer.read1(MAX_BYTES + 1 - len(data))):
                data += piece
                if time.monotonic() > until:
                    raise TimeoutError(f"no whole answer within {FETCH_SECONDS:g} s")
            return data
    except http.client.HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _usable(key: Jwk) -> bool:
    operations = key.get("key_ops")
    verifies = operations is None or (isinstance(operations, list) and "verify" in operations)
    # A private key that is published signs for anybody.
    private = any(part in key for part in ("d", "k", "p", "q"))
    return (
        key.get("kty") in _PUBLIC_KINDS
        and key.get("use", "sig") == "sig"
        and verifies
        and not private
    )


def _with_id(keys: list[Jwk], kid: str | None) -> list[Jwk]:
    return [key for key in keys if kid is None or key.get("kid") == kid]


def _no_keys(where: str, error: Exception | None) -> Unauthenticated:
    return Unauthenticated(
        "tokens cannot be checked now",
        cause=f"no keys from {where}: {error}",
        remediation="try again later, or use an API key",
    )
