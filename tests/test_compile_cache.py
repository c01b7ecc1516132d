"""Compiled programs are kept where the user, or jax's own variables, say."""

import os
import subprocess
import sys

import pytest

_PROGRAM = """
import jax, sys
from clipdef_jax import compile_cache
compile_cache.enable()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
print(float(jax.jit(lambda x: x * 2 + int(sys.argv[1]))(1.0)))
"""


def run(number, **environ):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(number)],
        env=kept | {"JAX_PLATFORMS": "cpu", **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) == 2 + number
    return done.stderr


def entries(folder):
    return sorted(path.name for path in folder.rglob("*-cache"))


def test_programs_are_kept_in_the_users_cache_folder_and_found_again(tmp_path):
    run(1, XDG_CACHE_HOME=str(tmp_path))
    kept = entries(tmp_path / "clipdef_jax" / "xla")
    assert kept
    run(1, XDG_CACHE_HOME=str(tmp_path))
    assert entries(tmp_path / "clipdef_jax" / "xla") == kept
    run(2, XDG_CACHE_HOME=str(tmp_path))
    assert len(entries(tmp_path / "clipdef_jax" / "xla")) > len(kept)


def test_the_users_own_choice_stands(tmp_path):
    mine = tmp_path / "mine"
    run(1, XDG_CACHE_HOME=str(tmp_path / "cache"), JAX_COMPILATION_CACHE_DIR=str(mine))
    assert entries(mine)
    assert not (tmp_path / "cache").exists()


@pytest.mark.skipif(os.name != "posix", reason="needs a folder that cannot be made")
def test_a_folder_that_cannot_be_written_to_costs_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    warning = run(1, XDG_CACHE_HOME=str(tmp_path / "file"))
    assert "compiled programs are not kept" in warning
    assert str(tmp_path / "file") in warning
