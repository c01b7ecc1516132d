"""A whole scan with a tiny model: what it leaves, what it finds again, and what it refuses."""

import json

import jax
import numpy as np
import pyarrow as pa
import pytest
from ml_collections import ConfigDict
from pyarrow import parquet

from clipdef_jax import data, detect, flops, models
from clipdef_jax.data import ids
from clipdef_jax.detect import encode, quality
from clipdef_jax.detect.embeddings import Embeddings
from clipdef_jax.errors import BadRecord, UserError
from clipdef_jax.scan import job
from clipdef_jax.types import Pair
from configs import detect as config_file
from tests.running import run_on
from tests.test_encode import CLIP, INIT, WORDS

SOURCE = "tests.test_scan:Scenes"
HOSTILE = "<script>alert(1)</script>"


class Scenes:
    """Scenes of which one cannot be read, and one has a caption that wants to be markup."""

    def __init__(self, size=60):
        self._source = data.open(f"emoji:train,size={size},concepts=4,side=16")
        self.classes = self._source.classes

    def __len__(self):
        return len(self._source)

    def caption(self, index):
        return HOSTILE if index == 5 else self._source.caption(index)

    def __getitem__(self, index) -> Pair:
        pair = self._source[index]
        if index == 11:
            raise BadRecord(pair.uid, "cut short")
        return pair._replace(caption=self.caption(index))


class Empty(Scenes):
    """A source of nothing."""

    def __len__(self):
        return 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    models.save(folder, CLIP, INIT(jax.random.key(0)))
    WORDS.save(folder)
    return str(folder)


def config_of(checkpoint, **fields) -> ConfigDict:
    config = config_file.get_config("attack=badnet")
    config.data.train, config.init = SOURCE, checkpoint
    config.attack.target, config.attack.number = "frog", 6
    config.embed.batch, config.embed.records_per_shard = 8, 25
    config.score.methods = ("dao", "kdist,clip_score")
    config.score.update(k=4, size=16, draws=2, poison_rate=0.1)
    config.flag.fraction = 0.1
    config.report.suspects, config.report.searched = 4, 5
    config.update_from_flattened_dict(fields)
    return config


def run(config, workdir):
    return run_on(1, job.run, config, workdir)


@pytest.fixture(scope="module")
def scanned(tmp_path_factory, checkpoint):
    workdir = tmp_path_factory.mktemp("scan") / "run"
    return workdir, run(config_of(checkpoint), workdir)


def test_the_table_has_every_readable_pair(scanned):
    workdir, summary = scanned
    table = parquet.read_table(workdir / "scores.parquet")
    assert table.column_names == [
        "uid", "shard", "caption", "dao", "kdist", "clip_score", "flag", "neighbours", "distances",
    ]  # fmt: skip
    uids = [f"emoji-train-0-{index:07d}" for index in range(60) if index != 11]
    assert table["uid"].to_pylist() == uids
    assert table["shard"].to_pylist() == [0] * 24 + [1] * 25 + [2] * 10
    found = Embeddings(workdir / "embeddings")
    expected = detect.score_all(
        found.image, found.text, methods=("dao", "kdist", "clip_score"), k=4, size=16, draws=2,
        poison_rate=0.1,
    )  # fmt: skip
    for method, scores in expected.items():
        np.testing.assert_array_equal(table[method].to_numpy(), scores)
    flag = table["flag"].to_numpy(zero_copy_only=False)
    assert flag.sum() == summary["flagged"] == 6
    dao = expected["dao"]
    assert dao[flag].min() == summary["threshold"] > dao[~flag].max()


def test_neighbours_are_those_of_all_the_data(scanned):
    workdir, _ = scanned
    table = parquet.read_table(workdir / "scores.parquet").to_pylist()
    image = Embeddings(workdir / "embeddings").image[:]
    searched = [row for row, pair in enumerate(table) if pair["neighbours"] is not None]
    order = np.argsort([-pair["dao"] for pair in table], kind="stable")
    assert sorted(searched) == sorted(order[:5].tolist())
    for row in searched:
        distances = np.linalg.norm(image - image[row], axis=1)
        distances[row] = np.inf
        nearest = np.argsort(distances, kind="stable")[:4]
        assert table[row]["neighbours"] == [table[near]["uid"] for near in nearest]
        np.testing.assert_allclose(table[row]["distances"], distances[nearest], rtol=1e-5)


def test_the_lists_part_the_data(scanned):
    workdir, _ = scanned
    table = parquet.read_table(workdir / "scores.parquet").to_pylist()
    for name, flagged in (("keep", False), ("drop", True)):
        uids = [pair["uid"] for pair in table if pair["flag"] is flagged]
        assert (workdir / f"{name}.txt").read_text().split() == uids
        listed = np.load(workdir / f"{name}.npy")
        assert listed.dtype == ids.ID
        np.testing.assert_array_equal(listed, np.sort(ids.ids128(uids)))
    kept = data.open("emoji:train,size=60,concepts=4", keep=workdir / "keep.npy")
    assert len(kept) == 53


