"""Check that a victim keeps the contract that attacks rely on: shapes, units, gradients, determinism.

patchattack check-victim victim=resnet50 victim.weights=PATH
patchattack check-victim victim=custom victim.task=depth victim.factory=path/to/file.py:build "size=[96,320]"
"""

from __future__ import annotations

import sys
from typing import Any

from patchattack import cli


def main() -> None:
    """Compose the config from the command line, check, and exit with 1 where a check fails."""
    cli.command("check_victim", run)


def run(parts: dict[str, Any]) -> None:
    """Print a table of the findings."""
    from patchattack.victims import contract

    height, width = parts["size"]
    findings = contract.check(parts["victim"], (height, width), parts["seed"])
    words = {True: "pass", False: "FAIL", None: "warn"}
    for finding in findings:
        print(f"{words[finding.passed]}  {finding.name:32}  {finding.detail}")
    failed = sum(finding.passed is False for finding in findings)
    print(f"{parts['victim'].name}: {failed or 'no'} check{'' if failed == 1 else 's'} failed")
    if failed:
        sys.exit(1)
