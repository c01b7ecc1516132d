"""Lists of records: ids as DataComp has them, membership, and the files they are kept in."""

import hashlib

import numpy as np
import pytest

from clipdef_jax.data import ids
from clipdef_jax.errors import UserError

HEX = "0123456789abcdef0011223344556677"


def test_a_datacomp_uid_is_its_own_id():
    # As DataComp's own tools make them from a uid.
    expected = np.array([(int(HEX[:16], 16), int(HEX[16:], 16))], np.dtype("u8,u8"))
    np.testing.assert_array_equal(ids.ids128([HEX]), expected)
    assert ids.ids128([HEX]).dtype == expected.dtype


@pytest.mark.parametrize("uid", ["00000/000000017", "größe", HEX[:-1], HEX + "0", HEX[:-1] + "g"])
def test_any_other_uid_is_hashed(uid):
    digest = hashlib.blake2b(uid.encode(), digest_size=16).hexdigest()
    expected = (int(digest[:16], 16), int(digest[16:], 16))
    assert ids.ids128([uid]).tolist() == [expected]


def test_contained_and_repeated_against_sets():
    rng = np.random.default_rng(0)
    # Halves from few values: ids that agree in one half only must not be taken for each other.
    first, second = (rng.integers(0, 12, (n, 2)).astype("u8") for n in (200, 50))
    first, second = (np.ascontiguousarray(a).view(ids.ID).reshape(-1) for a in (first, second))
    listed = set(second.tolist())
    expected = [one in listed for one in first.tolist()]
    assert 0 < sum(expected) < 200
    assert ids.contained(first, second).tolist() == expected
    seen, before = set(), []
    for one in first.tolist():
        before.append(one in seen)
        seen.add(one)
    assert ids.repeated(first).tolist() == before
    none = ids.ids128([])
    assert ids.contained(none, second).tolist() == []
    assert not ids.contained(first, none).any()
    assert ids.repeated(none).tolist() == []


@pytest.mark.parametrize("name", ["keep.npy", "keep.txt", "lists/keep"])
def test_a_list_reads_as_it_was_written(tmp_path, name):
    uids = ["b/2", "a/1", HEX, "ünï"]
    ids.write_ids(tmp_path / name, uids)
    read = ids.read_ids(tmp_path / name)
    assert read.tolist() == sorted(ids.ids128(uids).tolist())
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == [(tmp_path / name).name]


def test_a_npy_is_sorted_and_holds_each_id_once(tmp_path):
    ids.write_ids(tmp_path / "keep.npy", ["b", "a", "b", HEX])
    array = np.load(tmp_path / "keep.npy")
    assert array.dtype == np.dtype("u8,u8")
    assert array.tolist() == sorted(set(ids.ids128(["a", "b", HEX]).tolist()))


def test_text_as_people_write_it(tmp_path):
    (tmp_path / "keep.txt").write_bytes("\ufeffb\r\n\r\n a \r\nb\r\n".encode())
    assert ids.read_ids(tmp_path / "keep.txt").tolist() == sorted(ids.ids128("ab").tolist())


def test_a_uid_that_does_not_fit_a_line(tmp_path):
    for uid in ("a\nb", " a", ""):
        with pytest.raises(UserError, match=r"does not fit a line of text; write a \.npy"):
            ids.write_ids(tmp_path / "keep.txt", ["a", uid])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "No such file"),
        ("none.npy", None, "No such file"),
        ("a.txt", b"\n\n", "names no record"),
        ("a.txt", b"\xff\xfea", "neither UTF-8 text"),
        ("a.npy", b"\x93NUMPY", "damaged"),
        ("a.npy", b"", "damaged"),
        ("a.npy", np.arange(3), r"holds int64 \(3,\), expected pairs of uint64"),
        ("a.npy", np.zeros(0, ids.ID), "names no record"),
        ("a.npy", np.array([None]), "Python objects"),
    ],
)
def test_what_is_no_list(tmp_path, name, content, message):
    if isinstance(content, np.ndarray):
        np.save(tmp_path / name, content)
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        ids.read_ids(tmp_path / name)
