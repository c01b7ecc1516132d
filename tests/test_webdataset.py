import functools
import io
import json
import os
import pathlib
import pickle
import tarfile
import threading

import numpy as np
import pytest

from clipdef_jax import data
from clipdef_jax.data import stored, tar, tar_index
from clipdef_jax.data.decode import decode
from clipdef_jax.errors import BadRecord, UserError
from clipdef_jax.types import Source


def write_tar(path, files, format=tarfile.PAX_FORMAT):
    """Writes a tar of (name, bytes), and returns where the bytes lie."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with tarfile.open(path) as archive:
        return {member.name: (member.offset_data, member.size) for member in archive}


def record(key, caption="a caption", **fields):
    return [
        (f"{key}.jpg", f"image of {key}".encode()),
        (f"{key}.txt", caption if isinstance(caption, bytes) else caption.encode()),
        (f"{key}.json", json.dumps({"key": key, **fields}).encode()),
    ]


@pytest.fixture
def open_tars(tmp_path):
    def open_tars(pattern, **options):
        return data.open(
            f"webdataset:{tmp_path}/{pattern}", cache_dir=tmp_path / "index", **options
        )

    return open_tars


def contents(source):
    """What each record gives: its pair, or (uid, reason) of what is wrong with it."""
    found = []
    for index in range(len(source)):
        try:
            found.append(source[index])
        except BadRecord as error:
            found.append((error.uid, error.reason))
    return found


def test_pairs_in_order(tmp_path, open_tars):
    write_tar(tmp_path / "00000.tar", record("000", "  one\n") + record("001", "zwölf"))
    write_tar(tmp_path / "00001.tar", record("000", "two"))
    source = open_tars("{00000..00001}.tar")
    assert isinstance(source, Source)
    assert len(source) == 3
    assert source.classes == ()
    assert source.problems == ()
    assert contents(source) == [
        ("00000/000", b"image of 000", "one", -1),
        ("00000/001", b"image of 001", "zwölf", -1),
        ("00001/000", b"image of 000", "two", -1),
    ]
    assert [source.caption(i) for i in range(3)] == ["one", "zwölf", "two"]
    for index in (-1, 3):
        with pytest.raises(IndexError):
            source[index]


def test_labels_are_the_sorted_values_of_a_json_field(tmp_path, open_tars):
    write_tar(tmp_path / "a.tar", record("0", kind="tool") + record("1", kind="bird") + record("2"))
    write_tar(tmp_path / "b.tar", record("0", kind="cat") + record("1", kind="tool"))
    for _ in range(2):  # Built, then from the cache.
        source = open_tars("{a,b}.tar", label_field="kind")
        assert source.classes == ("bird", "cat", "tool")
        assert [source[i].label for i in range(5)] == [2, 0, -1, 1, 2]
    with pytest.raises(UserError, match="no record has a json field 'sort'"):
        open_tars("a.tar", label_field="sort")


def test_uids_from_a_json_field(tmp_path, open_tars):
    first = "0123456789abcdef0123456789abcdef"
    write_tar(tmp_path / "a.tar", record("0", uid=first) + record("1") + record("2", uid=7))
    write_tar(tmp_path / "b.tar", record("0", uid="second") + record("1", uid=first))
    for _ in range(2):  # Built, then from the cache.
        source = open_tars("{a,b}.tar", uid_field="uid")
        for copy in (source, pickle.loads(pickle.dumps(source))):
            found = contents(copy)
            assert [pair[0] for pair in found] == [first, "a/1", "7", "second", "b/1"]
            assert found[4] == ("b/1", f"its uid {first!r} occurs before")
            assert [copy.uid(i) for i in range(5)] == [pair[0] for pair in found]
    assert [open_tars("{a,b}.tar").uid(i) for i in (0, 4)] == ["a/0", "b/1"]
    with pytest.raises(UserError, match="no record has a json field 'id' to take uids from"):
        open_tars("a.tar", uid_field="id")
    with pytest.raises(IndexError):
        source.uid(5)


def test_a_list_of_datacomp(tmp_path, open_tars):
    uids = [f"{i:032x}" for i in (7, 2**127, 5)]
    write_tar(
        tmp_path / "a.tar", [f for i, uid in enumerate(uids) for f in record(str(i), uid=uid)]
    )
    keep = np.array([(2**63, 0), (0, 5), (0, 6)], "u8,u8")
    np.save(tmp_path / "keep.npy", np.sort(keep))
    source = open_tars("a.tar", uid_field="uid", keep=tmp_path / "keep.npy")
    assert [pair[0] for pair in contents(source)] == uids[1:]
    with pytest.raises(UserError, match="DataComp's lists want uid_field=uid"):
        open_tars("a.tar", keep=tmp_path / "keep.npy")


@pytest.mark.parametrize("ending", ["jpg", "jpeg", "JPG", "png", "webp"])
def test_image_endings(tmp_path, open_tars, ending):
    write_tar(tmp_path / "a.tar", [(f"0.{ending}", b"image"), ("0.txt", b"text"), ("0.md", b"")])
    assert contents(open_tars("a.tar")) == [("a/0", b"image", "text", -1)]


def test_the_caption_may_be_in_the_json(tmp_path, open_tars):
    files = [("0.jpg", b"image"), ("0.json", b'{"caption": " said here "}')]
    write_tar(tmp_path / "a.tar", files)
    assert open_tars("a.tar").caption(0) == "said here"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([("7.txt", b"text")], "no image"),
        ([("7.jpg", b"image")], "no caption"),
        ([("7.jpg", b"image"), ("7.json", b'{"caption": 3}')], "no caption"),
        (record("7", " \n"), "the caption is empty"),
        (record("7", "café".encode("latin-1")), "not UTF-8 (at byte 3 of 7.txt)"),
        ([("7.jpg", b"image"), ("7.json", b"{")], "7.json is not a JSON object"),
        ([("7.jpg", b"image"), ("7.json", b"[" * 100_000)], "7.json is not a JSON object"),
    ],
)
def test_bad_records_are_told_apart(tmp_path, open_tars, files, reason):
    write_tar(tmp_path / "a.tar", record("6") + files + record("8"))
    found = contents(open_tars("a.tar"))
    assert [pair[0] for pair in found] == ["a/6", "a/7", "a/8"]
    assert len(found[0]) == len(found[2]) == 4
    assert reason in found[1][1]


def test_a_json_that_holds_the_label_must_be_readable(tmp_path, open_tars):
    broken, missing = [*record("1")[:2], ("1.json", b"\xff{")], record("2")[:2]
    write_tar(tmp_path / "a.tar", [*record("0", kind="cat"), *broken, *missing])
    assert [len(pair) for pair in contents(open_tars("a.tar"))] == [4, 4, 4]
    assert contents(open_tars("a.tar", label_field="kind"))[1:] == [
        ("a/1", "1.json is not a JSON object"),
        ("a/2", "no 2.json to take the label from"),
    ]


def test_a_second_record_of_the_same_key_is_left_out_and_listed(tmp_path, open_tars):
    files = record("0", "first") + record("1") + record("0", "later") + record("2")[:1] * 2
    write_tar(tmp_path / "a.tar", files)
    source = open_tars("a.tar")
    assert [source.caption(i) for i in range(2)] == ["first", "a caption"]
    assert len(source) == 3
    assert [uid for uid, _ in source.problems] == ["a/0", "a/2"]
    assert all("occurs again" in reason for _, reason in source.problems)


def test_a_pickle_is_refused_by_name(tmp_path, open_tars):
    write_tar(tmp_path / "a.tar", [*record("0"), *record("1"), ("1.pkl", b""), *record("2")])
    source = open_tars("a.tar")
    assert [pair.uid for pair in contents(source)] == ["a/0", "a/2"]
    assert source.problems == (("a/1", "1.pkl is a pickle, which is never read"),)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_every_tar_format(tmp_path, format):
    names = ["0.jpg", "folder/1.jpg", "x" * 60 + "/" + "y" * 90 + ".jpg"]
    if format != tarfile.USTAR_FORMAT:
        names += ["z" * 300 + "/" + "å" * 200 + ".txt", "n" * 99 + ".jpg"]
    expected = write_tar(
        tmp_path / "a.tar", [(n, b"x" * (511 + i)) for i, n in enumerate(names)], format
    )
    with open(tmp_path / "a.tar", "rb") as file:
        found = {m.name: (m.offset, m.size) for m in tar.members(file.fileno())}
    assert found == expected
    assert list(found) == names


def test_links_folders_and_hidden_files_are_no_records(tmp_path, open_tars):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (("sub", tarfile.DIRTYPE), ("0.png", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        for name, content in [("sub/._1.jpg", b"junk"), ("README", b""), *record("./sub/1")]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    source = open_tars("a.tar")
    assert [pair.uid for pair in contents(source)] == ["a/sub/1"]


def test_a_size_in_base_256(tmp_path):
    write_tar(tmp_path / "a.tar", [("0.jpg", b"12345"), ("0.txt", b"text")])
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[124:136] = b"\x80" + (5).to_bytes(11, "big")
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    (tmp_path / "a.tar").write_bytes(content)
    with open(tmp_path / "a.tar", "rb") as file:
        assert [(m.name, m.size) for m in tar.members(file.fileno())] == [
            ("0.jpg", 5),
            ("0.txt", 4),
        ]


def test_a_tar_cut_anywhere_keeps_its_complete_records(tmp_path, open_tars):
    files = record("0") + record("1") + record("2")
    spans = write_tar(tmp_path / "whole.tar", files)
    whole = (tmp_path / "whole.tar").read_bytes()
    pairs = {pair.uid[6:]: pair for pair in contents(open_tars("whole.tar"))}
    archive_end = max(offset + size for offset, size in spans.values())
    for cut in range(0, archive_end + 600, 97):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        complete = [
            key
            for key in "012"
            if all(sum(spans[f"{key}.{ending}"]) <= cut for ending in ("jpg", "txt"))
        ]
        try:
            source = open_tars("cut.tar")
        except UserError as error:
            assert not complete
            assert "cut short" in str(error)  # noqa: PT017
            continue
        assert source.problems
        assert "cut short at byte" in source.problems[0][1]
        found = contents(source)
        for pair in found:
            key = pair[0].removeprefix("cut/")
            if len(pair) == 4:
                assert key in complete
                assert pair[1:] == pairs[key][1:]
        lost = [uid.removeprefix("cut/") for uid, _ in source.problems if uid != "cut"]
        kept = [pair[0].removeprefix("cut/") for pair in found if len(pair) == 4]
        assert [key for key in complete if key not in lost] == kept


def test_a_damaged_header_ends_the_tar_with_a_name(tmp_path, open_tars):
    spans = write_tar(tmp_path / "a.tar", record("0") + record("1"))
    content = bytearray((tmp_path / "a.tar").read_bytes())
    header = spans["1.jpg"][0] - 512
    content[header + 3] ^= 0x55
    (tmp_path / "a.tar").write_bytes(content)
    source = open_tars("a.tar")
    assert [pair.uid for pair in contents(source)] == ["a/0"]
    assert source.problems == (("a", f"the tar is damaged: no valid header at byte {header:,}"),)


def test_what_is_no_tar(tmp_path, open_tars):
    (tmp_path / "a.tar").write_bytes(b"\x1f\x8b" + b"not a tar" * 100)
    with pytest.raises(UserError, match="hold no records; a: the tar is damaged"):
        open_tars("a.tar")


def test_random_damage_never_crashes(tmp_path):
    rng = np.random.default_rng(0)
    write_tar(tmp_path / "a.tar", record("k" * 200) + record("1"))
    whole = (tmp_path / "a.tar").read_bytes()
    reasons = []
    for _ in range(300):
        content = bytearray(whole)
        for position in rng.integers(0, len(content), 3):
            content[position] = rng.integers(256)
        (tmp_path / "b.tar").write_bytes(content)
        with open(tmp_path / "b.tar", "rb") as file:
            try:
                for member in tar.members(file.fileno()):
                    assert 0 <= member.offset <= member.offset + member.size <= len(content)
            except tar.DamagedTar as damage:
                reasons.append(damage.reason)
    assert len(reasons) > 50
    assert not any("\n" in reason for reason in reasons)


def test_the_index_is_kept_away_from_the_data_and_used(tmp_path, open_tars, monkeypatch):
    write_tar(tmp_path / "data/a.tar", record("0", kind="cat"))
    first = contents(open_tars("data/a.tar", label_field="kind"))
    assert os.listdir(tmp_path / "data") == ["a.tar"]
    (kept,) = (tmp_path / "index").iterdir()

    monkeypatch.setattr(tar_index, "_build", lambda *_: pytest.fail("built again"))
    assert contents(open_tars("data/a.tar", label_field="kind")) == first
    monkeypatch.undo()

    kept.write_bytes(kept.read_bytes()[:-50])  # A spoilt index is made anew.
    assert contents(open_tars("data/a.tar", label_field="kind")) == first
    assert [path.suffix for path in (tmp_path / "index").iterdir()] == [".npz"]


def test_the_default_cache_is_the_user_s(tmp_path, monkeypatch):
    write_tar(tmp_path / "data/a.tar", record("0"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data.open(f"webdataset:{tmp_path}/data/a.tar")
    assert len(list((tmp_path / "cache/clipdef_jax/index").glob("*.npz"))) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    data.open(f"webdataset:{tmp_path}/data/a.tar")
    assert len(list((tmp_path / "home/.cache/clipdef_jax/index").glob("*.npz"))) == 1


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    write_tar(tmp_path / "a.tar", record("0"))
    (tmp_path / "file").write_text("")
    source = data.open(f"webdataset:{tmp_path}/a.tar", cache_dir=tmp_path / "file" / "index")
    assert len(source) == 1


def test_a_tar_that_changes_is_indexed_again_and_noticed(tmp_path, open_tars):
    write_tar(tmp_path / "a.tar", record("0", "old"))
    old = open_tars("a.tar")
    (tmp_path / "a.tar").unlink()
    write_tar(tmp_path / "a.tar", record("0", "a new and longer one") + record("1"))
    new = open_tars("a.tar")
    assert [new.caption(i) for i in range(2)] == ["a new and longer one", "a caption"]
    with pytest.raises(BadRecord, match="changed since it was indexed"):
        old[0]
    (tmp_path / "a.tar").unlink()
    (uid, reason), *_ = contents(pickle.loads(pickle.dumps(open_tars_of(tmp_path, old))))
    assert uid == "a/0"
    assert "No such file" in reason


def open_tars_of(tmp_path, source):
    stored.opened.cache_clear()
    return source


def test_pickles_and_threads(tmp_path, open_tars):
    write_tar(tmp_path / "a.tar", [f for i in range(50) for f in record(f"{i:03d}", f"number {i}")])
    source = open_tars("a.tar")
    expected = contents(source)
    copy = pickle.loads(pickle.dumps(source))
    assert contents(copy) == expected
    results = [None] * 4

    def read(thread):
        results[thread] = [copy[i] for _ in range(5) for i in range(50)]

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected * 5] * 4


def test_more_tars_than_open_files(tmp_path, open_tars, monkeypatch):
    monkeypatch.setattr(stored, "opened", functools.lru_cache(2)(stored.Descriptor))
    for i in range(6):
        write_tar(tmp_path / f"{i}.tar", record("0", f"shard {i}"))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    source = open_tars("{0..5}.tar")
    for _ in range(2):
        assert [source.caption(i) for i in range(6)] == [f"shard {i}" for i in range(6)]
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_openclipart(openclipart, tmp_path):
    spec = f"webdataset:{openclipart}/train/{{00000..00006}}.tar"
    source = data.open(spec, label_field="category", cache_dir=tmp_path)
    assert len(source) == 6205
    assert len(source.classes) == 22
    assert source.problems == ()
    shards = {}
    for index in range(0, len(source), 61):
        shards.setdefault(source[index].uid.split("/")[0], []).append(source[index])
    assert sorted(shards) == [f"{i:05d}" for i in range(7)]
    for shard, pairs in shards.items():
        with tarfile.open(pathlib.Path(openclipart) / f"train/{shard}.tar") as archive:
            for pair in pairs:
                key = pair.uid.removeprefix(f"{shard}/")
                fields = json.load(archive.extractfile(f"{key}.json"))
                assert pair.image == archive.extractfile(f"{key}.jpg").read()
                assert pair.caption == fields["caption"].strip()
                assert source.classes[pair.label] == fields["category"]
                assert decode(pair.image).shape == (fields["height"], fields["width"], 3)
