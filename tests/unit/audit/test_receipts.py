from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.audit.errors import AuditError
from agentd.audit.receipts import ReceiptStore, find


def test_what_is_put_is_got_also_after_a_restart(tmp_path: Path) -> None:
    receipts = ReceiptStore(str(tmp_path))
    receipts.put("req-1", b"one")
    assert receipts.get("req-1") == b"one" and receipts.get("req-2") is None
    receipts.close()
    receipts = ReceiptStore(str(tmp_path))
    receipts.put("req-2", b"two")
    receipts.put("req-1", b"uno")
    assert receipts.get("req-1") == b"uno" and receipts.get("req-2") == b"two"
    receipts.close()
    assert find(str(tmp_path), "req-1") == b"uno"


def test_the_oldest_are_dropped(tmp_path: Path) -> None:
    receipts = ReceiptStore(str(tmp_path), max_bytes=8000)
    for number in range(300):
        receipts.put(f"req-{number}", b"x" * 90)
    assert receipts.get("req-0") is None
    kept = [number for number in range(300) if receipts.get(f"req-{number}") == b"x" * 90]
    assert kept == list(range(kept[0], 300)) and 60 < len(kept) < 90
    assert sum(path.stat().st_size for path in tmp_path.glob("*.jsonl")) <= 8000
    assert len(list(tmp_path.iterdir())) == 15  # 8 segments, an index of each finished one
    receipts.close()
    receipts = ReceiptStore(str(tmp_path), max_bytes=8000)
    assert all(receipts.get(f"req-{number}") for number in kept)
    receipts.close()


def test_a_torn_end_is_cut(tmp_path: Path) -> None:
    receipts = ReceiptStore(str(tmp_path))
    receipts.put("req-1", b"one")
    receipts.close()
    with next(tmp_path.glob("*.jsonl")).open("ab") as file:
        file.write(b"req-2 tor")
    receipts = ReceiptStore(str(tmp_path))
    assert receipts.get("req-2") is None
    receipts.put("req-3", b"three")
    assert receipts.get("req-1") == b"one" and receipts.get("req-3") == b"three"
    receipts.close()


def test_a_lost_index_costs_time_alone(tmp_path: Path) -> None:
    receipts = ReceiptStore(str(tmp_path), max_bytes=8000)
    for number in range(30):
        receipts.put(f"req-{number}", b"x" * 90)
    for index in tmp_path.glob("*.index"):
        index.unlink()
    assert all(receipts.get(f"req-{number}") for number in range(30))
    receipts.close()


@pytest.mark.parametrize(
    ("name", "envelope"),
    [("", b"x"), ("a b", b"x"), ("a\n", b"x"), ("../a", b"x"), ("a", b"x\ny"), ("a", b"x" * 2**21)],
)
def test_what_would_break_the_file_is_refused(tmp_path: Path, name: str, envelope: bytes) -> None:
    receipts = ReceiptStore(str(tmp_path))
    with pytest.raises(AuditError, match="cannot be kept"):
        receipts.put(name, envelope)
    receipts.close()


def test_links_in_the_place_of_its_files_are_not_followed(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "receipts", tmp_path / "elsewhere"
    elsewhere.write_bytes(b"others'")
    receipts = ReceiptStore(str(folder), max_bytes=8)  # a file for each
    receipts.put("a", b"x")
    (file,) = folder.iterdir()
    (folder / f"{file.name}.index.new").symlink_to(elsewhere)
    with suppress(AuditError):
        receipts.put("b", b"y")
    receipts.close()
    assert elsewhere.read_bytes() == b"others'"
    newest = max(path for path in folder.iterdir() if not path.is_symlink())
    newest.rename(tmp_path / "moved")
    newest.symlink_to(tmp_path / "moved")
    with pytest.raises(AuditError):
        ReceiptStore(str(folder))


def test_a_directory_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AuditError, match="cannot be read or written"):
        ReceiptStore(str(tmp_path / "file" / "x"))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcdefgh"), st.binary(max_size=60)).map(
            lambda pair: (pair[0], pair[1].replace(b"\n", b""))
        )
    ),
    st.integers(0, 20),
)
def test_it_is_a_mapping_that_forgets_only_the_oldest(
    tmp_path_factory: pytest.TempPathFactory, puts: list[tuple[str, bytes]], reopen: int
) -> None:
    folder = str(tmp_path_factory.mktemp("receipts"))
    receipts = ReceiptStore(folder, max_bytes=8 * 200)
    latest: dict[str, bytes] = {}
    for number, (name, envelope) in enumerate(puts):
        if number == reopen:
            receipts.close()
            receipts = ReceiptStore(folder, max_bytes=8 * 200)
        receipts.put(name, envelope)
        latest[name] = envelope
        assert receipts.get(name) == envelope
    for name, envelope in latest.items():
        assert receipts.get(name) in (envelope, None)
    receipts.close()