def test_summary_and_report(scanned):
    workdir, summary = scanned
    assert json.loads(json.dumps(summary)) == json.loads((workdir / "summary.json").read_text())
    assert summary["pairs"] == 59
    assert summary["unreadable"] == 1
    assert "cut short" in (workdir / "unreadable.csv").read_text()
    # Of 6 poisons the unreadable record may be one.
    table = parquet.read_table(workdir / "scores.parquet")
    manifest = (workdir / "poison" / "manifest.jsonl").read_text().splitlines()[1:]
    hit = [json.loads(line)["uid"] for line in manifest]
    is_poisoned = np.isin(table["uid"].to_pylist(), hit)
    assert summary["poisons"] == is_poisoned.sum() > 0
    for method in ("dao", "kdist", "clip_score"):
        expected = quality.figures(table[method].to_numpy(), is_poisoned)
        assert summary["quality"][method] == expected
    seconds = summary["seconds"]
    assert seconds["knn"] > 0
    parts = (seconds[stage] for stage in ("poison", "embed", "knn", "score", "flag"))
    assert seconds["total"] == pytest.approx(sum(parts), abs=0.02)
    page = (workdir / "report.html").read_text()
    assert "6 of 59 pairs are suspect" in page
    assert page.count("data:image/png") >= 4 * 5
    assert HOSTILE not in page


def test_another_threshold_needs_nothing_but_the_last_stage(scanned, checkpoint, monkeypatch):
    workdir, before = scanned

    def never(*args, **kwargs):
        raise AssertionError("a finished stage was run again")

    monkeypatch.setattr(encode, "encode", never)
    monkeypatch.setattr(detect, "score_all", never)
    fields = {"flag.by": "score", "flag.score": before["threshold"], "report.suspects": 2}
    again = run(config_of(checkpoint, **fields), workdir)
    assert again["flagged"] == before["flagged"]
    for stage in ("poison", "embed", "score"):
        assert again["seconds"][stage] == before["seconds"][stage]
    none = run(config_of(checkpoint, **{"flag.by": "score", "flag.score": 1e9}), workdir)
    assert none["flagged"] == 0
    assert none["threshold"] is None
    assert len(np.load(workdir / "drop.npy")) == 0
    config = config_of(checkpoint, **{"score.k": 5})
    with pytest.raises(UserError, match=r"another config: score.k was 4, is 5"):
        run(config, workdir)
    run(config_of(checkpoint), workdir)


def test_a_folder_of_embeddings_gives_the_same_scores(scanned, tmp_path):
    workdir, before = scanned
    config = config_of("", **{"embed.folder": str(workdir / "embeddings")})
    config.attack.plan.name = "none"
    config.truth = str(workdir / "poison" / "manifest.jsonl")
    after = run(config, tmp_path / "run")
    assert after["quality"] == before["quality"]
    tables = [
        parquet.read_table(folder / "scores.parquet") for folder in (workdir, tmp_path / "run")
    ]
    assert tables[0] == tables[1]
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("data:image/png") >= 4 * 5
    assert not (tmp_path / "run" / "embeddings").exists()


def test_clean_tars(scanned, checkpoint):
    workdir, _ = scanned
    run(config_of(checkpoint, **{"clean.tars": True, "clean.records_per_tar": 30}), workdir)
    cleaned = data.open(f"webdataset:{workdir}/tars/{{00000..00001}}.tar", uid_field="uid")
    kept = (workdir / "keep.txt").read_text().split()
    assert [cleaned[index].uid for index in range(len(cleaned))] == kept
    fields = {"clean.tars": True, "clean.records_per_tar": 30, "flag.fraction": 0.2}
    with pytest.raises(UserError, match="holds the pairs kept under other flags"):
        run(config_of(checkpoint, **fields), workdir)


