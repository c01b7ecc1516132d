"""TFDS sources: real builders, prepared here from the built-in scenes, without TensorFlow."""

import contextlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from clipdef_jax import data
from clipdef_jax.data.decode import decode
from clipdef_jax.errors import BadRecord, UserError
from clipdef_jax.types import Source

SIZE = {"train": 12, "test": 5}


def scenes(split):
    return data.open(f"emoji:{split}", size=SIZE[split], concepts=3)


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    # Handed over encoded: TFDS itself would encode pixels by TensorFlow.
    return io.BytesIO(buffer.getvalue())


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Pictures with captions, as coco_captions has them, or with a class, as most builders."""

    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name=name) for name in ("captions", "labels")
    ]

    def _info(self):
        image = tfds.features.Image(shape=(None, None, 3))
        if self.builder_config.name == "captions":
            said = {"id": np.int64, "text": tfds.features.Text()}
            features = {"image": image, "captions": tfds.features.Sequence(said)}
            features["image/filename"] = tfds.features.Text()
        else:
            label = tfds.features.ClassLabel(names=scenes("train").classes)
            features = {"picture": image, "label": label}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SIZE}

    def _generate_examples(self, split):
        source = scenes(split)
        for index in range(len(source)):
            uid, image, caption, label = source[index]
            if self.builder_config.name == "captions":
                said = [{"id": index, "text": caption}, {"id": 0, "text": "second"}]
                yield uid, {"image": png(image), "captions": said, "image/filename": uid}
            else:
                yield uid, {"picture": png(image), "label": label}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for name in ("captions", "labels"):
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            builder = Scenes(config=name, data_dir=folder, file_format="array_record")
            builder.download_and_prepare()
    return folder


def test_captions(data_dir):
    options = {"data_dir": str(data_dir), "uid_field": "image/filename"}
    source = data.open("tfds:scenes/captions:train", **options)
    assert isinstance(source, Source)
    assert source.classes == ()
    assert len(source) == 12
    pairs = {pair.uid: pair for pair in map(scenes("train").__getitem__, range(12))}
    for copy in (source, pickle.loads(pickle.dumps(source))):
        for index in range(12):
            pair = copy[index]
            expected = pairs[pair.uid]
            assert pair.caption == copy.caption(index) == expected.caption
            assert copy.uid(index) == pair.uid
            assert pair.label == -1
            np.testing.assert_array_equal(decode(pair.image), expected.image)
    assert {source[i].uid for i in range(12)} == set(pairs)


def test_labels_make_captions(data_dir):
    source = data.open("tfds:scenes/labels:train", data_dir=str(data_dir), templates="emoji")
    assert source.classes == scenes("train").classes
    by_image = {pair.image.tobytes(): pair for pair in map(scenes("train").__getitem__, range(12))}
    captions = []
    for index in range(12):
        pair = source[index]
        assert pair.label == by_image[decode(pair.image).tobytes()].label
        assert source.classes[pair.label] in pair.caption
        captions.append(pair.caption.replace(source.classes[pair.label], "").replace("n ", " "))
    assert len(set(captions)) > 2


def test_splits(data_dir):
    def opened(split, **options):
        return data.open(f"tfds:scenes/labels:{split}", data_dir=str(data_dir), **options)

    whole, test = opened("train"), opened("test")
    assert [whole.uid(i) for i in (0, 11)] == [
        "scenes-train-00000-of-00001/0000000",
        "scenes-train-00000-of-00001/0000011",
    ]
    # A record keeps its uid in every slice.
    assert [tuple(opened("train[50%:]")[i]) for i in range(6)] == [
        tuple(whole[i]) for i in range(6, 12)
    ]
    both = opened("train[:2]+test")
    assert [both.uid(i) for i in range(7)] == [
        *(whole.uid(i) for i in range(2)),
        *(test.uid(i) for i in range(5)),
    ]
    assert tuple(both[3]) == tuple(test[1])
    with pytest.raises(UserError, match="no split 'val'; it has: train, test, and slices like"):
        opened("val")
    with pytest.raises(UserError, match=r"no split 'train\[:x%\]'"):
        opened("train[:x%]")
    with pytest.raises(UserError, match="holds no records"):
        opened("train[:0]")


def test_versions_and_configs(data_dir, tmp_path):
    for version in ("1.2.0", "1.10.0"):
        folder = tmp_path / "scenes/labels" / version
        shutil.copytree(data_dir / "scenes/labels/1.2.0", folder)
        info = json.loads((folder / "dataset_info.json").read_text()) | {"version": version}
        (folder / "dataset_info.json").write_text(json.dumps(info))
    assert len(data.open("tfds:scenes:test", data_dir=str(tmp_path))) == 5
    assert len(data.open("tfds:scenes:1.2.0:test", data_dir=str(tmp_path))) == 5
    with pytest.raises(UserError, match=r"no version 1.3.0 of scenes/labels .* 1.2.0, 1.10.0"):
        data.open("tfds:scenes/labels:1.3.0:test", data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"several configs; name one.*: captions, labels"):
        data.open("tfds:scenes:test", data_dir=str(data_dir))


def test_data_that_are_not_prepared(data_dir, monkeypatch):
    command = f"tfds build mnist --file_format=array_record --data_dir={data_dir}"
    with pytest.raises(
        UserError, match=rf"no data set mnist is prepared .* holds scenes.*{command}"
    ):
        data.open("tfds:mnist:train", data_dir=str(data_dir))
    with pytest.raises(UserError, match="no data set scenes/more is prepared"):
        data.open("tfds:scenes/more:train", data_dir=str(data_dir))
    with pytest.raises(UserError, match="expected 'tfds:NAME:SPLIT'"):
        data.open("tfds:mnist")
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert len(data.open("tfds:scenes/labels:test")) == 5


def test_files_without_random_access(data_dir, tmp_path):
    folder = tmp_path / "scenes/labels/1.2.0"
    shutil.copytree(data_dir / "scenes/labels/1.2.0", folder)
    info = json.loads((folder / "dataset_info.json").read_text()) | {"fileFormat": "tfrecord"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    command = "tfds convert_format --out_file_format=array_record --dataset_version_dir="
    with pytest.raises(UserError, match=rf"holds tfrecord files.*{command}{folder} "):
        data.open("tfds:scenes:test", data_dir=str(tmp_path))


def test_fields(data_dir):
    with pytest.raises(UserError, match=r"no field 'lable' .* did you mean 'label'"):
        data.open("tfds:scenes/labels:test", data_dir=str(data_dir), label_field="lable")
    source = data.open(
        "tfds:scenes/captions:test", data_dir=str(data_dir), caption_field="image/filename"
    )
    assert source.caption(0).startswith("emoji-test-0-")
    with pytest.raises(UserError, match="make captions from class names, and no column"):
        data.open("tfds:scenes/captions:test", data_dir=str(data_dir), templates="emoji")


def test_a_shard_that_is_gone(data_dir, tmp_path):
    folder = tmp_path / "scenes/labels/1.2.0"
    shutil.copytree(data_dir / "scenes/labels/1.2.0", folder)
    source = data.open("tfds:scenes:test", data_dir=str(tmp_path))
    assert source[0].label >= 0
    os.remove(folder / "scenes-test.array_record-00000-of-00001")
    with pytest.raises(BadRecord, match="No such file"):
        pickle.loads(pickle.dumps(source))[0]
    with pytest.raises(UserError, match=r"record 0: .*No such file"):
        data.open("tfds:scenes:test", data_dir=str(tmp_path))


def test_no_tensorflow_is_imported(data_dir):
    code = (
        "import sys; from clipdef_jax import data; "
        f"source = data.open('tfds:scenes/labels:train', data_dir={str(data_dir)!r}); "
        "assert source[3].label >= 0; "
        "assert not {'tensorflow', 'torch', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
