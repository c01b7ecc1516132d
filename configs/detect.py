"""Find the poisoned pairs of a data set with a CLIP, list them, and show them.

  python -m clipdef_jax.main --config=configs/detect.py --workdir=scan \\
      --config.data.train='webdataset:cc3m/{00000..00331}.tar' --config.init=MODEL

leaves `scan/scores.parquet`, `scan/keep.npy` and `scan/drop.npy` (also as text), `scan/report.html`
and, in `scan/embeddings`, what other tools and another scan can read:
`--config.embed.folder=scan/embeddings`. Flagged pairs are candidates; the data are read only.
`--config.dry_run=True` says what a scan would take, and writes nothing.

With other `--config.flag` or `--config.report` fields the same command and folder give another list
and report in seconds.

Variants:
  (default)  any source; the model is to be named.
  :loop      poison -> train -> scan the training data -> drop the suspects -> train again, on the
             built-in scenes; beside it as many pairs dropped at random.
  :smoke     the same, too small to mean anything.
  :study     scan the training data of every undefended model of a study, each by itself, and show
             how well each detector finds each attack: --config.survey.study=DIR, a folder that
             configs/study.py:attacks has made.
"""

from ml_collections import ConfigDict

from configs import attacks, common


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of the job."""
    config = common.base()
    config.job = "clipdef_jax.scan.job:run"
    config.data.train = ""
    config.data.in_memory = False
    config.attack.plan = common.part("none")  # or one to be found: attack=NAME, attack.manifest
    # The manifest of poisons that are in the data already, to hold the scores against.
    config.truth = ""
    config.dry_run = False  # say what there is and what it would take, and write nothing

    config.embed = ConfigDict()
    # Embeddings as clip-retrieval leaves them, instead of init; data.train is then only what the
    # report has its pictures from.
    config.embed.folder = ""
    config.embed.batch = 256
    config.embed.records_per_shard = 10_000
    config.embed.dtype = "float32"  # of the files; float16 takes half the room

    config.score = ConfigDict()  # the arguments of detect.score_all
    config.score.methods = ("dao", "slof", "kdist", "lid", "clip_score")
    # Neighbours; to be more than poisoned images and captions in the reference.
    config.score.k = 16
    config.score.reference = "subsample"  # what a pair is held against; or "batch", "full"
    config.score.size = 2048  # pairs of the reference
    config.score.draws = 4  # references, drawn independently
    config.score.poison_rate = 0.001  # expected; more than that is warned of
    config.score.query = "image"  # or "caption", "both"
    config.score.normalise = False

    config.flag = ConfigDict()
    config.flag.method = "dao"  # the detector that decides
    config.flag.by = (
        "fraction"  # or "score", all that reach one, or "auto", the upper of two groups
    )
    config.flag.fraction = 0.01
    config.flag.score = 0.0

    config.report = ConfigDict()
    config.report.suspects = 40  # pairs shown
    config.report.neighbours = 4  # of each
    config.report.searched = (
        1000  # suspects whose neighbours scores.parquet names; each costs a pass
    )

    config.clean = ConfigDict()
    config.clean.tars = False  # write the kept pairs as webdataset tars
    config.clean.records_per_tar = 10_000
    match common.variant(arg, ("loop", "smoke", "study")):
        case "loop":
            _close_the_loop(config)
        case "smoke":
            _close_the_loop(config)
            common.shrink(config)
            config.score.size = 256
        case "study":
            _survey(config)
    return attacks.choose(config, arg)


def _close_the_loop(config: ConfigDict) -> None:
    config.job = "clipdef_jax.scan.loop:run"
    config.data.train = "emoji:train"
    config.data.in_memory = True
    config.attack = attacks.preset("badnet")
    config.pretrain = common.recipe(epochs=15, lr=1e-3, warmup=100)
    config.score.poison_rate = 0.02
    # There are twenty things only: of 128 pairs about nine have captions of a banana, and these are
    # near a poisoned picture, as other poisons are. k is to be above the number of both.
    config.score.size = 128
    config.score.draws = 8
    config.flag.fraction = 0.05
    config.control = True  # train once more without as many pairs drawn at random


def _survey(config: ConfigDict) -> None:
    config.job = "clipdef_jax.scan.survey:run"
    config.survey = ConfigDict()
    config.survey.study = ""  # the study's folder
    config.survey.attacks = ()  # of these alone, as badnet,wanet
    config.survey.seeds = ()  # likewise
    # "cd" and "abl" may be among them; these take a minute or more for each cell.
    config.survey.methods = ("dao", "slof", "kdist", "dao_log", "lid", "iforest", "clip_score")
    config.survey.costly_seeds = (0,)  # the cells that get "cd" and "abl"
    config.survey.pictures = 600  # a sample for "cd": it takes a hundred steps for each
    config.survey.epochs = 2  # of the training that "abl" watches
    # For poisons of 1% that say one thing of twenty, chosen on the models of seed 0. The nearest to
    # a poisoned image are the others, 1% of the pairs, and then that thing's captions, 6%, which
    # are as near to one another as they are far from any image: a k between these numbers, 4.5%,
    # finds this out. At 3% and at 6.5% of the pairs the AUROC of slof on blended falls from 0.93 to
    # 0.82 and 0.69, on badnet from 0.99 to 0.96 and 0.97. Of 256 pairs a draw may hold no poison at
    # all, or many: as good in the mean, but no draw like the other. Normalised, badnet is found
    # less well (0.94) and clean_label little better (0.67, not 0.57); captions as queries find
    # nothing (0.6).
    config.score.size = 1024
    config.score.k = 46
    config.score.draws = 4
    config.score.poison_rate = 0.01
    config.flag.method = "slof"
