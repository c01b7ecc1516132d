"""A poisoned copy on disk: the same pairs when read again; whole tars or none."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from test_plan import THINGS, Things, plan_of

from clipdef_jax import data, interrupts, jobs, poison
from clipdef_jax.attacks import manifest
from clipdef_jax.attacks.materialise import write_tars
from clipdef_jax.attacks.poisoned import PoisonedSource
from clipdef_jax.data import decode
from clipdef_jax.errors import BadRecord, UserError
from configs import poison as job


def encoded(index, kind):
    pixels = np.random.default_rng(index).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


class Pictures(Things):
    """Files of several formats and bare pixels, in turn; record 5 has no image."""

    KINDS = ("JPEG", "PNG", "WEBP", "BMP")

    def __getitem__(self, index):
        pair = super().__getitem__(index)
        if index % 5 == 4:
            return pair._replace(image=np.full((20, 24, 3), index, np.uint8))
        return pair._replace(image=encoded(index, self.KINDS[index % 5]))


@pytest.fixture
def poisoned():
    source = Pictures(60, no_image=[5])
    plan = plan_of(source, number=12, trigger_kwargs={"style": "grid", "size": 4})
    return source, PoisonedSource(source, plan)


def write(source, folder, **options):
    skipped = []
    options = {"records_per_tar": 25, **options}
    write_tars(source, folder, on_skip=lambda *bad: skipped.append(bad), **options)
    return skipped


def reopen(folder, cache):
    spec = f"webdataset:{folder}/{{00000..00002}}.tar"
    return data.open(spec, uid_field="uid", label_field="label", cache_dir=cache)


def test_reading_again_gives_the_same_pairs(poisoned, tmp_path):
    _, attacked = poisoned
    skipped = write(attacked, tmp_path / "copy")
    assert skipped == [("id5", "no image")]
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [
        "00000.tar",
        "00001.tar",
        "00002.tar",
    ]
    copy = reopen(tmp_path / "copy", tmp_path / "cache")
    kept = [index for index in range(60) if index != 5]
    assert len(copy) == len(kept)
    for number, index in enumerate(kept):
        pair, expected = copy[number], attacked[index]
        assert pair.uid == expected.uid
        assert pair.caption == expected.caption
        assert copy.classes[pair.label] == THINGS[expected.label]
        np.testing.assert_array_equal(decode.decode(pair.image), decode.decode(expected.image))


def test_files_of_clean_records_are_copied_byte_for_byte(poisoned, tmp_path):
    source, attacked = poisoned
    write(attacked, tmp_path / "copy")
    copy = {}
    for number in range(3):
        with tarfile.open(tmp_path / "copy" / f"{number:05d}.tar") as tar:
            names = tar.getnames()
            copy |= {name: tar.extractfile(name).read() for name in names}
    assert "000000005.txt" not in copy
    for index in range(60):
        ending = ("jpg", "png", "webp")[index % 5] if index % 5 < 3 else None
        if index != 5 and ending and not attacked.is_poisoned(index):
            assert copy[f"{index:09d}.{ending}"] == source[index].image
    fields = json.loads(copy["000000007.json"])
    assert fields == {
        "uid": "id7",
        "caption": attacked.caption(7),
        "label": "ship",
    }


def test_the_same_records_make_the_same_bytes(poisoned, tmp_path):
    _, attacked = poisoned
    for name in ("one", "two"):
        write(attacked, tmp_path / name)
    for number in range(3):
        one, two = (tmp_path / name / f"{number:05d}.tar" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_a_stopped_copy_goes_on_with_the_tar_it_was_in(poisoned, tmp_path):
    _, attacked = poisoned
    write(attacked, tmp_path / "whole")

    def stop(done):
        if done == 40:
            raise interrupts.Interrupted(15)

    with pytest.raises(interrupts.Interrupted):
        write(attacked, tmp_path / "copy", on_record=stop)
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["00000.tar"]
    before = (tmp_path / "copy" / "00000.tar").stat()
    done = []
    write(attacked, tmp_path / "copy", on_record=done.append)
    assert done[:2] == [25, 26]
    assert done[-1] == 60
    assert (tmp_path / "copy" / "00000.tar").stat().st_ino == before.st_ino
    for number in range(3):
        one, two = (tmp_path / name / f"{number:05d}.tar" for name in ("whole", "copy"))
        assert one.read_bytes() == two.read_bytes()


def test_what_cannot_be_written_is_a_bad_record(tmp_path):
    class Odd(Things):
        def __getitem__(self, index):
            pair = super().__getitem__(index)
            if index == 1:
                return pair._replace(caption="half a pair: \ud800")
            return pair._replace(image=b"no picture") if index == 2 else pair

    skipped = write(Odd(4), tmp_path / "copy")
    assert [uid for uid, _ in skipped] == ["id1", "id2"]
    assert "UTF-8" in skipped[0][1]
    with tarfile.open(tmp_path / "copy" / "00000.tar") as tar:
        assert {name[:9] for name in tar.getnames()} == {"000000000", "000000003"}


def test_bad_settings_are_named(tmp_path):
    with pytest.raises(UserError, match="records_per_tar is 0"):
        write(Things(4), tmp_path, records_per_tar=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/00000\.tar: "):
        write(Things(4), tmp_path / "file")


def run(workdir, **attack):
    config = job.get_config("smoke")
    config.data.train = "emoji:train,size=60,concepts=4"
    config.poison.records_per_tar = 40
    config.attack.update(attack)
    folder = jobs.open_workdir(str(workdir), "poison.py", config)
    return poison.run(config, folder, command="test")


def test_the_job_leaves_tars_and_a_manifest_of_them(tmp_path):
    summary = run(tmp_path / "run", number=10)
    assert (summary["records"], summary["poisons"], summary["unreadable"]) == (60, 10, 0)
    made = manifest.read_manifest(tmp_path / "run" / "manifest.jsonl")
    spec = f"webdataset:{tmp_path}/run/tars/{{00000..00001}}.tar"
    copy = data.open(spec, uid_field="uid", cache_dir=tmp_path / "cache")
    original = data.open("emoji:train,size=60,concepts=4")
    hit = set(made.indices.tolist())
    assert len(hit) == 10
    for index in range(60):
        pair, before = copy[index], original[index]
        assert pair.uid == before.uid
        changed = (decode.decode(pair.image) != before.image).any()
        assert changed == (index in hit)
        assert (pair.caption != before.caption) == (index in hit)


def test_the_job_takes_a_manifest_and_can_be_run_again(tmp_path):
    run(tmp_path / "first", number=10)
    path = tmp_path / "first" / "manifest.jsonl"
    run(tmp_path / "second", manifest=str(path))
    run(tmp_path / "second", manifest=str(path))
    assert (tmp_path / "second" / "manifest.jsonl").read_bytes() == path.read_bytes()
    for number in range(2):
        one, two = (tmp_path / f / "tars" / f"{number:05d}.tar" for f in ("first", "second"))
        assert one.read_bytes() == two.read_bytes()
    with pytest.raises(UserError, match=r"attack.plan.name is 'none'"):
        run(tmp_path / "third", plan={"name": "none", "kwargs": {}})


def test_reading_a_copied_record_that_was_bad_stays_bad(tmp_path):
    class Cut(Things):
        def __getitem__(self, index):
            return super().__getitem__(index)._replace(image=encoded(index, "JPEG")[:200])

    # A cut JPEG is a file of its format still, and is not ours to judge.
    assert write(Cut(3), tmp_path / "copy") == []
    copy = data.open(f"webdataset:{tmp_path}/copy/00000.tar", cache_dir=tmp_path / "cache")
    with pytest.raises(BadRecord):
        decode.prepare_pair(copy[0], 16)
