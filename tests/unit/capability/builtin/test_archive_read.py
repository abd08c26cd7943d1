"""archive.read.v1 in real sandboxes, against archives that were built to do harm."""

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from agentd.model.capability import CallFailed
from agentd.model.errors import InvalidInput

NAME = "archive.read.v1"
EVERYTHING = "find /workspace /tmp /home /dev/shm -mindepth 1"  # all places to write to
FILES = {"a.txt": b"roses are red\n", "d/b.bin": bytes(range(256)), "d/e/empty": b""}


@pytest.fixture(scope="module", params=["linux"])
def backend(request: pytest.FixtureRequest) -> str:
    """One wall: what is tested is the script, and the examples run behind the others."""
    return str(request.param)


def zip_of(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return made.getvalue()


def zip_entry(name: str, mode: int, data: bytes = b"x") -> bytes:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(info, data)
    return made.getvalue()


def tar_of(files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    return tar_entries(*(entry(name, data=data) for name, data in files.items()), form=form)


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **fields: Any
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def tar_entries(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return made.getvalue()


FORMS: dict[str, Callable[[], bytes]] = {
    "zip": lambda: zip_of(FILES),
    "tar": lambda: tar_of(FILES),
    "tar.gz": lambda: gzip.compress(tar_of(FILES, tarfile.GNU_FORMAT)),
    "tar.bz2": lambda: bz2.compress(tar_of(FILES, tarfile.USTAR_FORMAT)),
    "tar.xz": lambda: lzma.compress(tar_of(FILES)),
}


def fails(box: Any, data: bytes, **parameters: Any) -> CallFailed:
    """Nothing is written by what is refused."""
    box.put("x", data)
    before = box.sh(EVERYTHING).text
    with pytest.raises(CallFailed) as caught:
        box.call(NAME, path="x", **{"op": "extract", "to": "out", **parameters})
    assert box.sh(EVERYTHING).text == before
    return caught.value


# --- what it does ---


@pytest.mark.parametrize("form", FORMS)
def test_each_format_is_known_by_its_content(box: Any, form: str) -> None:
    box.put("misnamed.txt", FORMS[form]())
    listed = box.call(NAME, path="misnamed.txt")
    assert listed["format"] == form
    assert {(m["name"], m["size"], m["problem"]) for m in listed["members"]} == {
        (name, len(data), "") for name, data in FILES.items()
    }
    done = box.call(NAME, path="misnamed.txt", op="extract", to="out")
    assert done["files"] == 3


@pytest.mark.parametrize("form", FORMS)
def test_each_format_is_extracted_and_read(box: Any, form: str) -> None:
    box.put("x", FORMS[form]())
    done = box.call(NAME, path="x", op="extract", to="out")
    assert done == {
        "format": form,
        "path": f"{box.inside.workspace}/out",
        "files": 3,
        "directories": 2,
        "bytes": sum(len(data) for data in FILES.values()),
    }
    for name, data in FILES.items():
        assert box.get(f"out/{name}") == data
    read = box.call(NAME, path="x", op="read", member="./a.txt")
    assert read == {
        "format": form,
        "member": "a.txt",
        "content": "roses are red\n",
        "encoding": "utf-8",
        "size": 14,
        "truncated": False,
    }
    assert box.call(NAME, path="x", op="read", member="d/b.bin")["encoding"] == "base64"
    assert box.sh("ls -A").text.split() == ["out", "x"]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_one_compressed_file_of_several_streams(box: Any, pack: Callable[[bytes], bytes]) -> None:
    form = {gzip.compress: "gz", bz2.compress: "bz2", lzma.compress: "xz"}[pack]
    box.put(f"poem.{form}", pack(b"roses ") + pack(b"are red"))
    listed = box.call(NAME, path=f"poem.{form}")
    assert listed["format"] == form
    assert listed["members"] == [
        {"name": "poem", "type": "file", "size": None, "mode": 0o644, "problem": ""}
    ]
    assert box.call(NAME, path=f"poem.{form}", op="read", member="poem")["content"] == (
        "roses are red"
    )


def test_a_part_of_a_large_member(box: Any) -> None:
    box.put("x", tar_of({"a": "é".encode() * 1000}))
    read = box.call(NAME, path="x", op="read", member="a", max_bytes=5)
    assert read["content"] == "éé" and read["truncated"] and read["size"] == 2000


def test_some_members_and_what_is_below_them(box: Any) -> None:
    box.put("x", zip_of({**FILES, "dd/c": b"", "../evil": b""}))
    box.call(NAME, path="x", op="extract", to="out", members=["d/"])
    assert box.sh("cd out && find . -type f | sort").text.split() == ["./d/b.bin", "./d/e/empty"]
    error = fails(box, zip_of(FILES), members=["a.txt", "gone"], to="out2")
    assert error.code == "member_not_found" and "gone" in error.message


def test_modes_are_plain(box: Any) -> None:
    box.put("x", tar_entries(entry("run", mode=0o777), entry("no", mode=0), entry("d", b"5")))
    box.call(NAME, path="x", op="extract", to="out")
    modes = box.sh("stat -c %a out out/run out/no out/d").text.split()
    assert modes == ["755", "755", "644", "755"]


def test_a_listing_ends_at_max_members_and_says_so(box: Any) -> None:
    box.put("x", zip_of({str(n): b"" for n in range(10)}))
    listed = box.call(NAME, path="x", max_members=4)
    assert len(listed["members"]) == 4 and listed["truncated"]
    assert not box.call(NAME, path="x", max_members=10)["truncated"]


def test_what_is_there_stays(box: Any) -> None:
    box.put("out/mine", "x")
    box.put("x", zip_of(FILES))
    with pytest.raises(CallFailed) as caught:
        box.call(NAME, path="x", op="extract", to="out")
    assert caught.value.code == "exists"
    box.sh("test $(ls out) = mine && ln -s /tmp link")
    with pytest.raises(CallFailed) as caught:
        box.call(NAME, path="x", op="extract", to="link")
    assert caught.value.code == "exists"


def test_what_an_operation_needs(box: Any) -> None:
    for parameters in (
        {"op": "read"},
        {"op": "extract"},
        {"op": "read", "member": "a", "max_bytes": 9 << 20},
    ):
        with pytest.raises(InvalidInput):
            box.call(NAME, path="x", **parameters)


# --- where it may not read and write ---


def test_links_to_an_archive_and_to_a_target_are_not_followed(box: Any) -> None:
    box.put("d/x", zip_of(FILES))
    box.sh("ln -s d/x file; ln -s d dir; ln -s /tmp away; mkfifo pipe")
    for path, code in (
        ("file", "link"),
        ("dir/x", "link"),
        ("d", "not_a_file"),
        ("pipe", "not_a_file"),
        ("gone", "not_found"),
        ("gone/x", "not_found"),
        ("d/../d/x", "bad_path"),
    ):
        with pytest.raises(CallFailed) as caught:
            box.call(NAME, path=path)
        assert caught.value.code == code, path
    with pytest.raises(CallFailed) as caught:
        box.call(NAME, path="d/x", op="extract", to="away/out")
    assert caught.value.code == "link"
    assert box.sh("ls -A /tmp").text == ""


UNSAFE = {
    "../evil": "traversal",
    "a/../../evil": "traversal",
    "a/..": "traversal",
    "/tmp/evil": "absolute_path",
    "//tmp/evil": "absolute_path",
    "C:/evil": "absolute_path",
    "c:evil": "absolute_path",
    "..\\evil": "bad_name",
    "a\\b": "bad_name",
    "a\nb": "bad_name",
    "a\x1b[2J": "bad_name",
    "a/" * 65 + "b": "bad_name",
    "a" * 256: "bad_name",
}


@pytest.mark.parametrize("name", UNSAFE)
@pytest.mark.parametrize("form", ["zip", "tar", "gnu"])
def test_names_that_lead_elsewhere(box: Any, name: str, form: str) -> None:
    kind = tarfile.PAX_FORMAT if form == "tar" else tarfile.GNU_FORMAT
    files = {"good": b"good", name: b"evil"}
    data = zip_of(files) if form == "zip" else tar_of(files, kind)
    assert fails(box, data).code == UNSAFE[name]
    listed = box.call(NAME, path="x")["members"]
    assert [m["problem"] for m in listed] == ["", UNSAFE[name]]


def test_a_nul_in_a_name(box: Any) -> None:
    data = zip_of({"good.txtXexe": b""}).replace(b"txtX", b"txt\0")
    assert fails(box, data).code == "bad_name"
    pax = tar_entries(entry("good", pax_headers={"path": "goodX.exe"})).replace(b"dX.", b"d\0.")
    assert fails(box, pax).code == "bad_name"


def test_a_name_that_is_not_utf_8(box: Any) -> None:
    data = tar_of({"aXb": b""}, tarfile.GNU_FORMAT)
    info = tarfile.TarInfo("a\udcffb")
    data = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + bytes(1024)
    assert fails(box, data).code == "bad_name"
    assert box.call(NAME, path="x")["members"][0]["name"] == "a\ufffdb"


@pytest.mark.parametrize(
    ("kind", "fields", "code"),
    [
        (tarfile.SYMTYPE, {"linkname": "/etc"}, "link"),
        (tarfile.LNKTYPE, {"linkname": "../../etc/passwd"}, "link"),
        (tarfile.CHRTYPE, {"devmajor": 1, "devminor": 3}, "device"),
        (tarfile.BLKTYPE, {"devmajor": 8}, "device"),
        (tarfile.FIFOTYPE, {}, "device"),
        (tarfile.REGTYPE, {"mode": 0o4755}, "setuid"),
        (tarfile.DIRTYPE, {"mode": 0o2755}, "setuid"),
        (b"Z", {}, "unsupported"),
        (tarfile.REGTYPE, {"pax_headers": {"GNU.sparse.size": "1"}}, "unsupported"),
    ],
)
def test_tar_members_that_are_no_plain_files(
    box: Any, kind: bytes, fields: dict[str, Any], code: str
) -> None:
    data = tar_entries(entry("good"), entry("evil", kind, **fields), entry("evil/below"))
    assert fails(box, data).code == code
    assert [m["problem"] for m in box.call(NAME, path="x")["members"]] == ["", code, ""]


@pytest.mark.parametrize(
    ("mode", "code"),
    [
        (stat.S_IFLNK | 0o777, "link"),
        (stat.S_IFCHR | 0o666, "device"),
        (stat.S_IFIFO | 0o666, "device"),
        (stat.S_IFREG | 0o4755, "setuid"),
    ],
)
def test_zip_members_that_are_no_plain_files(box: Any, mode: int, code: str) -> None:
    assert fails(box, zip_entry("evil", mode, b"/etc/passwd")).code == code


@pytest.mark.parametrize("form", ["zip", "tar"])
@pytest.mark.parametrize("names", [("a", "a"), ("a", "./a"), ("a", "a/b"), ("a/b", "a")])
def test_a_name_that_is_there_twice(box: Any, form: str, names: tuple[str, str]) -> None:
    if form == "tar":
        data = tar_entries(*(entry(name, data=b"x") for name in names))
    else:
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as archive, pytest.WarningsRecorder(_ispytest=True):
            for name in names:
                archive.writestr(name, b"x")
        data = made.getvalue()
    assert fails(box, data).code == "duplicate"
    if names[1] in ("a", "./a") and names[0] == "a":
        assert fails(box, data, op="read", member="a").code == "duplicate"


# --- bombs ---


def zeros(size: int, pack: Any) -> bytes:
    return b"".join(pack.compress(bytes(1 << 20)) for _ in range(size >> 20)) + pack.flush()


@pytest.mark.parametrize("form", ["gz", "bz2", "xz"])
def test_a_stream_that_inflates_a_lot(box: Any, form: str) -> None:
    engine = {
        "gz": lambda: zlib.compressobj(9, zlib.DEFLATED, 31),
        "bz2": bz2.BZ2Compressor,
        "xz": lzma.LZMACompressor,
    }[form]()
    data = zeros(64 << 20, engine)
    assert fails(box, data).code == "bomb"
    assert fails(box, data, max_ratio=100_000, max_bytes=1 << 20).code == "too_large"


def test_an_xz_stream_that_asks_for_a_gibibyte_to_be_read_by(box: Any) -> None:
    """By the dictionary that its header says, however little is in it (.xz format, 5.3.1)."""
    data = bytearray(lzma.compress(tar_of(FILES)))
    end = 12 + (data[12] + 1) * 4  # of the block's header
    assert (data[14], data[15]) == (0x21, 1)  # LZMA2, and its one property
    data[16] = 36
    data[end - 4 : end] = struct.pack("<I", zlib.crc32(data[12 : end - 4]))
    assert lzma.decompress(data) == tar_of(FILES)
    assert fails(box, bytes(data)).code == "corrupt"


def test_a_zip_member_that_inflates_a_lot(box: Any) -> None:
    data = zip_of({"a": bytes(32 << 20)})
    assert fails(box, data).code == "bomb"
    assert box.call(NAME, path="x")["members"][0]["problem"] == "bomb"
    assert fails(box, data, max_ratio=100_000, max_bytes=1 << 20).code == "too_large"


def test_a_zip_that_states_less_than_it_holds(box: Any) -> None:
    data = zip_of({"a": bytes(1 << 20)})
    size = struct.pack("<L", 1 << 20)
    assert data.count(size) == 2
    assert fails(box, data.replace(size, struct.pack("<L", 100))).code == "corrupt"


def test_zip_members_that_share_their_data(box: Any) -> None:
    one = zip_of({"a": b"x" * 100}, zipfile.ZIP_STORED)
    start = one.index(b"PK\1\2")
    record, end = one[start : one.index(b"PK\5\6")], one[one.index(b"PK\5\6") :]
    fields = list(struct.unpack("<4s4H2LH", end))
    fields[3] = fields[4] = 2
    fields[5] = 2 * len(record)
    second = record[:-1] + b"b"
    assert fails(box, one[:start] + record + second + struct.pack("<4s4H2LH", *fields)).code == (
        "bomb"
    )


@pytest.mark.parametrize("offset", [1 << 40, (1 << 63) - 1, (1 << 64) - 1])
def test_a_zip_member_that_begins_nowhere(box: Any, offset: int) -> None:
    """By the field for archives of over 4 GiB."""
    made = zip_of({"a": b"x"}, zipfile.ZIP_STORED)
    at, end = made.index(b"PK\x01\x02"), made.index(b"PK\x05\x06")
    directory, tail = bytearray(made[at : at + 46]), bytearray(made[end:])
    field = struct.pack("<HHQ", 1, 8, offset)
    struct.pack_into("<H", directory, 30, len(field))
    struct.pack_into("<L", directory, 42, (1 << 32) - 1)
    struct.pack_into("<L", tail, 12, 47 + len(field))
    data = made[:at] + directory + b"a" + field + tail
    assert fails(box, bytes(data)).code == "corrupt"
    assert fails(box, bytes(data), op="read", member="a").code == "corrupt"


def test_a_zip_directory_that_is_too_large(box: Any) -> None:
    names = ("a" * 3990 + str(n) for n in range(2200))
    assert fails(box, zip_of(dict.fromkeys(names, b""))).code == "bomb"


def test_a_zip_that_states_a_huge_directory(box: Any) -> None:
    data = bytearray(zip_of({"a": b"x"}))
    end = data.index(b"PK\5\6")
    data[end + 12 : end + 16] = struct.pack("<L", 0x7FFFFFF0)
    assert fails(box, bytes(data)).code == "corrupt"


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_too_many_members(box: Any, form: str) -> None:
    files = {str(n): b"" for n in range(11)}
    data = zip_of(files) if form == "zip" else tar_of(files)
    assert fails(box, data, max_members=10).code == "too_many_members"


def test_directories_that_names_imply_count_too(box: Any) -> None:
    files = {f"{n}/" + "d/" * 60 + "a": b"" for n in range(5)}
    assert fails(box, zip_of(files), max_members=100).code == "too_many_members"


@pytest.mark.parametrize("kind", [b"x", b"g", b"L"])
def test_a_tar_header_that_fills_the_memory(box: Any, kind: bytes) -> None:
    info = tarfile.TarInfo("a")
    info.type, info.size = kind, 1 << 32
    assert fails(box, info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20)).code == "bomb"


def test_global_tar_headers_that_pile_up(box: Any) -> None:
    made = b"".join(
        tarfile.TarInfo.create_pax_global_header({f"k{n}.{m}": "x" for m in range(50)})
        for n in range(3)
    )
    assert fails(box, made + bytes(1024)).code == "bomb"


def test_an_archive_in_an_archive_is_a_file(box: Any) -> None:
    inner = zip_of({"../evil": b"x"})
    box.put("x", zip_of({"inner.zip": inner}))
    box.call(NAME, path="x", op="extract", to="out")
    assert box.get("out/inner.zip") == inner


# --- damage ---


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("missing", [1, 20, 100])
def test_an_archive_that_ends_early(box: Any, form: str, missing: int) -> None:
    data = FORMS[form]() if form != "tar" else tar_of(FILES)[: 2560 + 512]
    assert fails(box, data[:-missing]).code == "corrupt"


@pytest.mark.parametrize("size", [700, 1024, 1200, 2560])
def test_a_tar_that_ends_in_a_member_or_between_two(box: Any, size: int) -> None:
    assert fails(box, tar_of(FILES)[:size]).code == "corrupt"
    assert fails(box, gzip.compress(tar_of(FILES)[:size])).code == "corrupt"


def test_a_member_whose_checksum_is_wrong(box: Any) -> None:
    data = zip_of({"a": b"roses are red"}, zipfile.ZIP_STORED).replace(b"are", b"ARE")
    assert fails(box, data).code == "corrupt"
    data = bytearray(gzip.compress(b"roses are red"))
    data[-8] ^= 1
    assert fails(box, bytes(data)).code == "corrupt"


def test_an_encrypted_member_and_a_strange_method(box: Any) -> None:
    data = bytearray(zip_of({"a": b"x"}))
    data[data.index(b"PK\1\2") + 8] |= 1
    assert fails(box, bytes(data)).code == "encrypted"
    assert fails(box, zip_of({"a": b"x"}, zipfile.ZIP_LZMA)).code == "unsupported"


def test_numbers_of_tar_that_are_below_0(box: Any) -> None:
    header = bytearray(tarfile.TarInfo("a").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 11 + b"\x00"  # -256
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:512]))
    assert tarfile.TarInfo.frombuf(bytes(header), "utf-8", "strict").size == -256
    error = fails(box, tar_of({"good": b""})[:512] + bytes(header) + bytes(1024))
    assert error.code == "corrupt" and "below 0" in error.message


def test_a_disk_that_is_full_leaves_nothing(make_box: Callable[..., Any]) -> None:
    box = make_box(disk=4 << 20)
    error = fails(box, gzip.compress(os.urandom(3 << 20) + bytes(8 << 20)), max_ratio=1000)
    assert error.code == "disk_full"


def test_time_that_runs_out_leaves_nothing(box: Any) -> None:
    """It is ended while it skips 3 GiB, its directory made already."""
    small = tarfile.TarInfo("a")
    large = tarfile.TarInfo("b")
    large.size = 3 << 30
    head = small.tobuf(tarfile.GNU_FORMAT) + large.tobuf(tarfile.GNU_FORMAT)
    box.put("x", gzip.compress(head) + gzip.compress(bytes(64 << 20)) * 48)
    with pytest.raises(CallFailed) as caught:
        box.call(
            NAME,
            path="x",
            op="extract",
            to="out",
            members=["a"],
            max_ratio=100_000,
            timeout_ms=1000,
        )
    assert caught.value.code == "timeout"
    assert box.sh("ls -A").text == "x\n"
