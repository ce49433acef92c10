"""Make the README's picture of a patch at work, from the pictures in a finished run's report.

python scripts/maintain/make_pictures.py RUN [assets/readme/patch_at_work.webp]
"""

from __future__ import annotations

import base64
import re
import sys
from pathlib import Path

import cv2
import numpy as np

from patchattack import pictures

SCENES = 2
COLUMNS = ("no patch", "random patch", "optimised patch")
WIDTH = 400  # pixels of a frame
_PICTURE = re.compile(r'<img[^>]*src="data:image/png;base64,([^"]+)" alt="Output, ([^"]+)"')


def main() -> None:
    """Read the report and write the picture."""
    run = Path(sys.argv[1])
    path = Path(sys.argv[2]) if len(sys.argv) > 2 else Path("assets/readme/patch_at_work.webp")
    cv2.imwrite(str(path), draw((run / "report.html").read_text(encoding="utf-8")), [cv2.IMWRITE_WEBP_QUALITY, 70])
    print(path)


def draw(report: str) -> np.ndarray:
    """The victim's outputs ``[h, w, 3]``, BGR: scenes in rows, conditions in columns."""
    shown: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
    for data, name in _PICTURE.findall(report):
        raw = np.frombuffer(base64.b64decode(data), np.uint8)
        picture = pictures.decode(raw).permute(1, 2, 0).numpy()[..., ::-1]
        height = round(picture.shape[0] * WIDTH / picture.shape[1])
        shown[name].append(cv2.resize(picture, (WIDTH, height), interpolation=cv2.INTER_AREA))
    columns = []
    for name, outputs in shown.items():
        head = np.full((34, WIDTH, 3), 255, np.uint8)
        cv2.putText(head, name, (4, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (40, 40, 40), 1, cv2.LINE_AA)
        rows = [np.pad(one, ((0, 6), (0, 6), (0, 0)), constant_values=255) for one in outputs[:SCENES]]
        columns.append(np.vstack([np.pad(head, ((0, 0), (0, 6), (0, 0)), constant_values=255), *rows]))
    return np.hstack(columns)[:, :-6]


if __name__ == "__main__":
    main()
