"""An image that is larger than it may be: told by name, before it is unpacked, and nothing left."""

import json
import os
import tarfile
import threading
from collections.abc import Callable, Sequence
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.oci import ARCHITECTURE, Images, Layout, file, folder, layer, link

from agentd.image.model import ImageError
from agentd.image.oci.bounds import ImageBounds
from agentd.image.oci.pull import pull

pytestmark = [pytest.mark.needs("skopeo", "umoci"), pytest.mark.timeout(900)]
MIB = 1 << 20


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(tmp_path)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


def zeros() -> list[bytes]:
    """Half in each: no layer is too large by itself."""
    return [layer(file(f"zeros{n}", bytes(MIB * 3 // 4))) for n in range(2)]


def many() -> list[bytes]:
    return [layer(*(file(f"{n}-{m}") for m in range(60))) for n in range(2)]


def deep() -> list[bytes]:
    """What umoci takes 40 s for; and by a name that a pax header has."""
    paths = ["d/" * depth + "d" for depth in range(1, 1300)]
    return [layer(*(folder(path) for path in paths))]


def sparse() -> list[bytes]:
    """A file of 2 GiB, of which 1 byte is in the archive."""
    info = tarfile.TarInfo("sparse")
    info.size = 1
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.size": str(2 << 30),
        "GNU.sparse.numblocks": "1",
        "GNU.sparse.map": "0,1",
    }
    return [layer((info, b"x"))]


def sparse_of_old() -> list[bytes]:
    """The same in GNU's own format, whose header tells the size."""
    info = tarfile.TarInfo("sparse")
    info.size, info.type = 1, tarfile.GNUTYPE_SPARSE
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[386:410] = b"%011o\0%011o\0" % (0, 1)
    block[483:495] = b"%011o\0" % (2 << 30)
    block[148:156] = b"%06o\0 " % sum(block[:148] + b" " * 8 + block[156:])
    return [bytes(block) + b"x".ljust(512, b"\0") + bytes(1024)]


def behind_the_end() -> list[bytes]:
    """What no file has, and is there to be read."""
    return [layer(file("a")) + bytes(2 * MIB)]


@pytest.mark.parametrize(
    ("layers", "packed", "option", "said"),
    [
        (zeros, "gzip", ("--max-size", "1M"), "has more than 1 MiB unpacked"),
        (zeros, "zstd", ("--max-size", "1M"), "has more than 1 MiB unpacked"),
        (zeros, "gzip in parts", ("--max-size", "1M"), "has more than 1 MiB unpacked"),
        (zeros, "zstd in parts", ("--max-size", "1M"), "has more than 1 MiB unpacked"),
        (zeros, "", ("--max-size", "1M"), "has more than 1 MiB unpacked"),
        (behind_the_end, "gzip", ("--max-size", "1M"), "has more than 1 MiB unpacked"),
        (sparse, "gzip", ("--max-size", "1G"), "has more than 1 GiB unpacked"),
        (sparse_of_old, "gzip", ("--max-size", "1G"), "has more than 1 GiB unpacked"),
        (many, "gzip", ("--max-files", "100"), "has more than 100 files"),
        (deep, "gzip", (), "has directories 257 deep in each other, and 256 is the most"),
    ],
)
def test_beyond_a_bound_it_is_refused_by_name(
    layers: Callable[[], Sequence[bytes]],
    packed: str,
    option: tuple[str, ...],
    said: str,
    images: Images,
    layout: Layout,
) -> None:
    source = layout.add(layers(), packed=packed)
    err = images.run("pull", source, "--name", "big", *option, code=125).stderr
    assert said in err and "Traceback" not in err
    if option:
        assert f"pull it with a larger {option[0]}" in err
    nothing_is_left(images)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--max-files", "5"), "has more than 5 files"),
        (("--max-size", "1G"), "has more than 1 GiB unpacked"),
        ((), "has directories 257 deep in each other"),
    ],
)
def test_a_directory_is_measured_as_it_is_packed(
    option: tuple[str, ...], said: str, images: Images, tmp_path: Path
) -> None:
    """A file of holes would be packed for hours, and fill the disk."""
    root = tmp_path / "rootfs"
    (root / "a").mkdir(parents=True)
    for name in "bcdefg":
        (root / name).touch()
    if not option:
        (root / "a" / "/".join("d" * 256)).mkdir(parents=True)
    else:
        with open(root / "hole", "wb") as hole:
            hole.truncate(1 << 40)
    err = images.run("pull", f"dir:{root}", "--name", "big", *option, code=125).stderr
    assert said in err and "Traceback" not in err
    nothing_is_left(images)


def lying(name: str, size: bytes, records: bytes = b"") -> bytes:
    """A layer whose header has this for the size of a file of 600 bytes, or a pax header before."""
    info = tarfile.TarInfo(name)
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = size
    block[148:156] = b"%06o\0 " % sum(block[:148] + b" " * 8 + block[156:])
    head = b""
    if records:
        before = tarfile.TarInfo("pax")
        before.type, before.size = tarfile.XHDTYPE, len(records)
        head = before.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512, b"\0")
    return head + bytes(block) + b"x" * 600 + bytes(1448)


def binary(size: int) -> bytes:
    return b"\x80" + size.to_bytes(11, "big")


