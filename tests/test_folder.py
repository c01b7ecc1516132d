"""Folders as sources: captions beside the pictures, or classes by folder."""

import pickle

import pytest

from clipdef_jax import data
from clipdef_jax.errors import BadRecord, UserError
from clipdef_jax.types import Source


@pytest.fixture
def fill(tmp_path):
    def fill(**files):
        for name, content in files.items():
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return f"folder:{tmp_path}/data"

    return fill


def test_captions_beside_the_pictures(fill):
    files = {"b.PNG": "B", "b.txt": " a bee\n", "00/a.jpg": "A", "00/a.txt": "größe", "x.md": ""}
    source = data.open(fill(**files))
    assert isinstance(source, Source)
    assert source.classes == ()
    for copy in (source, pickle.loads(pickle.dumps(source))):
        assert [tuple(copy[i]) for i in range(2)] == [
            ("00/a.jpg", b"A", "größe", -1),
            ("b.PNG", b"B", "a bee", -1),
        ]
        assert [copy.caption(i) for i in range(2)] == ["größe", "a bee"]
        assert [copy.uid(i) for i in range(2)] == ["00/a.jpg", "b.PNG"]
        with pytest.raises(IndexError):
            copy[2]


def test_bad_captions(fill):
    files = {"a.jpg": "A", "b.jpg": "B", "b.txt": b"caf\xe9", "c.jpg": "C", "c.txt": "\n"}
    source = data.open(fill(**files, **{"d.jpg": "D", "d.txt": "fine"}))
    reasons = []
    for index in range(3):
        with pytest.raises(BadRecord) as caught:
            source.caption(index)
        reasons.append((caught.value.uid, caught.value.reason))
    assert reasons == [
        ("a.jpg", "no caption a.txt: No such file or directory"),
        ("b.jpg", "the caption is not UTF-8 (at byte 3)"),
        ("c.jpg", "no caption in 'caption'"),
    ]
    assert source[3].caption == "fine"


def test_class_folders(fill, tmp_path):
    files = {"sea_cow/2.jpg": "2", "sea_cow/more/1.jpeg": "1", "cat/1.webp": "3", "0.jpg": "0"}
    spec = fill(**files, **{"cat/.hidden.jpg": "", ".git/x.jpg": "", "notes/x.md": ""})
    source = data.open(spec)
    assert source.classes == ("cat", "sea_cow")
    assert [source.uid(i) for i in range(4)] == [
        "0.jpg",
        "cat/1.webp",
        "sea_cow/2.jpg",
        "sea_cow/more/1.jpeg",
    ]
    with pytest.raises(BadRecord, match="no label to make a caption from"):
        source[0]
    assert [source[i].label for i in range(1, 4)] == [0, 1, 1]
    assert "sea cow" in source[2].caption
    assert source[2].caption == source.caption(2)
    (tmp_path / "templates.txt").write_text("see a {}!")
    source = data.open(spec, templates=str(tmp_path / "templates.txt"))
    assert source[1] == ("cat/1.webp", b"3", "see a cat!", 0)


def test_templates_go_before_captions(fill):
    files = {"owl/a.jpg": "A", "owl/a.txt": "mine"}
    spec = fill(**files)
    assert data.open(spec).caption(0) == "mine"
    assert "an owl" in data.open(spec, templates="emoji").caption(0)


def test_a_picture_that_is_gone_since(fill, tmp_path):
    source = data.open(fill(**{"cat/a.jpg": "A", "cat/b.jpg": "B"}))
    (tmp_path / "data/cat/a.jpg").unlink()
    with pytest.raises(BadRecord, match=r"no image file cat/a.jpg: No such file"):
        source[0]
    assert source[1].image == b"B"


def test_what_cannot_be_opened(fill, tmp_path):
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        data.open(f"folder:{tmp_path}/nowhere")
    spec = fill(**{"notes.txt": ""})
    with pytest.raises(UserError, match=r"holds no pictures \(.jpg, "):
        data.open(spec)
    spec = fill(**{"a.jpg": "A"})
    with pytest.raises(UserError, match=r"neither captions \(PICTURE.txt.*nor class folders"):
        data.open(spec)
    with pytest.raises(UserError, match="copy the pictures here"):
        data.open("folder:s3://bucket/pictures")
