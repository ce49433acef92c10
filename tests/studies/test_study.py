"""What the studies share: the settings of a folder, and tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from patchattack.errors import InputError
from patchattack.studies.study import check_settings, publish_table, settings_of, write_csv


def test_a_folder_keeps_the_settings_that_it_was_made_with(tmp_path: Path) -> None:
    check_settings(tmp_path, {"a": 1, "b": [0.5]})
    check_settings(tmp_path, {"b": [0.5], "a": 1})
    with pytest.raises(InputError, match="expected the settings that it was made with, got other ones: a, c; repeat"):
        check_settings(tmp_path, {"a": 2, "b": [0.5], "c": True})
    for damaged in ("{", "7", "[]", "null", '"a"'):
        (tmp_path / "settings.json").write_text(damaged)
        with pytest.raises(InputError, match=r"settings\.json: expected what a run has written"):
            check_settings(tmp_path, {"a": 1})


def test_settings_are_the_overrides_that_are_not_free_to_change() -> None:
    command = "python scripts/ablate.py seed=1 'data.root=a b' output=x +victim@victims.a=a"
    assert settings_of(command, ("output=",)) == {"seed=1": True, "data.root=a b": True, "+victim@victims.a=a": True}
    assert settings_of("patchattack ablate +victim@victims.a=a", ("victim@",)) == {}


def test_tables(tmp_path: Path) -> None:
    write_csv(tmp_path / "table.csv", [{"a": 1}, {"a": 2, "b": "x,y"}])
    assert (tmp_path / "table.csv").read_text() == 'a,b\n1,\n2,"x,y"\n'
    text = publish_table(tmp_path, ["name", "n"], [["x", "1"], ["a & b", "−2"]], 1, "It works.", "Means.")
    assert text == "It works.\n\n| name | n |\n| --- | ---: |\n| x | 1 |\n| a & b | −2 |\n\nMeans."
    assert (tmp_path / "table.tex").read_text().splitlines() == [
        "% It works.",
        "% Means.",
        r"% Needs \usepackage{booktabs}.",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"name & n \\",
        r"\midrule",
        r"x & 1 \\",
        r"a \& b & $-$2 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
