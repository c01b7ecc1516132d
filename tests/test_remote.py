"""Files by URL: copied once, made anew when they change, and named errors when they cannot be."""

import io
import os
import pathlib
import pickle
import sys
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipdef_jax import data
from clipdef_jax.data import remote
from clipdef_jax.errors import BadRecord, UserError

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder in fsspec's memory; copies go to a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    yield memory
    memory.store.clear()


def tar(caption):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in (("0.jpg", b"image"), ("0.txt", caption.encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def parquet(caption):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": [b"image"], "caption": [caption]}), buffer)
    return buffer.getvalue()


def copies(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("scheme", "ending", "content"),
    [("webdataset", "tar", tar), ("parquet", "parquet", parquet)],
)
def test_shards_by_url(bucket, tmp_path, scheme, ending, content):
    for shard in "01":
        bucket.pipe(f"/bucket/{shard}.{ending}", content(f"caption {shard}"))
    (tmp_path / f"a.{ending}").write_bytes(content("caption a"))
    options = {"cache_dir": tmp_path / "index"} if scheme == "webdataset" else {}
    for pattern in ("memory://bucket/{0..1}", "memory://bucket/*"):
        source = data.open(f"{scheme}:{pattern}.{ending}", **options)
        assert [source[i].caption for i in range(2)] == ["caption 0", "caption 1"]
        assert [source.uid(i).split("/")[0] for i in range(2)] == ["0", "1"]
        assert pickle.loads(pickle.dumps(source))[1].image == b"image"
    assert copies(tmp_path) == [f"0.{ending}", f"1.{ending}"]
    source = data.open(f"{scheme}:file://{tmp_path}/a.{ending}", **options)
    assert source.caption(0) == "caption a"
    with pytest.raises(UserError, match=r"no file matches memory://bucket/x\*"):
        data.open(f"{scheme}:memory://bucket/x*.{ending}")


def test_a_table_by_url_and_its_images_beside_it(bucket):
    bucket.pipe("/bucket/t.csv", b"image,caption\na.jpg,one\nnone.jpg,two\n")
    bucket.pipe("/bucket/a.jpg", b"image a")
    source = data.open("csv:memory://bucket/t.csv")
    assert source[0] == ("t/0000000", b"image a", "one", -1)
    with pytest.raises(BadRecord, match=r"no image file none\.jpg: .*FileNotFoundError"):
        source[1]


def test_images_by_url_in_a_table_of_this_machine(bucket, tmp_path):
    bucket.pipe("/bucket/a.jpg", b"image a")
    (tmp_path / "t.tsv").write_text(f"one\tmemory://bucket/a.jpg\ntwo\tfile://{tmp_path}/b.jpg\n")
    (tmp_path / "b.jpg").write_bytes(b"image b")
    source = data.open(f"tsv:{tmp_path}/t.tsv")
    assert [source[i].image for i in range(2)] == [b"image a", b"image b"]


def test_a_copy_is_made_once_and_anew_when_the_file_changes(bucket, tmp_path, monkeypatch):
    bucket.pipe("/bucket/a.txt", b"old")
    path = remote.local("memory://bucket/a.txt")
    assert pathlib.Path(path).read_text() == "old"
    monkeypatch.setattr(type(bucket), "get_file", lambda *_: pytest.fail("copied again"))
    assert remote.local("memory://bucket/a.txt") == path
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bucket.pipe("/bucket/a.txt", b"new")
    assert pathlib.Path(remote.local("memory://bucket/a.txt")).read_text() == "new"


def test_a_copy_that_breaks_off_leaves_nothing(bucket, tmp_path, monkeypatch):
    def broken(system, path, target):
        with open(target, "wb") as file:
            file.write(b"ha")
        raise ConnectionError("reset\nby peer")

    bucket.pipe("/bucket/a.txt", b"half")
    monkeypatch.setattr(type(bucket), "get_file", broken)
    with pytest.raises(UserError, match=r"memory://bucket/a\.txt: ConnectionError: reset by peer"):
        remote.local("memory://bucket/a.txt")
    assert copies(tmp_path) == []


def test_urls_that_cannot_be_read(bucket, monkeypatch):
    with pytest.raises(UserError, match=r"memory://bucket/none\.csv: FileNotFoundError"):
        data.open("csv:memory://bucket/none.csv")
    with pytest.raises(UserError, match=r"nosuch://a\.csv: ValueError: Protocol not known"):
        data.open("csv:nosuch://a.csv")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UserError, match="needs fsspec; pip install fsspec"):
        data.open("csv:memory://bucket/t.csv")


def test_paths_of_this_machine_are_left_alone(tmp_path):
    for path in ("/a/b.tar", "a.tar", "C:/a.tar", os.fspath(tmp_path)):
        assert not remote.is_url(path)
        assert remote.local(path) == path
    assert remote.local("file:///a/b.tar") == "/a/b.tar"