def blob(layout: Layout, descriptor: dict[str, str]) -> bytes:
    return (layout.path / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()


MOST = 2**63 - 1
TRUE = b"%011o\0" % 600
FULL = "no space left on device"


@pytest.mark.parametrize("packed", ["gzip", "gzip in parts", "zstd", ""])
@pytest.mark.parametrize(
    ("data", "why"),
    [
        (lying("a", binary(MOST)), f"'a' has {MOST} bytes, and 2048 are there"),
        (lying(FULL, binary(1 << 40)), f"'{FULL}' has {1 << 40} bytes, and 2048 are there"),
        (lying("a", binary(MOST + 1)), f"'a' has {MOST + 1} bytes"),
        (lying("a", TRUE, b"28 size=9223372036854775807\n"), f"'a' has {MOST} bytes, and 2048"),
        (lying("a", TRUE, b"29 size=99999999999999999999\n"), "it is b'99999999999999999999'"),
        (lying("a", TRUE, b"11 size=-1\n"), "it is b'-1'"),
        (lying("a", TRUE, b"77 size=1\n"), "says that it has b'77' bytes"),
        (b"x" * 3000, "it is no tar archive"),
    ],
    ids=[
        "most",
        "called as an error",
        "beyond",
        "pax",
        "pax beyond",
        "pax below",
        "pax none",
        "none",
    ],
)
def test_a_layer_that_says_what_cannot_be_is_told_by_its_digest(
    data: bytes, why: str, packed: str, images: Images, layout: Layout
) -> None:
    source = layout.add([layer(file("good")), data], packed=packed)
    err = images.run("pull", source, "--name", "big", code=125).stderr
    whole = blob(layout, json.loads((layout.path / "index.json").read_text())["manifests"][0])
    digest = json.loads(whole)["layers"][1]["digest"]
    assert f"the layer {digest} is malformed: " in err and why in err
    assert "no room" not in err and "umoci" not in err and "Traceback" not in err
    nothing_is_left(images)


def test_a_file_that_is_called_as_an_error_is_no_full_disk(images: Images, layout: Layout) -> None:
    source = layout.add([layer(link(FULL, "nosuch", hard=True))])
    err = images.run("pull", source, "--name", "big", code=125).stderr
    assert "umoci failed" in err and "no such file" in err and "no room" not in err
    source = layout.add([layer(link("file too large", "nosuch", hard=True))])
    err = images.run("pull", source, "--name", "big", code=125).stderr
    assert "umoci failed" in err and "no such file" in err and "larger than" not in err


def test_at_its_bounds_it_is_pulled(images: Images, layout: Layout) -> None:
    images.run("pull", layout.add(many()), "--name", "a", "--max-files", "130", "--max-size", "1M")
    for option in ("--max-files", "--max-size"):
        for wrong in ("0", "-1", "٣", "x", "1e3"):
            err = images.run("pull", "dir:/etc", "--name", "a", option, wrong, code=2).stderr
            assert option in err and "Traceback" not in err


def test_a_layer_is_as_large_as_it_may_be_and_is_not_fetched_beyond(
    images: Images, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(images.cache))
    source = layout.add([layer(file("random", os.urandom(MIB)))])
    with pytest.raises(ImageError, match=r"larger than the 512 KiB"):
        pull(source, "big", bounds=ImageBounds(layer=MIB >> 1))
    nothing_is_left(images)
    pull(source, "big", bounds=ImageBounds(layer=2 * MIB))


class _Endless(BaseHTTPRequestHandler):
    """A registry whose image has three layers of which it sends 3 MiB each, and then the rest
    never."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        digests = [f"sha256:{sha256(bytes([n])).hexdigest()}" for n in range(3)]
        told = {"type": "layers", "diff_ids": digests}
        about = {"architecture": ARCHITECTURE, "os": "linux", "config": {}, "rootfs": told}
        config = json.dumps(about).encode()
        kind = "application/vnd.oci.image"
        layers = [
            {"mediaType": f"{kind}.layer.v1.tar+gzip", "digest": each, "size": 9}
            for each in digests
        ]
        first = f"sha256:{sha256(config).hexdigest()}"
        described = {
            "mediaType": f"{kind}.config.v1+json", "digest": first, "size": len(config),
        }  # fmt: skip
        whole = {"schemaVersion": 2, "mediaType": f"{kind}.manifest.v1+json"}
        manifest = json.dumps({**whole, "config": described, "layers": layers}).encode()
        if self.path.rpartition("/")[2] in digests:
            self._head("application/octet-stream", 1 << 40)
            self.wfile.write(os.urandom(3 * MIB))
            self.rfile.read()  # until it goes away
        elif "/manifests/" in self.path:
            self._head(str(whole["mediaType"]), len(manifest))
            self.wfile.write(manifest)
        else:
            data = config if self.path.endswith(first) else b"{}"
            self._head("application/octet-stream", len(data))
            self.wfile.write(data)

    def _head(self, kind: str, size: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_all_layers_together_are_not_fetched_beyond_what_they_may_have(images: Images) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Endless) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            source = f"docker://127.0.0.1:{server.server_address[1]}/x:1"
            words = ("--insecure", "--name", "x", "--max-size", "4M", "--timeout", "120s")
            err = images.run("pull", source, *words, code=125).stderr
        finally:
            server.shutdown()
            thread.join()
    assert "skopeo wrote more than " in err and "--max-size" in err, err
    nothing_is_left(images)


def nothing_is_left(images: Images) -> None:
    assert images.left() == []
    assert images.told("ls") == []
    oci = images.cache / "agentd/oci"
    assert os.listdir(oci / "blobs/sha256") == []
    assert [name for name in os.listdir(oci / "roots") if not name.endswith(".lock")] == []
