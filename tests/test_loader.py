"""Batches as a pure function of the step: order, resume, processes, workers, bad records."""

import dataclasses
import os
import pathlib
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest

from clipdef_jax.data import ids, tokenizer
from clipdef_jax.data import loader as loading
from clipdef_jax.data.memory import InMemory
from clipdef_jax.errors import BadRecord, UserError
from clipdef_jax.types import Pair, Subtext


class Numbers:
    """Records whose image and caption tell their index; some of them bad."""

    classes = ("even", "odd")

    def __init__(self, size, bad=()):
        self.size, self.bad, self.reads = size, dict(bad), 0

    def __len__(self):
        return self.size

    def caption(self, index):
        return self[index].caption

    def __getitem__(self, index):
        self.reads += 1
        fault = self.bad.get(index)
        if fault == "record":
            raise BadRecord(f"r{index}", "no such member")
        image = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image[0, 0, 0] = index
        if fault == "image":
            image = b"not a picture"
        caption = " " if fault == "caption" else f"number {index} of many small friendly numbers"
        return Pair(f"r{index}", image, caption, index % 2)


WORDS = tokenizer.train([Numbers(99)[i].caption for i in range(99)], 600, context_length=16)


SUBTEXT_VIEWS = ("image", "text", "text_aug", "text_pos", "text_neg", "has_subtext")
ALL_VIEWS = (*SUBTEXT_VIEWS, "image_aug", "label", "is_flagged")


def make(source, seed=0, views=ALL_VIEWS):
    return loading.Loader(source, WORDS, 8, views, seed)


def rows(batches, name="index"):
    return np.stack([batch[name] for batch in batches])


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_every_epoch_is_a_new_permutation():
    batches = list(loading.train_batches(make(Numbers(24)), 8, epochs=3))
    epochs = rows(batches).reshape(3, 24)
    for epoch in epochs:
        assert sorted(epoch) == list(range(24))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    np.testing.assert_array_equal(batches[0]["image"][:, 0, 0, 0], batches[0]["index"])
    texts = WORDS([Numbers(24)[int(i)].caption for i in batches[0]["index"]])
    np.testing.assert_array_equal(batches[0]["text"], texts)
    other = list(loading.train_batches(make(Numbers(24), seed=1), 8, epochs=1))
    assert (rows(other) != rows(batches[:3])).any()


def test_augmented_captions_are_drawn_at_every_access():
    batches = list(loading.train_batches(make(Numbers(8)), 8, epochs=4))
    by_record = [batch["text_aug"][np.argsort(batch["index"])] for batch in batches]
    assert any((by_record[0] != later).any() for later in by_record[1:])
    assert "text_aug" not in next(loading.train_batches(make(Numbers(8), views=("text",)), 8, 1))


def test_static_captions_are_augmented_once():
    loader = dataclasses.replace(make(Numbers(8)), static_eda=True)
    batches = list(loading.train_batches(loader, 8, epochs=3))
    texts = [batch["text_aug"][np.argsort(batch["index"])] for batch in batches]
    for later in texts[1:]:
        np.testing.assert_array_equal(later, texts[0])
    plain = WORDS([Numbers(8)[i].caption for i in range(8)])
    assert (texts[0] != plain).any()


def test_subcaptions_of_a_share_of_the_rows_chosen_afresh():
    loader = make(Numbers(16), views=SUBTEXT_VIEWS)
    loader = dataclasses.replace(loader, subtext=Subtext(fraction=0.25, negatives=3))
    batches = list(loading.train_batches(loader, 8, epochs=4))
    for batch in batches:
        has = batch["has_subtext"]
        assert has.sum() == 2
        assert batch["text_neg"].shape == (8, 3, 16)
        texts = batch["text"][has][:, None]
        assert (batch["text_neg"][has] != texts).any(axis=2).all()
        assert (batch["text_pos"][has] != batch["text"][has]).any(axis=1).all()
    assert len({tuple(batch["index"][batch["has_subtext"]]) for batch in batches}) > 4


def test_captions_without_a_word_to_exchange_get_no_subcaption():
    class Silent(Numbers):
        def __getitem__(self, index):
            return super().__getitem__(index)._replace(caption="hmpf" if index % 2 else "a dog")

    loader = make(Silent(8), views=SUBTEXT_VIEWS)
    loader = dataclasses.replace(loader, subtext=Subtext(fraction=1.0))
    batch = next(loading.train_batches(loader, 8, epochs=1))
    np.testing.assert_array_equal(batch["has_subtext"], batch["index"] % 2 == 0)


def test_labels_and_flags_of_the_records(tmp_path):
    listed = tmp_path / "flagged.txt"
    ids.write_ids(listed, ["r3", "r5", "another"])
    loader = make(Numbers(8), views=("logits", "label", "is_flagged"))
    loader = dataclasses.replace(loader, flagged=frozenset(ids.read_ids(listed).tolist()))
    batch = next(loading.train_batches(loader, 8, epochs=1))
    np.testing.assert_array_equal(batch["label"], batch["index"] % 2)
    np.testing.assert_array_equal(batch["is_flagged"], np.isin(batch["index"], [3, 5]))


