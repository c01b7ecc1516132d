"""CSV and TSV sources: columns, encodings, quotes, and what becomes of bad rows."""

import csv
import io
import pickle
import random

import pytest

from clipdef_jax import data
from clipdef_jax.data import delimited, stored
from clipdef_jax.errors import BadRecord, UserError
from clipdef_jax.types import Source


@pytest.fixture
def write(tmp_path):
    """Writes a table and the images it may name; returns its spec."""

    def write(name, content, images=("a.jpg", "sub/b.jpg", "c.jpg")):
        for image in images:
            (tmp_path / image).parent.mkdir(exist_ok=True)
            (tmp_path / image).write_bytes(f"image {image}".encode())
        content = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(content)
        return f"{name.rpartition('.')[2]}:{tmp_path / name}"

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


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "filepath,title\na.jpg,one\nsub/b.jpg,zwölf\n"),
        ("t.csv", "filepath,title\r\na.jpg,one\r\nsub/b.jpg,zwölf"),
        ("t.csv", "\ufeffid,Title,IMAGE\n0, one ,a.jpg\n\n1,zwölf,sub/b.jpg\n\n"),
        ("t.csv", 'image,caption\n"a.jpg","one"\n"sub/b.jpg","zwölf"\n'),
        ("t.tsv", "title\tfilepath\none\ta.jpg\nzwölf\tsub/b.jpg\n"),
        ("t.tsv", "\ufeffone\ta.jpg\r\nzwölf\tsub/b.jpg\r\n"),  # As CC3M's, without a header.
        ("t.csv", "a.jpg,one\nsub/b.jpg,zwölf\n"),
    ],
)
def test_pairs_in_order(write, name, content):
    source = data.open(write(name, content))
    assert isinstance(source, Source)
    assert source.classes == ()
    assert contents(source) == [
        ("t/0000000", b"image a.jpg", "one", -1),
        ("t/0000001", b"image sub/b.jpg", "zwölf", -1),
    ]
    copy = pickle.loads(pickle.dumps(source))
    assert contents(copy) == contents(source)
    assert [copy.caption(i) for i in range(2)] == ["one", "zwölf"]
    assert [copy.uid(i) for i in range(2)] == ["t/0000000", "t/0000001"]
    for index in (-1, 2):
        for access in (source.__getitem__, source.caption, source.uid):
            with pytest.raises(IndexError):
                access(index)


def test_columns_by_name_and_by_position(write, tmp_path):
    spec = write("t.csv", "where,what,more\na.jpg,one,uno\n")
    assert data.open(spec, image_column="where", caption_column="more").caption(0) == "uno"
    spec = write("t.csv", "7,one,b.jpg\n8,two,c.jpg\n")
    source = data.open(spec, header=False, caption_column=1, image_dir=str(tmp_path / "sub"))
    assert contents(source)[0] == ("t/0000000", b"image sub/b.jpg", "one", -1)
    # A first line without an image file is a header unless it is said to be none.
    assert len(data.open(spec, header=True, image_column="b.jpg", caption_column="one")) == 1


def test_labels_and_uids_from_columns(write):
    content = (
        "path,text,kind,uid\na.jpg,one,tool,x\nc.jpg,two,,y\na.jpg,three,cat,\nc.jpg,4,cat,x\n"
    )
    source = data.open(write("t.csv", content), label_column="kind")
    assert source.classes == ("cat", "tool")
    assert contents(source) == [
        ("x", b"image a.jpg", "one", 1),
        ("y", b"image c.jpg", "two", -1),
        ("t/0000002", b"image a.jpg", "three", 0),
        ("t/0000003", "its uid 'x' occurs before"),
    ]
    assert [source.uid(i) for i in range(4)] == ["x", "y", "t/0000002", "t/0000003"]


def test_captions_from_class_names(write, tmp_path):
    content = "path,text,kind\na.jpg,one,sea_horse\nc.jpg,two,owl\nc.jpg,three,\n"
    spec = write("t.csv", content)
    (tmp_path / "templates.txt").write_text("a {} here")
    source = data.open(spec, label_column="kind", templates=str(tmp_path / "templates.txt"))
    assert [row[2:] for row in contents(source)] == [
        ("a sea horse here", 1),
        ("an owl here", 0),
        (),
    ]
    assert contents(source)[2][1] == "no label to make a caption from"
    # Without a caption column they are made unasked, the same ones every time.
    spec = write("t.csv", "path,kind\n" + "a.jpg,owl\n" * 20)
    captions = [data.open(spec, label_column="kind").caption(i) for i in range(20)]
    assert all("owl" in caption for caption in captions)
    assert len(set(captions)) > 5
    assert captions == [data.open(spec, label_column="kind")[i].caption for i in range(20)]
    with pytest.raises(UserError, match="no column holds those"):
        data.open(write("t.csv", "path,text\na.jpg,one\n"), templates="emoji")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"a.jpg,caf\xe9", "the row is not UTF-8 (0xe9 at byte 9)"),
        (b"a.jpg,one,two", "has 3 fields, expected 2"),
        (b"a.jpg", "has 1 fields, expected 2"),
        (b'a.jpg,"one" two', "stray quote"),
        (b'a.jpg,"one', "stray quote"),
        (b"a.jpg, ", "no caption in 'caption'"),
        (b",one", "no image in 'image'"),
        (b"z.jpg,one", "no image file z.jpg: No such file or directory"),
        (b"sub,one", "no image file sub: Is a directory"),
        (b"a\0.jpg,one", "no image file a\0.jpg: embedded null byte"),
        (b"https://x.org/a.jpg,one", "web address; download the images first"),
    ],
)
def test_a_bad_row_costs_itself_only(write, row, reason):
    source = data.open(write("t.csv", b"image,caption\na.jpg,before\n%b\nc.jpg,after\n" % row))
    found = contents(source)
    assert found[0][2] == "before"
    assert found[-1][2] == "after"
    assert found[1][0] == "t/0000001"
    assert reason in found[1][1]
    # Whatever it is that ails the row, its uid is to be had.
    assert source.uid(1) == "t/0000001"


