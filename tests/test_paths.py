"""Which files a pattern names, and what is said of those that are not there."""

import pytest

from clipdef_jax import data
from clipdef_jax.data.paths import expand
from clipdef_jax.errors import UserError
from tests.test_webdataset import contents, record, write_tar


def open_tars(folder, pattern):
    return data.open(f"webdataset:{folder}/{pattern}", cache_dir=folder / "index")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{00000..00002}.tar", ["00000", "00001", "00002"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
        ("{a}", ["{a}"]),
    ],
)
def test_braces(pattern, expected):
    assert [name.removesuffix(".tar") for name in expand(pattern)] == expected


def test_wildcards_and_shards_of_the_same_name(tmp_path):
    for folder in ("cats", "dogs"):
        for shard in ("0", "1"):
            write_tar(tmp_path / folder / f"{shard}.tar", record("k", f"{folder} {shard}"))
    source = open_tars(tmp_path, "{dogs,cats}/*.tar")
    assert [pair[0] for pair in contents(source)] == [
        "dogs/0/k",
        "dogs/1/k",
        "cats/0/k",
        "cats/1/k",
    ]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{00000..00003}.tar", r"no file .*00002\.tar; the folder holds 2: 00000.tar, 00001.tar"),
        ("*.tgz", r"no file .*\*\.tgz; the folder holds 2"),
        ("", "that is a folder, which holds 2"),
        ("nothing/0.tar", "there is no folder .*nothing"),
        ("{00000,00000}.tar", "named twice"),
    ],
)
def test_tars_that_are_not_there(tmp_path, pattern, message):
    for shard in ("00000", "00001"):
        write_tar(tmp_path / f"{shard}.tar", record("0"))
    with pytest.raises(UserError, match=message):
        open_tars(tmp_path, pattern)


def test_no_pipes():
    for spec in ("pipe:cat a.tar", "{pipe:cat a.tar,b.tar}"):
        with pytest.raises(UserError, match="no pipes"):
            data.open(f"webdataset:{spec}")