@pytest.mark.parametrize("start", [1, 4, 5])
def test_resumed_at_any_step_sees_the_same(start):
    whole = list(loading.train_batches(make(Numbers(19, {3: "image"})), 4, epochs=2))
    assert len(whole) == 8
    rest = loading.train_batches(make(Numbers(19, {3: "image"})), 4, epochs=2, start=start)
    assert_same(list(rest), whole[start:])
    assert list(loading.train_batches(make(Numbers(19)), 4, epochs=2, start=8)) == []


def test_processes_share_the_same_global_batches():
    whole = list(loading.train_batches(make(Numbers(32)), 8, epochs=2))
    parts = [
        list(
            loading.train_batches(
                make(Numbers(32)), 8, epochs=2, process_index=process, process_count=2
            )
        )
        for process in range(2)
    ]
    joined = [
        {
            name: [*a[name], *b[name]] if name == "skipped" else np.concatenate([a[name], b[name]])
            for name in a
        }
        for a, b in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)


def test_worker_processes_change_nothing():
    source = Numbers(24, {5: "caption"})
    assert_same(
        list(loading.train_batches(make(source), 8, epochs=2, workers=2)),
        list(loading.train_batches(make(source), 8, epochs=2)),
    )


def test_bad_records_are_replaced_and_listed(tmp_path):
    bad = {1: "record", 7: "image", 13: "caption"}
    batches = list(loading.train_batches(make(Numbers(16, bad)), 8, epochs=1))
    seen = rows(batches).ravel()
    assert len(seen) == 16
    assert not set(seen) & set(bad)
    skipped = {uid: reason for batch in batches for uid, reason in batch["skipped"]}
    assert skipped.keys() == {"r1", "r7", "r13"}
    assert skipped["r1"] == "no such member"
    assert skipped["r13"] == "empty caption"

    listed = loading.UnreadableList(tmp_path / "unreadable.csv")
    for _ in range(2):
        for uid, reason in skipped.items():
            listed.add(uid, reason)
    assert len(loading.UnreadableList(tmp_path / "unreadable.csv")) == 3
    assert (tmp_path / "unreadable.csv").read_text().splitlines()[0] == "uid,reason"


def test_nothing_but_bad_records_stops():
    with pytest.raises(UserError, match="100 bad records in a row"):
        next(loading.train_batches(make(Numbers(8, dict.fromkeys(range(8), "image"))), 4, 1))


@pytest.mark.parametrize(
    ("size", "batch", "processes", "message"),
    [
        (8, -4, 1, "batch size -4"),
        (8, 0, 1, "batch size 0"),
        (3, 4, 1, "hold 3 pairs, less than one batch of 4"),
        (8, 4, 3, "4 is not divisible by the 3 processes"),
    ],
)
def test_batches_that_do_not_fit(size, batch, processes, message):
    with pytest.raises(UserError, match=message):
        loading.train_batches(make(Numbers(size)), batch, 1, process_count=processes)


def test_evaluation_reads_every_record_once_in_order():
    skipped = []
    source = Numbers(10, {2: "record", 6: "image"})
    batches = list(loading.eval_batches(source, 8, 4, lambda *fault: skipped.append(fault)))
    mask = np.concatenate([batch["mask"] for batch in batches])
    index = np.concatenate([batch["index"] for batch in batches])
    assert index[mask].tolist() == [0, 1, 3, 4, 5, 7, 8, 9]
    assert {len(batch["image"]) for batch in batches} == {4}
    for batch in batches:
        kept = batch["mask"]
        np.testing.assert_array_equal(batch["image"][kept, 0, 0, 0], batch["index"][kept])
        np.testing.assert_array_equal(batch["label"][kept], batch["index"][kept] % 2)
    assert [uid for uid, _ in skipped] == ["r2", "r6"]


def test_in_memory_reads_each_record_once():
    source = Numbers(12, {3: "image", 4: "record"})
    kept = InMemory(source, 8)
    assert_same(
        list(loading.train_batches(make(kept), 4, epochs=2)),
        list(loading.train_batches(make(Numbers(12, {3: "image", 4: "record"})), 4, epochs=2)),
    )
    reads = source.reads
    list(loading.train_batches(make(kept), 4, epochs=1))
    assert source.reads == reads
    with pytest.raises(BadRecord, match="r3"):
        kept[3]
    with pytest.raises(ValueError, match="read-only"):
        kept[0].image[0] = 1
    again = pickle.loads(pickle.dumps(kept))
    assert again[5].caption == kept[5].caption


WORKERS = """
import multiprocessing, os, signal
from absl import flags
from tests.test_loader import Numbers, loading, make

if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    batches = loading.train_batches(make(Numbers(64)), 8, 4, workers=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGINT)
    os.kill(worker.pid, signal.SIGTERM)
    print(worker.pid, 1 + len(list(batches)), flush=True)
    batches = loading.train_batches(make(Numbers(64)), 8, 4, workers=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    print(worker.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_leave_signals_to_the_main_process_and_end_with_it(tmp_path):
    (tmp_path / "program.py").write_text(WORKERS)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")],
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).resolve().parents[1])},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    _, batches, orphan = done.stdout.split()
    assert batches == "32"
    for _ in range(100):
        if not pathlib.Path(f"/proc/{orphan}").exists():
            return
        time.sleep(0.1)
    raise AssertionError("the worker has outlived its main process")
