"""Layers on their way into umoci, which may stop to read one of them."""

import gzip
import hashlib
import io
import os
import tarfile
import threading
from pathlib import Path

from agentd.image.oci.bounds import BOUNDS
from agentd.image.oci.handover import Handover
from agentd.image.oci.values import LAYER, Descriptor


def _layer(folder: Path, fill: bytes) -> tuple[Descriptor, Descriptor]:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        entry = tarfile.TarInfo("file")
        entry.size = 8 << 20
        archive.addfile(entry, io.BytesIO(fill * entry.size))
    data, found = made.getvalue(), []
    for kind, content in ((f"{LAYER}+gzip", gzip.compress(data, 1)), (LAYER, data)):
        digest = hashlib.sha256(content).hexdigest()
        found.append(Descriptor(kind, f"sha256:{digest}", len(content)))
        if kind != LAYER:
            (folder / digest).write_bytes(content)
    return found[0], found[1]


def test_who_stops_to_read_one_is_kept_at_no_other(tmp_path: Path) -> None:
    packed, blobs = tmp_path / "packed", tmp_path / "blobs"
    packed.mkdir()
    blobs.mkdir()
    layers = [_layer(packed, fill) for fill in (b"a", b"b")]
    first, second = (blobs / archive.digest.removeprefix("sha256:") for _, archive in layers)
    with Handover(str(packed), str(blobs), layers, BOUNDS) as handover:
        fd = os.open(first, os.O_RDONLY)
        assert os.read(fd, 1 << 16)
        os.close(fd)
        found: list[bytes] = []
        reader = threading.Thread(target=lambda: found.append(second.read_bytes()), daemon=True)
        reader.start()
        reader.join(120)
        assert found == [b""]
    assert not handover.complete and handover.error is None
