"""Parquet sources: bytes, paths and Hugging Face's mappings; row groups; what is refused."""

import json
import pickle
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipdef_jax import data
from clipdef_jax.data import parquet
from clipdef_jax.errors import BadRecord, UserError
from clipdef_jax.types import Source


@pytest.fixture
def write(tmp_path):
    def write(name, columns, row_group_size=2, metadata=None):
        table = pa.table(columns).replace_schema_metadata(metadata)
        pq.write_table(table, tmp_path / name, row_group_size=row_group_size)
        return f"parquet:{tmp_path / name}"

    return write


def contents(source):
    """What each record gives: its pair, or (uid, reason) of what is wrong with it."""
    found = []
    for index in range(len(source)):
        try:
            found.append(tuple(source[index]))
        except BadRecord as error:
            found.append((error.uid, error.reason))
    return found


def images(first, last):
    return [b"image %d" % i for i in range(first, last)]


def captions(first, last):
    return [f"caption {i}" for i in range(first, last)]


def test_pairs_in_order_over_files_and_row_groups(write, tmp_path):
    for shard, (first, last) in enumerate(((0, 5), (5, 5), (5, 8))):
        columns = {
            "key": pa.array(range(first, last), pa.int64()),
            "jpg": pa.array(images(first, last), pa.binary()),
            "TEXT": pa.array(captions(first, last), pa.string()),
        }
        write(f"0000{shard}.parquet", columns)
    source = data.open(f"parquet:{tmp_path}/{{00000..00002}}.parquet")
    assert isinstance(source, Source)
    assert source.classes == ()
    expected = [
        (uid, image, caption, -1)
        for uid, image, caption in zip(
            [*(f"00000/000000{i}" for i in range(5)), *(f"00002/000000{i}" for i in range(3))],
            images(0, 8),
            captions(0, 8),
            strict=True,
        )
    ]
    assert contents(source) == expected
    copy = pickle.loads(pickle.dumps(source))
    for index in (7, 0, 5, 4, 1):
        assert tuple(copy[index]) == expected[index]
        assert copy.caption(index) == expected[index][2]
        assert copy.uid(index) == expected[index][0]
    for index in (-1, 8):
        with pytest.raises(IndexError):
            source[index]


def test_paths_and_mappings(write, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"image a")
    values = ["a.jpg", "none.jpg", None]
    source = data.open(write("t.parquet", {"file_name": values, "text": captions(0, 3)}))
    found = contents(source)
    assert found[0][1] == b"image a"
    assert found[1][1] == "no image file none.jpg: No such file or directory"
    assert found[2][1] == "no image in 'file_name'"
    mappings = [
        {"bytes": b"image b", "path": "b.jpg"},
        {"bytes": None, "path": "a.jpg"},
        {"bytes": None, "path": None},
        None,
    ]
    source = data.open(write("t.parquet", {"image": mappings, "text": captions(0, 4)}))
    found = contents(source)
    assert [row[1] for row in found[:2]] == [b"image b", b"image a"]
    assert [row[1] for row in found[2:]] == ["no image in 'image'"] * 2
    source = data.open(write("t.parquet", {"image": [3, 4], "text": captions(0, 2)}))
    assert contents(source)[0][1] == "no image in 'image', but int"


def test_the_first_of_several_captions(write):
    columns = {"image": images(0, 4), "captions": [["one", "two"], ["", "three"], [], None]}
    source = data.open(write("t.parquet", columns))
    assert [source.caption(i) for i in range(2)] == ["one", "three"]
    for index in (2, 3):
        with pytest.raises(BadRecord, match="no caption in 'captions'"):
            source.caption(index)


def test_class_names_from_the_metadata_of_hugging_face(write):
    metadata = {
        "huggingface": json.dumps({"info": {"features": {"label": {"names": ["cat", "sea_cow"]}}}})
    }
    columns = {"img": images(0, 5), "label": [1, 0, -1, None, 2]}
    spec = write("t.parquet", columns, metadata=metadata)
    source = data.open(spec, label_column="label")
    assert source.classes == ("cat", "sea_cow")
    found = contents(source)
    assert [row[3] for row in found[:2]] == [1, 0]
    assert "sea cow" in found[0][2]
    assert [row[1] for row in found[2:]] == [
        "no label to make a caption from",
        "no label to make a caption from",
        "label 2: expected 0 to 1",
    ]
    # Without names the numbers themselves are the classes.
    source = data.open(write("t.parquet", columns), label_column="label")
    assert source.classes == ("-1", "0", "1", "2")


