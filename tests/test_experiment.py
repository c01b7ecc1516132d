"""A whole job on a tiny model: what it leaves, what it skips, and that it goes on where it was."""

import io
import json
import tarfile

import jax
import numpy as np
import pytest
from PIL import Image

from clipdef_jax import experiment, interrupts, models
from clipdef_jax.errors import UserError
from clipdef_jax.train import loop
from configs import cleanclip, pretrain
from tests.running import run_on
from tests.test_step import TINY

SMALL = {name: value for name, value in TINY.items() if name != "vocab_size"}


def shrink(config, train="emoji:train,size=64,concepts=4", test="emoji:test,size=32,concepts=4"):
    config.data.train, config.data.test = train, test
    config.model.kwargs = {**SMALL, "context_length": 16}
    config.attack.rate = 0.1
    config.evaluate.during_training = 16
    for section in ("pretrain", "finetune"):
        if section in config:
            config[section].epochs, config[section].batch = 1, 16
    return config


def run(config, workdir, devices=8):
    return run_on(devices, experiment.run, config, workdir)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("job") / "run"
    # On one device, where a run gives the same bits whatever else the machine is doing.
    summary = run(shrink(cleanclip.get_config()), workdir, devices=1)
    return workdir, summary


def test_summary_and_files(finished):
    workdir, summary = finished
    assert summary == json.loads((workdir / "summary.json").read_text())
    assert [row["model"] for row in summary["results"]] == ["poisoned", "finetuned", "cleanclip"]
    for row in summary["results"]:
        for name in ("clean_top1", "clean_top10", "asr_top1", "asr_all_top1"):
            assert 0 <= row[name] <= 1
        assert 0 <= row["asr_untriggered_top1"] <= 1
        assert row["asr_mode"] == "exclude_target"
        assert sum(entry["images"] for entry in row["per_class"]) == 32
    assert summary["config"]["attack"]["target"] == "banana"
    assert summary["seconds"]["total"] > 0
    assert "jax" in summary["versions"]
    lines = (workdir / "poison" / "manifest.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 6
    page = (workdir / "report.html").read_text()
    assert "banana" in page
    assert not (workdir / "unreadable.csv").exists()


def test_finished_stages_are_not_run_again(finished, monkeypatch):
    workdir, summary = finished

    def never(*args, **kwargs):
        raise AssertionError("a finished stage was run again")

    monkeypatch.setattr(loop, "fit", never)
    again = run(shrink(cleanclip.get_config()), workdir)
    assert again["results"] == summary["results"]
    assert again["seconds"] == summary["seconds"]


def test_stopped_between_and_within_stages_gives_the_same_models(finished, tmp_path, monkeypatch):
    workdir, _ = finished
    real_fit, real_check = loop.fit, interrupts.check
    fits = []

    def stop_in_the_second(folder, *args, **kwargs):
        fits.append(folder.name)
        if len(fits) == 2:
            raise interrupts.Interrupted(15)
        return real_fit(folder, *args, **kwargs)

    checks = []

    def stop_later(*given):
        checks.append(1)
        if len(checks) == 6:
            raise interrupts.Interrupted(2)
        real_check(*given)

    broken = tmp_path / "run"
    for patch in ((loop, "fit", stop_in_the_second), (interrupts, "check", stop_later)):
        with monkeypatch.context() as patched:
            patched.setattr(*patch)
            with pytest.raises(interrupts.Interrupted):
                run(shrink(cleanclip.get_config()), broken, devices=1)
    run(shrink(cleanclip.get_config()), broken, devices=1)
    assert fits == ["poisoned", "finetuned"]
    for name in ("poisoned", "finetuned", "cleanclip"):
        _, expected = models.load(str(workdir / name / "model"))
        _, got = models.load(str(broken / name / "model"))
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_given_checkpoint_is_repaired_without_training_one(finished, tmp_path):
    workdir, first = finished
    config = shrink(cleanclip.get_config())
    config.init = str(workdir / "poisoned" / "model")
    config.finetune.control = False
    config.finetune.pairs = 32
    summary = run(config, tmp_path / "run", devices=1)
    given, repaired = summary["results"]
    assert given["model"] == "given"
    assert given["clean_top1"] == first["results"][0]["clean_top1"]
    assert given["asr_top1"] == first["results"][0]["asr_top1"]
    assert repaired["description"] == "fine-tuned on 32 clean pairs"
    clip, _ = models.load(str(tmp_path / "run" / "cleanclip" / "model"))
    assert clip.config == models.load(config.init)[0].config


def tar_of(path, records):
    with tarfile.open(path, "w") as tar:
        for name, content in records:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def jpeg(seed, side=24):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def test_a_crawl_with_bad_records_is_trained_on_and_they_are_listed(tmp_path):
    words = ("red banana", "blue frog", "old trophy")
    records = []
    for i in range(40):
        meta = json.dumps({"category": words[i % 3].split()[1]}).encode()
        image, caption = jpeg(i), f"a {words[i % 3]} number {i}".encode()
        if i == 3:
            image = image[: len(image) // 2]
        if i == 7:
            caption = b"\xff\xfe not text"
        if i == 11:
            caption = b"   "
        records += [(f"{i:05d}.jpg", image), (f"{i:05d}.txt", caption), (f"{i:05d}.json", meta)]
    (tmp_path / "data").mkdir()
    tar_of(tmp_path / "data" / "00000.tar", records)
    spec = f"webdataset:{tmp_path}/data/{{00000..00000}}.tar"
    config = shrink(pretrain.get_config(), spec, spec)
    config.data.kwargs = {"label_field": "category", "cache_dir": str(tmp_path / "cache")}
    config.attack.rate = 0.25
    config.pretrain.epochs = 2
    before = sorted(path.name for path in (tmp_path / "data").iterdir())
    summary = run(config, tmp_path / "run")
    assert summary["results"][0]["clean_images"] >= 37
    listed = (tmp_path / "run" / "unreadable.csv").read_text()
    for key in ("00003", "00007", "00011"):
        assert key in listed
    assert summary["unreadable"] == 3
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == before


def test_a_test_set_without_labels_is_refused(tmp_path):
    tar_of(tmp_path / "0.tar", [("a.jpg", jpeg(0)), ("a.txt", b"a banana")])
    config = shrink(pretrain.get_config(), test=f"webdataset:{tmp_path}/0.tar")
    config.data.kwargs = {}
    with pytest.raises(UserError, match=r"has no labels to test with.*label_field"):
        run(config, tmp_path / "run")
