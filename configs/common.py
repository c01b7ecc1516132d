"""What the jobs share. Each field says what it is; each job says what it changes.

`get_config(arg)` of a job takes a variant after a colon, `configs/cleanclip.py:smoke`. Fields are
set with `--config.FIELD=VALUE`; what stands under a `kwargs` goes to the part named beside it, and
may be any argument that part takes.
"""

from ml_collections import ConfigDict

from clipdef_jax.errors import UserError

# Seen thrice, they cost as much as 8,000 seen 15 times, and the model learns more of pictures and
# of triggers and less by heart: clean accuracy 96% instead of 90%.
MANY_SCENES = "emoji:train,size=40000"


def base() -> ConfigDict:
    """Returns the fields of every job; the sizes are for the built-in scenes on a laptop core."""
    config = ConfigDict()
    # What runs: the import path of a function of the config, the work directory and the command.
    config.job = "clipdef_jax.experiment:run"
    config.seed = 0
    # A trained CLIP to start from instead of training one: a Hugging Face folder, or a
    # safetensors file with OpenAI's or OpenCLIP's names.
    config.init = ""

    config.data = ConfigDict()
    config.data.train = "emoji:train"
    config.data.test = "emoji:test"
    config.data.kwargs = ConfigDict()  # for both sources
    config.data.train_kwargs = ConfigDict()  # for the training source, over those
    config.data.test_kwargs = ConfigDict()  # for the test source, over those
    # Folder or Hugging Face name of a CLIP tokenizer; empty: the checkpoint's own, or one
    # trained on the captions.
    config.data.tokenizer = ""
    config.data.vocab_size = 2048  # of a tokenizer trained on the captions
    config.data.workers = 0  # processes that read; 0: threads
    config.data.static_eda = False  # make a caption's augmented view once, not at every access
    # A list of the uids that somebody suspects, as a detector writes it, for losses that ask.
    config.data.flagged = ""
    config.data.in_memory = True  # keep decoded images; for data that fit

    config.model = ConfigDict()
    config.model.name = "ViT-Ti/8"
    config.model.dtype = "float32"
    config.model.remat = False
    config.model.kwargs = ConfigDict()  # fields of models.CLIPConfig

    config.attack = attack()

    config.loss = part("clip")  # the loss under study
    config.augmentation = "autoaugment"  # of losses that want an augmented image

    config.mesh = ConfigDict()
    config.mesh.fsdp = 1  # devices that share one copy of the parameters

    config.evaluate = ConfigDict()
    config.evaluate.prompts = "emoji"  # "emoji", "imagenet", or a file with one template a line
    config.evaluate.batch = 256
    config.evaluate.during_training = 512  # test images looked at after each epoch; 0: none
    return config


def attack(**fields) -> ConfigDict:
    """Returns the section of an attack; `configs/attacks.py` has one for each that is known."""
    config = ConfigDict()
    # A manifest.jsonl that another run wrote: its attack, instead of what stands below.
    config.manifest = ""
    config.target = "banana"
    config.rate = 0.02  # share of the pairs; used if number is 0
    config.number = 0
    config.plan = part("backdoor", templates="emoji")  # "none": nothing is poisoned
    # "none": no image is triggered, in tests either.
    config.trigger = part("badnet", style="yellow", location="four_corners")
    config.test_kwargs = ConfigDict()  # of the trigger, where the test's differs
    for name, value in fields.items():
        config[name] = value
    return config


def part(name: str, **kwargs) -> ConfigDict:
    """Returns the config of a replaceable part: a built-in name or an import path, and kwargs."""
    config = ConfigDict()
    config.name = name
    config.kwargs = ConfigDict(kwargs)
    return config


def recipe(**fields) -> ConfigDict:
    """Returns a training recipe: the fields of `clipdef_jax.train.loop.Recipe`."""
    config = ConfigDict()
    config.epochs = 1
    config.batch = 64
    config.lr = 1e-3
    config.warmup = 50  # updates
    config.weight_decay = 0.1
    config.b1 = 0.9
    config.b2 = 0.999
    config.eps = 1e-8
    config.clip_norm = 0.0  # 0: gradients are not clipped
    config.accumulate = 1  # batches averaged per update
    config.checkpoint_minutes = 10.0
    config.update(fields)
    return config


def shrink(config: ConfigDict) -> None:
    """Makes a job small enough to see in a minute that it runs."""
    config.data.train = "emoji:train,size=512,concepts=10"
    config.data.test = "emoji:test,size=128,concepts=10"
    config.evaluate.during_training = 64
    for section in ("pretrain", "finetune"):
        if section in config:
            config[section].epochs = 2


def as_published(config: ConfigDict) -> None:
    """Gives a job the literature's model and data: RN50, CC3M to train, ImageNet to test."""
    config.data.train = "webdataset:cc3m/{00000..00331}.tar"
    config.data.test = "webdataset:imagenet/{00000..00009}.tar"
    config.data.test_kwargs.label_field = "label"  # where the JSON has the class
    config.data.workers = 8
    config.data.in_memory = False
    config.model.name = "RN50"
    config.model.dtype = "bfloat16"
    config.attack.trigger = part("badnet", style="random")
    config.evaluate.prompts = "imagenet"


def repairs_given(config: ConfigDict) -> None:
    """Makes a job repair the model of --config.init, which is poisoned already."""
    del config.pretrain
    config.attack.plan = part("none")


def variant(arg: str, variants: tuple[str, ...]) -> str:
    """Returns the variant in `arg`, or "" for the default; `attacks.choose` reads the rest of it.

    Raises:
      UserError: it is not one of the job's variants.
    """
    words = [word for word in arg.split(",") if word and not word.startswith("attack=")]
    for word in words:
        if word not in variants or len(words) > 1:
            raise UserError(
                f"unknown variant {','.join(words)!r} of this config; it has: "
                f"{', '.join(variants)}; and an attack is chosen by attack=NAME"
            )
    return "".join(words)