def test_a_dry_run_writes_nothing(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    told = run(config_of(checkpoint, dry_run=True), tmp_path / "run")
    assert told["pairs"] == 60
    assert told["dimensions"] == 8
    assert told["disk_mib"] == round(2 * 60 * 8 * 4 / 2**20, 1)
    said = capsys.readouterr().out
    assert "60 pairs in tests.test_scan:Scenes" in said
    assert "emoji-train-0-0000000" in said
    assert "GFLOP a pair to embed" in said
    # Of each pair 16 of the 60 are the reference, images and captions, in each of two draws.
    assert told["score_flop"] == 60 * 2 * 32 * 2 * 8
    tokens = jax.ShapeDtypeStruct((1, CLIP.config.context_length), np.int32)
    counted = flops.count(CLIP.encode_text, INIT(jax.random.key(0)), tokens)
    assert told["embed_flop"] > 60 * counted
    assert told["read_rate"] > 0 < told["encode_rate"]
    assert not list(tmp_path.iterdir())


def test_a_dry_run_over_embeddings(scanned, checkpoint, tmp_path, capsys):
    fields = {"embed.folder": str(scanned[0] / "embeddings"), "attack.plan.name": "none"}
    told = run(config_of(checkpoint, dry_run=True, **fields), tmp_path / "run")
    assert (told["pairs"], told["embed_seconds"], told["disk_mib"]) == (59, 0, 0)
    said = capsys.readouterr().out
    assert "8 dimensions, there already" in said
    assert "to embed" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.train": ""}, r"which pairs\? Give --config.data.train=SPEC"),
        ({"init": ""}, r"a scan sees the pairs with a trained CLIP"),
        ({"score.methods": ("dao", "knn")}, r"'knn' is no detector that goes by embeddings"),
        ({"score.methods": ("slof",)}, r"flag.method='dao' is not among score.methods=slof"),
        ({"flag.by": "knee"}, r"flag.by='knee': expected one of fraction, score, auto"),
        ({"embed.batch": 0}, r"embed.batch=0: expected 1 or more"),
        ({"embed.dtype": "int8"}, r"embed.dtype='int8'"),
        ({"score.k": 400}, r"k=400"),
        ({"embed.folder": "x"}, r"encoded already and cannot be poisoned any more"),
        ({"embed.folder": "x", "attack.plan.name": "none"}, r"x holds no img_emb"),
    ],
)
def test_mistakes_are_named(checkpoint, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        run(config_of(checkpoint, **fields), tmp_path / "run")
    assert not (tmp_path / "run" / "scores.parquet").exists()


def test_an_empty_source(checkpoint, tmp_path):
    config = config_of(checkpoint, **{"data.train": "tests.test_scan:Empty"})
    with pytest.raises(UserError, match=r"data.train='tests.test_scan:Empty': the source is empty"):
        run(config, tmp_path / "run")


def test_embeddings_of_another_checkpoint(scanned, checkpoint, tmp_path):
    workdir, _ = scanned
    other = tmp_path / "model"
    models.save(other, CLIP, INIT(jax.random.key(1)))
    WORDS.save(other)
    made = json.loads((workdir / "embeddings" / "made.json").read_text())
    (tmp_path / "run" / "embeddings").mkdir(parents=True)
    config = config_of(str(other))
    (tmp_path / "run" / "config.json").write_text(json.dumps(config.to_dict()))
    made["checkpoint"] = str(other)
    (tmp_path / "run" / "embeddings" / "made.json").write_text(json.dumps(made))
    with pytest.raises(
        UserError, match=r"embeddings of another run: parameters was '\w+', is '\w+'"
    ):
        run(config, tmp_path / "run")


def test_scores_of_another_run(checkpoint, scanned, tmp_path):
    folder = tmp_path / "embeddings"
    config = config_of("", **{"embed.folder": str(folder)})
    config.data.train, config.attack.plan.name = "", "none"
    rng = np.random.default_rng(0)

    def embed(count):
        for part in ("img_emb", "text_emb"):
            (folder / part).mkdir(parents=True, exist_ok=True)
            np.save(folder / part / "0.npy", rng.normal(size=(count, 8)).astype(np.float16))

    embed(40)
    assert run(config, tmp_path / "run")["pairs"] == 40
    assert "no picture" in (tmp_path / "run" / "report.html").read_text()
    scores = tmp_path / "run" / "scores" / "kdist.npy"
    whole = scores.read_bytes()
    np.save(scores, np.zeros(39, np.float32))
    with pytest.raises(
        UserError, match=r"kdist.npy holds \(39,\) scores, the embeddings are of 40"
    ):
        run(config, tmp_path / "run")
    scores.write_bytes(whole)
    embed(50)
    with pytest.raises(UserError, match=r"scores of other embeddings .*40 pairs then, 50 now"):
        run(config, tmp_path / "run")


def test_poisons_of_other_data(scanned, tmp_path):
    workdir, _ = scanned
    folder = tmp_path / "embeddings"
    (folder / "img_emb").mkdir(parents=True)
    np.save(folder / "img_emb" / "0.npy", np.random.default_rng(0).normal(size=(40, 8)))
    config = config_of("", **{"embed.folder": str(folder), "score.methods": ("dao",)})
    config.data.train, config.attack.plan.name = "", "none"
    config.truth = str(workdir / "poison" / "manifest.jsonl")
    with pytest.raises(UserError, match=r"none of the 6 poisons .* uids are like '0/000000'"):
        run(config, tmp_path / "run")


def test_captions_may_be_missing(tmp_path):
    (tmp_path / "e" / "img_emb").mkdir(parents=True)
    (tmp_path / "e" / "metadata").mkdir()
    np.save(tmp_path / "e/img_emb/0.npy", np.random.default_rng(0).normal(size=(40, 8)))
    parquet.write_table(
        pa.table({"key": [str(i) for i in range(40)]}), tmp_path / "e/metadata/0.parquet"
    )
    config = config_of("", **{"embed.folder": str(tmp_path / "e")})
    config.data.train, config.attack.plan.name = "", "none"
    with pytest.raises(UserError, match=r"clip_score"):
        run(config, tmp_path / "run")