def test_a_stray_quote_in_a_tsv_is_a_character(write):
    lines = ['"unclosed\ta.jpg', '12" pizza\ta.jpg', '"enclosed, ""twice"""\ta.jpg', '"\ta.jpg']
    lines += ["after\ta.jpg"]
    source = data.open(write("t.tsv", "\n".join(lines)))
    assert [source.caption(i) for i in range(len(source))] == [
        '"unclosed',
        '12" pizza',
        'enclosed, "twice"',
        '"',
        "after",
    ]


def test_a_quote_within_a_csv_field_is_a_character(write):
    source = data.open(write("t.csv", 'image,caption\na.jpg,12" pizza\nc.jpg,"14"" pizza"\n'))
    assert [source.caption(i) for i in range(2)] == ['12" pizza', '14" pizza']


def test_a_quote_that_is_never_closed_does_not_swallow_the_rest(write, monkeypatch):
    monkeypatch.setattr(delimited, "_LONGEST_ROW", 100)
    rows = "".join(f"a.jpg,caption {i}\n" for i in range(50))
    for end in ("", 'c.jpg,"closed"\n', '"\n'):
        source = data.open(write("t.csv", f'image,caption\na.jpg,"open\n{rows}{end}'))
        found = contents(source)
        assert "stray quote" in found[0][1]
        assert [row[2] for row in found[1:51]] == [f"caption {i}" for i in range(50)]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_rows_as_the_csv_module_finds_them(write, monkeypatch, chunk):
    monkeypatch.setattr(delimited, "_CHUNK", chunk)
    rng = random.Random(0)
    words = ["one", 'say "hi"', "a,b", "two\nlines", "a\r\nb", "", '"', "näh", "\n\n", ' "x"']
    rows = [[f"{i}.jpg", "".join(rng.choices(words, k=rng.randrange(4)))] for i in range(300)]
    for terminator in ("\n", "\r\n"):
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
            text = io.StringIO(newline="")
            writer = csv.writer(text, lineterminator=terminator, quoting=quoting)
            writer.writerows([["image", "caption"], *rows])
            source = data.open(write("t.csv", text.getvalue(), images=()))
            assert len(source) == 300
            read = [source._rows.read(i, ("image", "caption")) for i in range(300)]
            assert read == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "", "the file is empty"),
        ("t.csv", "\n\r\n\n", "the file is empty"),
        ("t.csv", "image,caption\n", "holds no rows"),
        ("t.csv", "a,b\n1,2\n", "which column holds the images.*image_column out of: a, b"),
        ("t.csv", "image,b\n1,2\n", "holds the captions.*caption_column.*out of: image, b"),
        ("t.csv", "a.jpg,b,c\n", "holds the captions.*caption_column.*out of: 0, 1, 2"),
        ("t.csv", "image\tcaption\n", "fields are separated by tabs; open it with tsv:"),
        ("t.tsv", "image,caption\n", "fields are separated by commas; open it with csv:"),
        ("t.csv", "image,caption\n1,2\n".encode("utf-16"), "UTF-16; save it as UTF-8"),
        ("t.csv", b"\x1f\x8b\x08\x00", "compressed by gzip"),
        ("t.csv", b"image,capti\xf6n\n", "the first line: the row is not UTF-8"),
    ],
)
def test_files_that_cannot_be_opened(write, name, content, message):
    with pytest.raises(UserError, match=message):
        data.open(write(name, content))


def test_columns_that_are_not_there(write, tmp_path):
    spec = write("t.csv", "image,caption,kind\na.jpg,one,\n")
    with pytest.raises(UserError, match=r"no column 'captoin' .* did you mean 'caption'"):
        data.open(spec, caption_column="captoin")
    with pytest.raises(UserError, match=r"no column 3 .* It has: image, caption, kind"):
        data.open(spec, caption_column=3)
    with pytest.raises(UserError, match="no row has a value of 'kind'"):
        data.open(spec, label_column="kind")
    with pytest.raises(UserError, match=r"no file .*none\.csv; the folder holds 1: t\.csv"):
        data.open(f"csv:{tmp_path}/none.csv")
    write("u.csv", "x")
    with pytest.raises(UserError, match="names 2 files; join several as 'csv:A \\+ csv:B'"):
        data.open(f"csv:{tmp_path}/*.csv")
    with pytest.raises(UserError, match="unexpected keyword argument 'colour'"):
        data.open(spec, colour="red")


def test_a_file_that_changes_is_noticed(write):
    spec = write("t.csv", "image,caption\na.jpg,one\n")
    source = data.open(spec)
    write("t.csv", "image,caption\nc.jpg,something else\n")
    stored.opened.cache_clear()  # As in another process.
    assert "changed since it was indexed" in contents(source)[0][1]
