"""Make a picture of a patch at work for the README and the pages, from the pictures in a finished run's report.

python scripts/maintain/make_pictures.py RUN # assets/readme/patch_at_work.webp
python scripts/maintain/make_pictures.py RUN assets/readme/first_patch.webp Frame Output # rows of each scene
"""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from patchattack import pictures

ROWS = 4  # at most
COLUMNS = ("no patch", "random patch", "optimised patch")
WIDTH = 400  # pixels of a frame
_PICTURE = re.compile(r'<img[^>]*src="data:image/png;base64,([^"]+)" alt="(\w+), ([^"]+)"')


def main() -> None:
    """Read the report and write the picture."""
    run = Path(sys.argv[1])
    path = Path(sys.argv[2]) if len(sys.argv) > 2 else Path("assets/readme/patch_at_work.webp")
    picture = draw((run / "report.html").read_text(encoding="utf-8"), sys.argv[3:] or ["Output"])
    cv2.imwrite(str(path), picture, [cv2.IMWRITE_WEBP_QUALITY, 70])
    print(path)


def draw(report: str, kinds: Sequence[str] = ("Output",)) -> np.ndarray:
    """Frames, outputs or both ``[h, w, 3]``, BGR: scenes in rows, conditions in columns."""
    shown: dict[tuple[str, str], list[np.ndarray]] = {(kind, name): [] for kind in kinds for name in COLUMNS}
    for data, *key in _PICTURE.findall(report):
        if tuple(key) not in shown:
            continue
        raw = np.frombuffer(base64.b64decode(data), np.uint8)
        picture = pictures.decode(raw).permute(1, 2, 0).numpy()[..., ::-1]
        height = round(picture.shape[0] * WIDTH / picture.shape[1])
        shown[key[0], key[1]].append(cv2.resize(picture, (WIDTH, height), interpolation=cv2.INTER_AREA))
    scenes = min(ROWS // len(kinds), *map(len, shown.values()))
    columns = []
    for name in COLUMNS:
        head = np.full((34, WIDTH, 3), 255, np.uint8)
        cv2.putText(head, name, (4, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (40, 40, 40), 1, cv2.LINE_AA)
        pictured = [shown[kind, name][scene] for scene in range(scenes) for kind in kinds]
        rows = [np.pad(one, ((0, 6), (0, 6), (0, 0)), constant_values=255) for one in pictured]
        columns.append(np.vstack([np.pad(head, ((0, 0), (0, 6), (0, 0)), constant_values=255), *rows]))
    return np.hstack(columns)[:, :-6]


if __name__ == "__main__":
    main()