def test_repeated_uids(write):
    columns = {"image": images(0, 3), "caption": captions(0, 3), "uid": ["x", "y", "x"]}
    source = data.open(write("t.parquet", columns))
    assert [row[0] for row in contents(source)] == ["x", "y", "t/0000002"]
    assert contents(source)[2][1] == "its uid 'x' occurs before"


def test_captions_do_not_read_images(write, monkeypatch):
    source = data.open(write("t.parquet", {"image": images(0, 4), "caption": captions(0, 4)}))
    read = []

    class Recording(pq.ParquetFile):
        def read_row_group(self, group, columns=None, **kwargs):
            read.append((group, columns))
            return super().read_row_group(group, columns=columns, **kwargs)

    monkeypatch.setattr(parquet, "_open", lambda file: Recording(file.path))
    monkeypatch.setattr(parquet, "_cache", parquet._Cache(1 << 20))
    assert [source.caption(i) for i in range(4)] == captions(0, 4)
    assert read == [(0, ["caption"]), (1, ["caption"])]


def test_what_is_cached_is_bounded(write, monkeypatch):
    size = 10_000
    columns = {"image": [bytes(size) for _ in range(20)], "caption": captions(0, 20)}
    spec = write("t.parquet", columns, row_group_size=1)
    cache = parquet._Cache(5 * size)
    monkeypatch.setattr(parquet, "_cache", cache)
    source = data.open(spec)
    for index in [*range(20), 3, 19, 3]:
        assert len(source[index].image) == size
        assert cache._size == sum(table.nbytes for table in cache._tables.values()) <= 5 * size
    assert len(cache._tables) == 4


def test_threads(write):
    source = data.open(write("t.parquet", {"image": images(0, 40), "caption": captions(0, 40)}))
    expected = contents(source)
    results = [None] * 4

    def read(thread):
        results[thread] = contents(source)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


def test_a_row_group_that_would_not_fit_is_refused(write, monkeypatch):
    monkeypatch.setattr(parquet, "_LARGEST_GROUP", 50_000)
    columns = {"image": [bytes([i]) * 10_000 for i in range(10)], "caption": captions(0, 10)}
    assert len(data.open(write("t.parquet", columns, row_group_size=2))) == 10
    with pytest.raises(UserError, match=r"row group 0 of .* of 'image'.* row_group_size=100"):
        data.open(write("t.parquet", columns, row_group_size=10))


def test_a_damaged_page_costs_its_row_group_only(write, tmp_path):
    columns = {"image": [bytes([i]) * 500 for i in range(4)], "caption": captions(0, 4)}
    spec = write("t.parquet", columns)
    content = bytearray((tmp_path / "t.parquet").read_bytes())
    content[4:40] = b"\xff" * 36
    (tmp_path / "t.parquet").write_bytes(content)
    found = contents(data.open(spec))
    assert [len(row) for row in found] == [2, 2, 4, 4]
    assert "t.parquet, row group 0: " in found[0][1]


def test_a_file_that_changes_is_noticed(write):
    spec = write("t.parquet", {"image": images(0, 2), "caption": captions(0, 2)})
    old = data.open(spec)
    new = data.open(write("t.parquet", {"image": images(0, 3), "caption": captions(5, 8)}))
    assert [row[2] for row in contents(new)] == captions(5, 8)
    assert "changed since it was opened" in contents(old)[0][1]


def test_what_cannot_be_opened(write, tmp_path):
    (tmp_path / "no.parquet").write_bytes(b"no parquet file")
    with pytest.raises(UserError, match=r"no\.parquet: .*Parquet"):
        data.open(f"parquet:{tmp_path}/no.parquet")
    spec = write("a.parquet", {"image": images(0, 1), "caption": captions(0, 1)})
    with pytest.raises(
        UserError, match=r"no column 'txt' to take the caption from.* It has: image"
    ):
        data.open(spec, caption_column="txt")
    write("b.parquet", {"image": images(0, 1), "text": captions(0, 1)})
    with pytest.raises(UserError, match=r"b\.parquet has the columns image, text, the first file"):
        data.open(f"parquet:{tmp_path}/{{a,b}}.parquet")
    with pytest.raises(UserError, match="holds no rows"):
        data.open(write("c.parquet", {"image": images(0, 0), "caption": captions(0, 0)}))
