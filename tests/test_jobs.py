"""A job's book-keeping: fields, work directories, stages that run once."""

import json

import pytest
from ml_collections import ConfigDict

from clipdef_jax import jobs
from clipdef_jax.errors import UserError


def config(**fields):
    return ConfigDict({"seed": 0, "data": {"train": "a", "workers": 0, "kwargs": {}}, **fields})


def test_config_argument(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").write_text("")
    argument = "configs/mine.py:small"
    assert jobs.config_argument(["main", "--config", argument, "--workdir=x"]) == argument
    assert jobs.config_argument(["main", f"--config={argument}"]) == argument
    with pytest.raises(UserError, match=r"no config file 'configs/yours.py'.*configs/mine.py"):
        jobs.config_argument(["main", "--config=configs/yours.py"])
    with pytest.raises(UserError, match=r"Give --config=FILE, one of: configs/mine.py"):
        jobs.config_argument(["main", "--config.seed=1"])


def test_overrides():
    jobs.check_overrides(
        config(), ["seed", "data.train", "data", "data.kwargs.side", "data.kwargs"]
    )
    with pytest.raises(UserError, match=r"no field 'data.trian'; did you mean --config.data.train"):
        jobs.check_overrides(config(), ["data.trian"])
    with pytest.raises(UserError, match=r"no field 'kwargs'"):
        jobs.check_overrides(config(), ["kwargs"])


def test_another_part_does_not_inherit_the_kwargs_of_the_one_it_replaces():
    def job():
        return config(attack={"trigger": {"name": "badnet", "kwargs": {"style": "grid"}}})

    changed = job()
    changed.attack.trigger.name = "blended"
    changed.attack.trigger.kwargs.alpha = 0.3
    named = ["attack.trigger.name", "attack.trigger.kwargs.alpha"]
    jobs.drop_stale_kwargs(changed, job(), named)
    assert changed.attack.trigger.kwargs.to_dict() == {"alpha": 0.3}

    same = job()
    jobs.drop_stale_kwargs(same, job(), ["attack.trigger.name", "seed"])
    assert same.to_dict() == job().to_dict()


def test_workdir_is_made_named_and_opened_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = jobs.open_workdir(None, "configs/mine.py:small", config())
    assert first.name.startswith("mine-small-")
    assert jobs.open_workdir(None, "configs/mine.py:small", config()) == first
    other = jobs.open_workdir(None, "configs/mine.py:small", config(seed=1))
    assert other != first
    assert json.loads((other / "config.json").read_text())["seed"] == 1


def test_workdir_of_another_config(tmp_path):
    jobs.open_workdir(str(tmp_path / "run"), "c.py", config())
    with pytest.raises(UserError, match=r"another config: seed was 0, is 3; use another --workdir"):
        jobs.open_workdir(str(tmp_path / "run"), "c.py", config(seed=3))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 0
    # How fast it goes is not what it gives.
    jobs.open_workdir(
        str(tmp_path / "run"), "c.py", config(data={"train": "a", "workers": 4, "kwargs": {}})
    )


def test_workdir_that_is_no_run(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds no run"):
        jobs.open_workdir(str(tmp_path), "c.py", config())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_stage_runs_once_and_resumes(tmp_path):
    calls = []

    def body():
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return {"answer": 42}

    with pytest.raises(KeyboardInterrupt):
        jobs.run_stage(tmp_path / "stage", body)
    result, done = jobs.run_stage(tmp_path / "stage", body)
    assert result["answer"] == 42
    assert not done
    again, done = jobs.run_stage(tmp_path / "stage", body)
    assert again == result
    assert done
    assert len(calls) == 2


def test_a_folder_with_half_a_config_is_a_new_run(tmp_path):
    (tmp_path / ".config.json.123").write_text('{"seed": ')  # Its process was killed there.
    assert jobs.open_workdir(str(tmp_path), "c.py", config()) == tmp_path
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0
