import pickle

import numpy as np
import pytest

from clipdef_jax import data
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

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        if not 0 <= index < self._length:
            raise IndexError(index)
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
