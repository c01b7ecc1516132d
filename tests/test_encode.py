"""A source encoded by shards: complete, in order, the same however often it was stopped."""

import jax
import numpy as np
import pytest

from clipdef_jax import data, models, sharding
from clipdef_jax.data import tokenizer
from clipdef_jax.data.loader import Loader, read_blocks
from clipdef_jax.detect.embeddings import Embeddings
from clipdef_jax.detect.encode import encode
from clipdef_jax.errors import BadRecord, UserError
from tests.test_step import TINY, mesh_of

BAD = (3, 40)
WORDS = tokenizer.train(["a frog on a blue background"], 530, TINY["context_length"])
CLIP = models.get(
    "ViT-Ti/4", **TINY | {"vocab_size": WORDS.vocab_size, "eos_token_id": WORDS.eos_token_id}
)


# In one program: dozens of small ones take longer to compile.
INIT = jax.jit(CLIP.init)


class Damaged:
    """Scenes of which two cannot be read."""

    def __init__(self):
        self._source = data.open("emoji:train,size=45,concepts=4,side=16")
        self.classes = self._source.classes

    def __len__(self):
        return len(self._source)

    def caption(self, index):
        return self._source.caption(index)

    def __getitem__(self, index):
        pair = self._source[index]
        if index in BAD:
            raise BadRecord(pair.uid, "cut short")
        return pair


@pytest.fixture(scope="module")
def params():
    return INIT(jax.random.key(0))


def run(folder, params, devices=1, source=None, **options):
    skipped = []
    loader = Loader(source or Damaged(), WORDS, 16)
    mesh = mesh_of(devices)
    with jax.set_mesh(mesh):
        params = sharding.place(mesh, [(".*", jax.sharding.PartitionSpec())], params)
        encode(
            loader,
            CLIP,
            params,
            folder,
            mesh=mesh,
            batch=8,
            records_per_shard=20,
            on_skip=lambda uid, reason: skipped.append((uid, reason)),
            **options,
        )
    return skipped


@pytest.fixture(scope="module")
def encoded(tmp_path_factory, params):
    folder = tmp_path_factory.mktemp("embeddings")
    return folder, run(folder, params)


def test_every_readable_record_once_and_in_order(encoded, params):
    folder, skipped = encoded
    source, found = Damaged(), Embeddings(folder)
    kept = [index for index in range(45) if index not in BAD]
    assert found.column("index").to_pylist() == kept
    assert found.starts.tolist() == [0, 19, 39, 43]
    assert found.uids.to_pylist() == [source[index].uid for index in kept]
    assert [reason for _, reason in skipped] == ["cut short"] * 2
    rows, pairs = np.array([0, 18, 42]), [source[index] for index in (0, 19, 44)]
    pixels = CLIP.preprocess(np.stack([pair.image for pair in pairs]))
    image = jax.jit(CLIP.encode_image)(params, pixels)
    text = jax.jit(CLIP.encode_text)(params, WORDS([pair.caption for pair in pairs]))
    np.testing.assert_allclose(found.image[rows], image, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.text[rows], text, rtol=1e-4, atol=1e-5)
    assert found.captions[6].as_py() == source.caption(7)


@pytest.mark.parametrize("stops", [(1,), (20,), (24, 40)])
def test_stopped_and_resumed_gives_the_same_files(encoded, tmp_path, params, stops):
    for stop in stops:

        def on_records(done, stop=stop):
            if done >= stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, params, on_records=on_records)
    seen = []
    run(tmp_path, params, on_records=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 45
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    assert files == sorted(path.relative_to(encoded[0]) for path in encoded[0].rglob("*.*"))
    for file in files:
        assert (tmp_path / file).read_bytes() == (encoded[0] / file).read_bytes()


def test_eight_devices_give_what_one_gives(encoded, tmp_path, params):
    run(tmp_path, params, devices=8)
    ours, expected = Embeddings(tmp_path), Embeddings(encoded[0])
    assert ours.uids.to_pylist() == expected.uids.to_pylist()
    np.testing.assert_allclose(ours.image[:], expected.image[:], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.text[:], expected.text[:], rtol=1e-4, atol=1e-5)


def test_float16_takes_half_and_refuses_what_it_cannot_hold(encoded, tmp_path, params):
    run(tmp_path / "small", params, dtype="float16")
    found = Embeddings(tmp_path / "small")
    assert found.image.dtype == np.float16
    np.testing.assert_allclose(
        found.image[:], Embeddings(encoded[0]).image[:], rtol=1e-3, atol=1e-4
    )
    huge = jax.tree.map(lambda x: x, params)
    huge["image"] = jax.tree.map(lambda x: x * 1e3, params["image"])
    with pytest.raises(UserError, match=r"not finite in float16.*embed.dtype=float32"):
        run(tmp_path / "large", huge, dtype="float16")
    assert not list((tmp_path / "large").rglob("*.*"))


def test_blocks_are_the_same_by_worker_processes():
    loader = Loader(data.open("emoji:train,size=20,concepts=4,side=16"), WORDS, 16)
    blocks = [(0, 8), (8, 16), (16, 20)]
    here = list(read_blocks(loader, blocks, 10))
    there = list(read_blocks(loader, blocks, 10, workers=1))
    assert [block["index"] for block in here] == [list(range(*block)) for block in blocks]
    for one, other in zip(here, there, strict=True):
        assert one["image"].shape == (10, 16, 16, 3)
        assert one["text"].shape == (10, TINY["context_length"])
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["text"], other["text"])
        assert one["uid"] == other["uid"]
        assert not one["image"][len(one["uid"]) :].any()
