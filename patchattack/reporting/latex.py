"""Tables for papers: LaTeX with booktabs."""

from __future__ import annotations

from collections.abc import Sequence

SIGNS = {
    **{one: f"\\{one}" for one in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "−": "$-$",
    "–": "--",
    "°": r"$^\circ$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "µ": r"$\mu$",
    "σ": r"$\sigma$",
    "[": "{[}",  # after a line's end it would be an option of \\
}


def table(
    heads: Sequence[str], blocks: Sequence[Sequence[Sequence[str]]], words: int, comments: Sequence[str] = ()
) -> str:
    """A table with a rule between its blocks.

    Args:
        heads: of the columns.
        blocks: of lines of cells, as text.
        words: the first columns that are text; the others are numbers.
        comments: lines above the table.
    """
    line = r"{} \\".format
    rows = [[line(" & ".join(map(escape, cells))) for cells in block] for block in blocks]
    return "\n".join(
        [
            *(f"% {comment}" for comment in comments),
            r"% Needs \usepackage{booktabs}.",
            rf"\begin{{tabular}}{{{'l' * words}{'r' * (len(heads) - words)}}}",
            r"\toprule",
            line(" & ".join(map(escape, heads))),
            r"\midrule",
            "\n\\midrule\n".join("\n".join(block) for block in rows),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def escape(text: str) -> str:
    """``text`` as LaTeX prints it, with any engine."""
    return "".join(SIGNS.get(one, one) for one in text)
