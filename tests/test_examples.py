"""ArrayRecord sources: features of tf.train.Example by name, and what is no such record."""

import pickle
import subprocess
import sys

import pytest
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from clipdef_jax import data
from clipdef_jax.errors import BadRecord, UserError
from clipdef_jax.types import Source


def example(**features):
    """A serialised tf.train.Example of these features: text, bytes, numbers or lists of them."""
    message = tf_example_pb2.Example()
    for name, values in features.items():
        values = values if isinstance(values, list) else [values]
        values = [v.encode() if isinstance(v, str) else v for v in values]
        kind = "bytes" if all(isinstance(v, bytes) for v in values) else "int64"
        getattr(message.features.feature[name], f"{kind}_list").value.extend(values)
    return message.SerializeToString()


@pytest.fixture
def write(tmp_path):
    def write(name, records):
        writer = array_record_module.ArrayRecordWriter(str(tmp_path / name), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
        return f"array_record:{tmp_path / name}"

    return write


def test_pairs_in_order_over_files(write, tmp_path):
    records = [example(image=b"image %d" % i, text=f"größe {i}", more=i) for i in range(5)]
    write("a-0.array_record", records[:3])
    write("a-1.array_record", [])
    write("a-2.array_record", records[3:])
    source = data.open(f"array_record:{tmp_path}/a-*.array_record")
    assert isinstance(source, Source)
    assert source.classes == ()
    for copy in (source, pickle.loads(pickle.dumps(source))):
        assert [tuple(copy[i]) for i in range(5)] == [
            (f"a-{file}/000000{row}", b"image %d" % i, f"größe {i}", -1)
            for i, (file, row) in enumerate([(0, 0), (0, 1), (0, 2), (2, 0), (2, 1)])
        ]
        assert copy.caption(3) == "größe 3"
        assert copy.uid(4) == "a-2/0000001"
        for index in (-1, 5):
            with pytest.raises(IndexError):
                copy[index]


def test_fields_by_name(write):
    records = [
        example(file=b"image a", said=["one", "two"], kind=7, id="x"),
        example(file=b"image a", said=["", "three"], kind=12, id="y"),
        example(file=b"image a", said=[], id="x"),
        example(kind=7),
    ]
    source = data.open(
        write("a.array_record", records),
        image_field="file",
        caption_field="said",
        label_field="kind",
        uid_field="id",
    )
    assert source.classes == ("12", "7")
    assert source[0] == ("x", b"image a", "one", 1)
    assert source[1] == ("y", b"image a", "three", 0)
    with pytest.raises(BadRecord, match="a/0000002: its uid 'x' occurs before"):
        source[2]
    with pytest.raises(BadRecord, match="a/0000003: no image in 'file'"):
        source[3]


def test_captions_from_class_names(write):
    records = [example(image=b"0", label="owl"), example(image=b"1", label=b"sea_cow")]
    source = data.open(write("a.array_record", records), label_field="label", templates="emoji")
    assert source.classes == ("owl", "sea_cow")
    assert "sea cow" in source.caption(1)


def test_a_bad_record_costs_itself_only(write):
    records = [example(image=b"0", text=f"caption {i}") for i in range(4)]
    records[1] = b"\xffno message"
    records[2] = example(image=b"0", text=b"caf\xe9")
    source = data.open(write("a.array_record", records))
    reasons = []
    for index in (1, 2):
        with pytest.raises(BadRecord) as caught:
            source[index]
        reasons.append(caught.value.reason)
    assert reasons == [
        "the record is no tf.train.Example",
        "the caption is not UTF-8 (at byte 3)",
    ]
    assert [source[i].caption for i in (0, 3)] == ["caption 0", "caption 3"]


def test_what_cannot_be_opened(write, tmp_path):
    (tmp_path / "no.array_record").write_bytes(b"no such file")
    with pytest.raises(UserError, match=r"no.array_record is damaged or no ArrayRecord file"):
        data.open(f"array_record:{tmp_path}/no.array_record")
    with pytest.raises(UserError, match=r"record 0: the record is no tf.train.Example"):
        data.open(write("a.array_record", [b"\xffno message"]))
    with pytest.raises(UserError, match="holds no records"):
        data.open(write("a.array_record", []))
    spec = write("a.array_record", [example(picture=b"0", words="a")])
    with pytest.raises(UserError, match=r"which field holds the images.*out of: picture, words"):
        data.open(spec)
    with pytest.raises(UserError, match=r"no field 'word' .* did you mean 'words'"):
        data.open(spec, image_field="picture", caption_field="word")


def test_no_tensorflow_is_imported(write):
    spec = write("a.array_record", [example(image=b"0", text="a")])
    code = (
        "import sys; from clipdef_jax import data; "
        f"assert data.open({spec!r})[0].caption == 'a'; "
        "assert not {'tensorflow', 'torch', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
