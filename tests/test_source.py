import pickle

import numpy as np
import pytest

from clipdef_jax import data
from clipdef_jax.data import ids
from clipdef_jax.data import source as source_module
from clipdef_jax.errors import BadRecord, UserError
from clipdef_jax.types import Pair, Source


class Numbers:
    """Record i is the pair of uid "i" and caption "number i"; multiples of `bad` are bad."""

    def __init__(self, length=5, classes=("even", "odd"), bad=None, spec=""):
        self.classes = classes
        self.problems = (("shard", "cut short"),) if bad else ()
        self._length, self._bad = length, bad
        self.spec = spec
        self.read = 0

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        if not 0 <= index < self._length:
            raise IndexError(index)
        self.read += 1
        if self._bad and index % self._bad == 0:
            raise BadRecord(str(index), "divisible")
        return Pair(str(index), b"", f"number {index}", index % 2)

    def caption(self, index):
        return self[index].caption


def test_a_known_scheme_goes_before_an_import_path(monkeypatch):
    monkeypatch.setitem(source_module.SCHEMES, "numbers", f"{__name__}:Numbers")
    source = data.open("numbers:DIR/{0..3}.tar", length=3)
    assert (source.spec, len(source)) == ("DIR/{0..3}.tar", 3)
    # Even where what follows reads like an attribute, and a module of that name exists.
    monkeypatch.setitem(source_module.SCHEMES, "json", f"{__name__}:Numbers")
    assert data.open("json:train").spec == "train"


def test_an_import_path_takes_the_options_only():
    source = data.open(f"{__name__}:Numbers", length=7)
    assert isinstance(source, Numbers)
    assert isinstance(source, Source)
    assert len(source) == 7


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("emojy:train", "did you mean 'emoji'"),
        ("webdatset:/a/{0..1}.tar", "did you mean 'webdataset'"),
        ("/some/folder", "expected 'SCHEME:REST'"),
        ("nowhere.at_all:Source", "on PYTHONPATH"),
        ("json:Nothing", "has no 'Nothing'"),
    ],
)
def test_what_cannot_be_opened(spec, message):
    with pytest.raises(UserError, match=message):
        data.open(spec)


def test_an_option_the_source_does_not_take():
    with pytest.raises(UserError, match="colour"):
        data.open(f"{__name__}:Numbers", colour="red")


def test_subset():
    subset = pickle.loads(pickle.dumps(data.Subset(Numbers(bad=4), [3, 0, 1])))
    assert isinstance(subset, Source)
    assert len(subset) == 3
    assert subset.classes == ("even", "odd")
    assert subset[0] == Pair("3", b"", "number 3", 1)
    assert subset.caption(np.int64(2)) == "number 1"
    assert subset.problems == (("shard", "cut short"),)
    with pytest.raises(BadRecord, match="divisible"):
        subset[1]
    for index in (-1, 3):
        with pytest.raises(IndexError):
            subset[index]
    assert len(data.Subset(Numbers(), [])) == 0


@pytest.mark.parametrize(("indices", "message"), [([5], "0 to 4"), ([-1], "-1"), ([1, 1], "twice")])
def test_subset_of_indices_that_are_not_there(indices, message):
    with pytest.raises(UserError, match=message):
        data.Subset(Numbers(), indices)


def test_concat_keeps_uids_unique():
    parts = [Numbers(2), Numbers(0), Numbers(3, bad=2)]
    source = pickle.loads(pickle.dumps(data.Concat(parts)))
    assert isinstance(source, Source)
    assert len(source) == 5
    assert [source[i].uid for i in (0, 1, 3)] == ["0/0", "0/1", "2/1"]
    assert [source.caption(i) for i in (0, 1, 3)] == ["number 0", "number 1", "number 1"]
    assert source[3].label == 1
    assert source.problems == (("2/shard", "cut short"),)
    for access in (source.__getitem__, source.caption):
        with pytest.raises(BadRecord) as caught:
            access(4)
        assert (caught.value.uid, caught.value.reason) == ("2/2", "divisible")
        with pytest.raises(IndexError):
            access(5)
        with pytest.raises(IndexError):
            access(-1)


def test_concat_of_what_does_not_fit():
    with pytest.raises(UserError, match=r"2 \(even, odd\) and 4 \(a, b, c, …\)"):
        data.Concat([Numbers(), Numbers(classes=("a", "b", "c", "d"))])
    with pytest.raises(UserError, match="at least one"):
        data.Concat([])


