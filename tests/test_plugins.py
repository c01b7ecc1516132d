"""Parts by name: short names, import paths, and errors that name the culprit."""

import pytest

from clipdef_jax import plugins
from clipdef_jax.errors import UserError

BUILTIN = {"path": "pathlib:PurePosixPath", "counter": "collections:Counter"}


def test_short_names_and_import_paths():
    import collections
    import fractions

    assert plugins.resolve("thing", "counter", BUILTIN) is collections.Counter
    assert plugins.resolve("thing", "fractions:Fraction", BUILTIN) is fractions.Fraction
    assert plugins.build("thing", "fractions:Fraction", {}, {"numerator": 3}) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("conter", "unknown thing 'conter'; did you mean 'counter'"),
        ("nowhere.mine:Thing", "no module 'nowhere'"),
        ("fractions:Fractoin", "no 'Fractoin'"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(UserError, match=message):
        plugins.resolve("thing", name, BUILTIN)


def test_wrong_argument_is_the_users():
    with pytest.raises(UserError, match=r"wrong.*keyword argument 'nominator'"):
        plugins.build("wrong", "fractions:Fraction", {}, {"nominator": 3})


def test_errors_inside_a_plugin_stay_its_own(tmp_path, monkeypatch):
    (tmp_path / "broken_import.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "broken_call.py").write_text("def make(x):\n    return x + 'a'\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        plugins.resolve("thing", "broken_import:X", {})
    with pytest.raises(TypeError, match="unsupported operand"):
        plugins.build("thing", "broken_call:make", {}, {"x": 1})
