"""Every page in a real browser, on a phone and on a desk."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from typing import Any

import pytest
from test_board import some_rows, write_rows
from test_compare import write_run
from test_report import some_report
from test_sweep_report import some_evidence
from test_webcam_report import some_field

from patchattack.benchmark import board
from patchattack.reporting.compare import load_runs, write_comparison
from patchattack.reporting.report import write_report
from patchattack.reporting.sweep import write_evidence
from patchattack.reporting.transfer import Matrix, write_matrix
from patchattack.reporting.webcam import write_field

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PAGES = ("report", "report_of_close_values", "evidence", "evidence_of_several", "compare", "matrix", "field", "board")
WIDTHS = (390, 1440)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome in the PATH")

# Faults that the checks must find, or they are worth nothing.
FAULTY = """<!DOCTYPE html><html><head>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
</head><body><img src="http://example.invalid/picture.png"><img src="data:image/png;base64,AAAA">
<div style="width: 2000px">wide</div><svg width="90" height="20"><text y="9">one</text><text y="12">two</text></svg>
<script>1</script></body></html>"""

# A frame for each page and width; what is seen in them is written into the outer page, which the browser prints.
FRAME = '<iframe name="{page}" src="{page}.html" style="width: {width}px; height: 900px; border: 0"></iframe>'
LOOK = r"""
addEventListener("load", () => {
  const seen = [...document.querySelectorAll("iframe")].map(({name, contentWindow: view, contentDocument: page}) => ({
    page: name,
    width: view.innerWidth,
    needed: page.documentElement.scrollWidth,
    pictures: [...page.images].map(picture => picture.naturalWidth),
    requests: view.performance.getEntriesByType("resource").map(request => request.name),
    figures: [...page.querySelectorAll("svg")].map(figure => figure.getBoundingClientRect().height),
    colliding: [...page.querySelectorAll("svg")].flatMap(figure => {
      const texts = [...figure.querySelectorAll("text")].map(text => [text.textContent, text.getBoundingClientRect()]);
      return texts.flatMap(([one, a], n) => texts.slice(n + 1)
        .filter(([, b]) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
          && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 0.4 * Math.min(a.height, b.height))
        .map(([other]) => `${one} | ${other}`));
    }),
    lines: [...page.querySelectorAll("table.board")].map(table => {
      const button = table.tHead.querySelectorAll("button")[Number(table.dataset.count === "patches")];
      button.click();
      button.click();
      const choice = page.querySelector("select[name=knowledge]");
      choice.value = "transfer";
      choice.dispatchEvent(new Event("change"));
      return [...table.tBodies[0].rows].filter(line => !line.hidden).map(line => line.innerText.replace(/\s+/g, " "));
    }),
  }));
  document.getElementById("seen").textContent = JSON.stringify(seen);
});
"""


@dataclass(frozen=True)
class Look:
    """What the browser made of the pages: name and width to what LOOK collects, and its console's lines."""

    seen: dict[tuple[str, int], dict[str, Any]]
    console: list[str]


@pytest.fixture(scope="module")
def look(tmp_path_factory: pytest.TempPathFactory) -> Look:
    folder = tmp_path_factory.mktemp("pages")
    write_report(folder / "report.html", some_report())
    close = [row | {"mean": 1 - n / 1e5, "low": 1, "high": 1} for n, row in enumerate(some_report().rows)]
    write_report(folder / "report_of_close_values.html", replace(some_report(), rows=close))
    write_field(folder / "field.html", some_field())
    cells = {(p, v): {"mean": 0.1, "low": 0.0, "high": 0.2, "n": 9} for p in ("random", "own") for v in ("a", "b", "c")}
    write_matrix(
        folder / "matrix.html",
        Matrix("Title", "Verdict.", "rate", "higher", ["random", "own"], ["a", "b", "c"], cells, "python", {}),
    )
    runs = [write_run(folder / "runs" / name, seed=n) for n, name in enumerate(("2026-01-01_12-00-00", "another run"))]
    write_comparison(folder / "compare.html", load_runs(runs), "patchattack compare")
    write_evidence(folder / "one", some_evidence())
    shutil.move(folder / "one" / "report.html", folder / "evidence.html")
    axes = {name: axis for name, axis in some_evidence().axes.items() if name != "yaw"}
    several = some_evidence(("flow_encoder_decoder", "a"), ("a_network_with_a_long_name", "a"), axes=axes)
    write_evidence(folder / "several", several)
    shutil.move(folder / "several" / "report.html", folder / "evidence_of_several.html")
    of_two = some_rows() + some_rows(victim="other")
    board.publish([write_rows(folder / "rows", of_two)], folder, "patchattack bench board")
    (folder / "faulty.html").write_text(FAULTY)

    frames = "".join(FRAME.format(page=page, width=width) for page in (*PAGES, "faulty") for width in WIDTHS)
    outer = folder / "outer.html"
    outer.write_text(f'<!DOCTYPE html><body>{frames}<pre id="seen"></pre><script>{LOOK}</script></body>')
    assert BROWSER is not None
    result = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"),
            *("--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}", "--dump-dom", outer.as_uri()),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', result.stdout, flags=re.DOTALL)
    assert found, result.stdout[-2000:] + result.stderr[-2000:]
    seen = {(one["page"], one["width"]): one for one in json.loads(html.unescape(found.group(1)))}
    return Look(seen, [line for line in result.stderr.splitlines() if "CONSOLE" in line])


def test_the_checks_find_faults(look: Look) -> None:
    for width in WIDTHS:
        faulty = look.seen["faulty", width]
        assert faulty["needed"] > width
        assert faulty["pictures"] == [0, 0]
        assert faulty["requests"] == ["http://example.invalid/picture.png"]
        assert faulty["colliding"] == ["one | two"]
    assert sum("faulty.html" in line for line in look.console) >= 2  # a picture and a script that are not allowed


@pytest.mark.parametrize("page", PAGES)
def test_the_console_is_silent(look: Look, page: str) -> None:
    assert [line for line in look.console if f"/{page}.html" in line] == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_the_page_is_as_it_should_be(look: Look, page: str, width: int) -> None:
    seen = look.seen[page, width]
    assert seen["needed"] <= width
    assert seen["requests"] == []
    assert page in ("matrix", "board") or seen["pictures"]
    assert all(width > 0 for width in seen["pictures"])
    assert page == "board" or seen["figures"]
    assert min(seen["figures"], default=51) > 50
    assert seen["colliding"] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_a_board_sorts_and_filters(look: Look, width: int) -> None:
    victims, patches = look.seen["board", width]["lines"]
    assert [line.split()[0] for line in victims] == ["other", "net"]  # downwards; the strongest patch is transferred
    assert [line.split()[0] for line in patches] == ["strong", "strong"]
    assert ["other" in line for line in patches] == [True, False]
