"""Embeddings on disk: written by shards, and as other tools leave them."""

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from clipdef_jax import detect
from clipdef_jax.detect import embeddings
from clipdef_jax.detect.embeddings import Embeddings, Stacked
from clipdef_jax.errors import UserError


def rows(count, seed, dim=6, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(dtype)


def clip_retrieval(folder, counts, *, column="image_path", text=True, dtype=np.float16):
    """Writes files as clip-retrieval names them, without leading zeros."""
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for number, count in enumerate(counts):
        np.save(folder / f"img_emb/img_emb_{number}.npy", rows(count, number, dtype=dtype))
        if text:
            texts = rows(count, number + 100, dtype=dtype)
            np.save(folder / f"text_emb/text_emb_{number}.npy", texts)
        columns = {
            column: [f"{number}/{row}" for row in range(count)],
            "caption": [f"caption {row}" if row else None for row in range(count)],
        }
        parquet.write_table(pa.table(columns), folder / f"metadata/metadata_{number}.parquet")
    return folder


def test_stacked_reads_like_the_joined_array():
    parts = [rows(5, 0), rows(0, 1), rows(7, 2), rows(1, 3)]
    joined, stacked = np.concatenate(parts), Stacked(parts)
    assert stacked.shape == joined.shape
    assert stacked.dtype == np.float32
    assert len(stacked) == 13
    for part in (
        slice(None),
        slice(2, 4),
        slice(3, 9),
        slice(0, 0),
        slice(12, 40),
        slice(1, 12, 3),
    ):
        np.testing.assert_array_equal(stacked[part], joined[part])
    picked = np.array([12, 0, 0, 7, 5, 4])
    np.testing.assert_array_equal(stacked[picked], joined[picked])
    np.testing.assert_array_equal(np.asarray(stacked), joined)
    own = np.arange(13)[:, None]
    for ours, expected in zip(
        detect.knn(stacked, stacked, 3, exclude=own),
        detect.knn(joined, joined, 3, exclude=own),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, expected)


def test_what_is_written_is_read(tmp_path):
    for number, count in ((0, 4), (1, 0), (2, 3)):
        metadata = {
            "uid": [f"{number}-{row}" for row in range(count)],
            "caption": ["a frog"] * count,
        }
        assert not embeddings.is_written(tmp_path, number)
        embeddings.write_shard(tmp_path, number, rows(count, number), rows(count, 9), metadata)
        assert embeddings.is_written(tmp_path, number)
    found = Embeddings(tmp_path)
    assert len(found) == 7
    np.testing.assert_array_equal(found.image[:], np.concatenate([rows(4, 0), rows(3, 2)]))
    np.testing.assert_array_equal(found.text[4:], rows(3, 9))
    assert found.uids.to_pylist() == ["0-0", "0-1", "0-2", "0-3", "2-0", "2-1", "2-2"]
    assert found.captions.to_pylist() == ["a frog"] * 7
    assert found.starts.tolist() == [0, 4, 4, 7]
    found.check_finite()


def test_files_of_clip_retrieval_go_by_their_numbers(tmp_path):
    found = Embeddings(clip_retrieval(tmp_path, [3] * 11))
    np.testing.assert_array_equal(found.image[30:], rows(3, 10, dtype=np.float16))
    assert found.uids[30].as_py() == "10/0"
    assert found.captions.slice(30).to_pylist() == ["", "caption 1", "caption 2"]
    assert found.image.dtype == np.float16


def test_pairs_without_names_of_their_own_are_named_by_their_place(tmp_path):
    found = Embeddings(clip_retrieval(tmp_path / "a", [2, 2], column="url"))
    assert found.uids.to_pylist() == ["0/000000", "0/000001", "1/000000", "1/000001"]
    folder = clip_retrieval(tmp_path / "b", [2, 2])
    table = pa.table({"key": ["same"] * 2, "caption": ["x"] * 2})
    for number in range(2):
        parquet.write_table(table, folder / f"metadata/metadata_{number}.parquet")
    assert Embeddings(folder).uids.to_pylist()[0] == "0/000000"


def test_only_images(tmp_path):
    (tmp_path / "img_emb").mkdir()
    np.save(tmp_path / "img_emb/0.npy", rows(3, 0))
    found = Embeddings(tmp_path)
    assert found.text is None
    assert found.captions.to_pylist() == [""] * 3
    assert found.uids.to_pylist() == ["0/000000", "0/000001", "0/000002"]


def test_the_digest_tells_folders_apart(tmp_path):
    one = clip_retrieval(tmp_path / "a", [3, 3])
    same, other = clip_retrieval(tmp_path / "b", [3, 3]), clip_retrieval(tmp_path / "c", [3, 4])
    assert Embeddings(one).digest() == Embeddings(same).digest() != Embeddings(other).digest()
    np.save(one / "text_emb/text_emb_1.npy", rows(3, 50, dtype=np.float16))
    assert Embeddings(one).digest() != Embeddings(same).digest()


def spoil(folder, what):
    image, text = folder / "img_emb/img_emb_1.npy", folder / "text_emb/text_emb_1.npy"
    match what:
        case "none":
            for file in (folder / "img_emb").iterdir():
                file.unlink()
        case "empty":
            for part in ("img_emb", "text_emb", "metadata"):
                for file in (folder / part).iterdir():
                    file.unlink()
            np.save(folder / "img_emb/img_emb_0.npy", rows(0, 0))
        case "width":
            np.save(image, rows(3, 0, dim=5))
        case "captions":
            np.save(text, rows(2, 0))
        case "missing":
            text.unlink()
        case "metadata":
            table = pa.table({"uid": ["a", "b"]})
            parquet.write_table(table, folder / "metadata/metadata_1.parquet")
        case "no parquet":
            (folder / "metadata/metadata_1.parquet").write_bytes(b"PAR1 nonsense")
        case "cut":
            image.write_bytes(image.read_bytes()[:140])
        case "integers":
            np.save(image, np.ones((3, 6), np.int32))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("none", r"holds no img_emb/\*.npy; expected a folder of embeddings"),
        ("empty", r"the embeddings are empty"),
        ("width", r"img_emb_1.npy has 5 dimensions, .*img_emb_0.npy 6: .* different models"),
        ("captions", r"text_emb_1.npy is \(2, 6\), the image embeddings .* are \(3, 6\)"),
        ("missing", r"2 files in img_emb, 1 in text_emb"),
        ("metadata", r"metadata_1.parquet has 2 rows, .*img_emb_1.npy 3"),
        ("no parquet", r"metadata_1.parquet is damaged or no Parquet file"),
        ("cut", r"img_emb_1.npy is damaged or no .npy file"),
        ("integers", r"img_emb_1.npy holds int32 \(3, 6\), expected floating point"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, what, message):
    folder = clip_retrieval(tmp_path, [3, 3])
    spoil(folder, what)
    with pytest.raises(UserError, match=message):
        Embeddings(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_named(tmp_path, value):
    folder = clip_retrieval(tmp_path, [3, 3])
    bad = rows(3, 0, dtype=np.float16)
    bad[2, 1] = value
    np.save(folder / "text_emb/text_emb_1.npy", bad)
    with pytest.raises(UserError, match=r"text_emb: row 2 of file 1 \(pair '1/2'\) is not finite"):
        Embeddings(folder).check_finite()
    metadata = {"uid": ["a", "b", "c"], "caption": [""] * 3}
    with pytest.raises(UserError, match=r"the caption of 'c' has an embedding that is not finite"):
        embeddings.write_shard(tmp_path / "new", 0, rows(3, 0), bad, metadata)
    assert not (tmp_path / "new").exists()