@pytest.mark.parametrize("name", ["keep.npy", "keep.txt"])
def test_kept(tmp_path, name):
    ids.write_ids(tmp_path / name, ["3", "0", "7", "eight"])
    kept = data.Kept(Numbers(bad=4), tmp_path / name)
    assert isinstance(kept, Source)
    assert len(kept) == 2
    # A listed record that cannot be read is there all the same.
    assert [kept.uid(i) for i in range(2)] == ["0", "3"]
    assert kept[1].caption == "number 3"
    with pytest.raises(BadRecord, match="divisible"):
        kept[0]
    assert kept.problems == (
        ("shard", "cut short"),
        (str(tmp_path / name), "2 of the 4 listed records are not in the source"),
    )
    ids.write_ids(tmp_path / name, ["4", "2"])
    assert data.Kept(Numbers(), tmp_path / name).problems == ()


def test_a_list_that_fits_nothing(tmp_path):
    ids.write_ids(tmp_path / "keep.npy", ["eight", "nine"])
    with pytest.raises(UserError, match=r"none of its 2 records is in the source.* like '0'; it"):
        data.Kept(Numbers(), tmp_path / "keep.npy")
    with pytest.raises(UserError, match="No such file"):
        data.open("emoji:train", keep=tmp_path / "none.npy")


def test_uids_without_images():
    scenes = data.open("emoji:train", size=4)
    for source in (
        scenes,
        data.Subset(scenes, [2, 0]),
        data.Concat([Numbers(2), Numbers(3)]),
        data.Subset(Numbers(bad=2), [1, 0]),
    ):
        uids = [source_module.uid_of(source, i) for i in range(len(source))]
        for index, uid in enumerate(uids):
            try:
                found = source[index].uid
            except BadRecord as bad:
                found = bad.uid
            assert uid == found
    numbers = Numbers()
    assert data.Subset(numbers, [1]).uid(0) == "1"
    assert numbers.read == 1  # It has no other way.


def test_draw():
    drawn = data.draw(Numbers(100), 10, seed=3)
    uids = [int(drawn[i].uid) for i in range(10)]
    assert uids == sorted(set(uids))
    assert uids == [int(data.draw(Numbers(100), 10, seed=3)[i].uid) for i in range(10)]
    assert uids != [int(data.draw(Numbers(100), 10, seed=4)[i].uid) for i in range(10)]
    assert len(data.draw(Numbers(5), 5, seed=0)) == 5
    for number in (0, 6, -1):
        with pytest.raises(UserError, match=f"subset is {number}, expected 1 to 5"):
            data.draw(Numbers(5), number, seed=0)


def test_opened_kept_and_drawn(tmp_path):
    ids.write_ids(tmp_path / "keep.txt", [str(i) for i in range(0, 50, 2)])
    source = data.open(
        f"{__name__}:Numbers", length=50, keep=tmp_path / "keep.txt", subset=10, subset_seed=1
    )
    uids = [int(source[i].uid) for i in range(len(source))]
    assert len(uids) == 10
    assert not any(uid % 2 for uid in uids)
    assert uids == sorted(uids)


def test_several_specs_are_one_after_the_other(tmp_path):
    (tmp_path / "t.csv").write_text("image,caption,kind\na.jpg,one,even\n,two,odd\n")
    spec = f"{__name__}:Numbers + csv:{tmp_path}/t.csv"
    source = data.open(spec, length=3, label_column="kind")
    assert [source.caption(i) for i in range(5)] == [
        *(f"number {i}" for i in range(3)),
        "one",
        "two",
    ]
    assert source.uid(3) == "1/t/0000000"
    # What no source names goes to those that take anything, which say so if they do not.
    with pytest.raises(UserError, match="unknown option 'colour'"):
        data.open("emoji:train + emoji:test", colour="red")
    with pytest.raises(UserError, match="none of these takes option 'colour'"):
        data.open(spec, colour="red")
    with pytest.raises(UserError, match="did you mean 'emoji'"):
        data.open("emoji:train + emojy:train")
    ids.write_ids(tmp_path / "keep.txt", ["1/t/0000001", "0/2"])
    kept = data.open(spec, length=3, label_column="kind", keep=tmp_path / "keep.txt")
    assert [kept.caption(i) for i in range(2)] == ["number 2", "two"]
