"""The command line: help, one-line errors, and what importing the package costs."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(*arguments, devices=1):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "COLUMNS": "80",
    }
    return subprocess.run(
        [sys.executable, "-m", "clipdef_jax.main", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


SMOKE = "--config=configs/pretrain.py:smoke"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which job? Give --config=FILE, one of: configs/"),
        (["--config=configs/cleanclop.py"], "there is no config file 'configs/cleanclop.py'"),
        (["--config=configs/pretrain.py:fast"], "unknown variant 'fast' of this config; it has:"),
        ([SMOKE, "--config.pretrain.epoch=3"], "did you mean --config.pretrain.epochs?"),
        ([SMOKE, "--config.pretrain.batch=-64"], "batch=-64: expected a positive whole number"),
        ([SMOKE, "--config.model.name=ViT-Z"], "unknown model 'ViT-Z'"),
        ([SMOKE, "--config.model.kwargs.widht=3"], "unknown model field 'widht'"),
        ([SMOKE, "--config.loss.kwargs.weight=3"], "unexpected keyword argument 'weight'"),
        ([SMOKE, "--config.attack.rate=1.5"], "rate is 1.5"),
        ([SMOKE, "--config.attack.target=banan"], "did you mean 'banana'?"),
        ([SMOKE, "--config.data.train=webdataset:/nowhere/{0..3}.tar"], "/nowhere"),
        (["--config=configs/cleanclip.py:paper"], "give its path as --config.init=PATH"),
        ([SMOKE, "--config.job=nowhere.mine:run"], "job 'nowhere.mine:run': there is no module"),
        (["--config=configs/badclip.py:smoke"], "give it as --config.init=PATH"),
        (["--config=configs/pretrain.py:attack=wante"], "did you mean 'wanet'?"),
        ([SMOKE, "surplus"], "unexpected argument 'surplus'"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, message):
    done = run(*arguments, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert message in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in done.stderr


def test_batch_that_does_not_divide_among_the_devices(tmp_path):
    done = run(SMOKE, f"--workdir={tmp_path / 'run'}", devices=3)
    assert done.returncode == 2
    assert "batch 64 is not divisible by the 3 devices; use a multiple of 3" in done.stderr


def test_workdir_of_another_config(tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    first = run(SMOKE, workdir, "--config.model.name=ViT-Z")
    assert first.returncode == 2
    done = run(SMOKE, workdir, "--config.seed=1")
    assert done.returncode == 2
    assert "seed was 0, is 1" in done.stderr


def test_a_flag_that_does_not_parse_is_no_stack_trace(tmp_path):
    done = run(SMOKE, "--config.pretrain.epochs=many", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert "config.pretrain.epochs" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_help_shows_how_to_start():
    done = run("--help")
    assert "python -m clipdef_jax.main --config=configs/cleanclip.py" in done.stdout
    assert "--workdir" in done.stdout
    assert len(done.stdout.splitlines()) < 40


def test_importing_the_package_imports_no_jax():
    heavy = {"jax", "transformers", "torch"}
    code = f"import sys, clipdef_jax; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_nothing_the_package_imports_is_tensorflow_or_torch():
    code = (
        "import pkgutil, importlib, sys, clipdef_jax\n"
        "for m in pkgutil.walk_packages(clipdef_jax.__path__, 'clipdef_jax.'):\n"
        # The benchmarks' rivals, which nothing imports unless they are installed.
        "    '.torch_' in m.name or importlib.import_module(m.name)\n"
        "print(sorted({'tensorflow', 'torch'} & set(sys.modules)))\n"
        "import jax\n"
        "print(jax._src.xla_bridge.backends_are_initialized())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split("\n")[:2] == ["[]", "False"], done.stderr
