import json

import pytest
from test_plan import Things, plan_of

from clipdef_jax.attacks.manifest import check_source, read_manifest, write_manifest
from clipdef_jax.errors import UserError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new folder" / "manifest.jsonl"


def test_a_manifest_reads_back_as_the_same_plan(path):
    plan = plan_of(Things(1000), rate=0.05, trigger_kwargs={"style": "grid", "size": 5}, seed=7)
    write_manifest(path, plan)
    assert read_manifest(path) == plan
    check_source(read_manifest(path), Things(1000))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_manifest_is_json_lines_of_documented_fields(path):
    plan = plan_of(Things(1000), number=3, trigger_kwargs={"location": "top_left", "size": 4})
    write_manifest(path, plan)
    header, *rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert header["schema"] == 1
    assert header["records"] == 1000
    assert header["poisons"] == 3
    assert header["attack"]["target"] == "banana"
    assert header["attack"]["trigger_kwargs"] == {"location": "top_left", "size": 4}
    assert len(header["notes"]) == 1
    first = plan.poisons[0]
    assert rows[0] == {
        "index": first.index,
        "uid": first.uid,
        "trigger": "badnet",
        "location": [[0, 0, 4, 4]],
        "old_caption": first.old_caption,
        "new_caption": first.new_caption,
        "part": 0,
        "donor": None,
    }


def test_any_caption_survives(path):
    class Odd(Things):
        def caption(self, index):
            return f'{super().caption(index)}\n\u2028 \x85 \ud800 "é" 香蕉'

    plan = plan_of(Odd(100), number=20)
    write_manifest(path, plan)
    assert read_manifest(path) == plan


def test_writing_replaces_a_manifest_or_leaves_it_as_it_was(path):
    first = plan_of(Things(1000), number=5)
    write_manifest(path, first)
    bad = plan_of(Things(1000), number=6, trigger_kwargs={"size": 4})
    bad.attack.trigger_kwargs["size"] = {4}
    with pytest.raises(UserError, match="set is not JSON serializable"):
        write_manifest(path, bad)
    assert read_manifest(path) == first
    second = plan_of(Things(1000), number=6)
    write_manifest(path, second)
    assert read_manifest(path) == second


def test_another_data_set_is_refused_by_its_first_difference():
    plan = plan_of(Things(1000), number=20)
    with pytest.raises(UserError, match="made for 1000 records, the source has 999"):
        check_source(plan, Things(999))

    class Renamed(Things):
        def __getitem__(self, index):
            pair = super().__getitem__(index)
            return pair if index < plan.indices[3] else pair._replace(uid=f"other{index}")

    first = plan.indices[3]
    with pytest.raises(UserError, match=f"record {first} has uid 'other{first}' in the source"):
        check_source(plan, Renamed(1000))

    class Recaptioned(Things):
        def caption(self, index):
            return super().caption(index).upper()

    with pytest.raises(UserError, match=f"record {plan.indices[0]} has caption 'PHOTO"):
        check_source(plan, Recaptioned(1000))


def test_a_record_that_has_become_unreadable_is_no_mismatch():
    plan = plan_of(Things(1000), number=20)
    check_source(plan, Things(1000, no_image=plan.indices.tolist()))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [], "the file is empty"),
        (lambda lines: lines[:-1], "19 poisons, its first line announces 20"),
        (lambda lines: [*lines[:-1], lines[-1][:30]], "line 21: JSONDecodeError"),
        (lambda lines: [*lines[:-1], lines[1]], "20 poisons, its first line announces 20 diff"),
        (lambda lines: lines[1:], "line 1: KeyError: 'schema'"),
        (lambda lines: [lines[0].replace('"schema": 1', '"schema": 9'), *lines[1:]], "schema 9"),
        (lambda lines: [*lines[:5], "[1, 2]", *lines[6:]], "line 6: "),
        (lambda lines: [lines[0].replace("target", "goal"), *lines[1:]], "line 1: .*goal"),
        (
            lambda lines: [lines[0].replace('"records": 1000', '"records": 500'), *lines[1:]],
            r"line \d+: ValueError: record \d+ of 500",
        ),
    ],
)
def test_a_damaged_manifest_is_refused(path, damage, message):
    write_manifest(path, plan_of(Things(1000), number=20))
    path.write_text("\n".join(damage(path.read_text().splitlines())))
    with pytest.raises(UserError, match=message) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)


def test_a_manifest_that_is_none(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: No such file"):
        read_manifest(tmp_path / "none.jsonl")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8 text"):
        read_manifest(tmp_path / "bytes")
