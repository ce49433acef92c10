"""Check that a victim keeps the contract that attacks rely on: shapes, units, gradients, frozen, the same every time.

python scripts/check_victim.py victim=resnet50 victim.weights=PATH
python scripts/check_victim.py victim=custom victim.task=depth victim.factory=path/to/file.py:build "size=[96,320]"
"""

from __future__ import annotations

import sys
from typing import Any

from patchattack import cli


def main() -> None:
    """Compose the config from the command line, check, and exit with 1 where a promise is broken."""
    cli.command("check_victim", run)


def run(parts: dict[str, Any]) -> None:
    """Print a table of the findings."""
    from patchattack.victims import contract

    height, width = parts["size"]
    findings = contract.check(parts["victim"], (height, width), parts["seed"])
    words = {True: "pass", False: "FAIL", None: "look"}
    for finding in findings:
        print(f"{words[finding.passed]}  {finding.name:32}  {finding.detail}")
    broken = sum(finding.passed is False for finding in findings)
    print(f"{parts['victim'].name}: {broken or 'no'} broken promise{'' if broken == 1 else 's'}")
    if broken:
        sys.exit(1)


if __name__ == "__main__":
    main()
