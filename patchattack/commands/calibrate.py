"""Calibrate patches to your own printer and camera: print a chart, photograph it, fit.

patchattack calibrate chart [print=a4]
patchattack calibrate fit photo=PATH [output=calibration.json]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from patchattack import cli
from patchattack.errors import InputError


def main() -> None:
    """Do what the first word says; the rest of the command line is conf/calibrate.yaml's."""
    work = {"chart": write_chart, "fit": fit}
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if word in work:
        del sys.argv[1]
        cli.command("calibrate", work[word])
    elif word in ("-h", "--help"):
        print(__doc__)
    else:
        print(f"patchattack: calibrate: expected chart or fit, got {word or 'nothing'}", file=sys.stderr)
        sys.exit(2)


def write_chart(parts: dict[str, Any]) -> None:
    """Write the chart's PDF."""
    from patchattack.printing import chart

    path = _output(parts["output"], "chart.pdf")
    chart.write(path, parts["print"])
    print(f"chart     {path}\nPrint it at 100 % and photograph it, then: patchattack calibrate fit photo=PHOTO")


def fit(parts: dict[str, Any]) -> None:
    """Fit a calibration; write it, the palette and a picture, and say how good it is and how to use it."""
    from patchattack.printing import calibration

    photos = parts["photo"] if isinstance(parts["photo"], list) else [parts["photo"]]
    path = _output(parts["output"], "calibration.json")
    found = calibration.fit([Path(str(photo)).expanduser() for photo in photos if photo is not None])
    picture, palette = path.with_suffix(".png"), path.with_suffix(".csv")
    calibration.write_picture(picture, found)
    if found.verdict != "good":
        raise InputError(f"{found.verdict}. {picture} shows where; no calibration was written")
    found.calibration.save(path)
    calibration.write_palette(palette, found)
    blur, noise = found.calibration.blur, found.calibration.noise
    assert blur is not None
    assert noise is not None
    low = max(blur / 2, 0.05)
    print(
        f"verdict   good\n"
        f"map       mean ΔE2000 {found.errors.mean():.2f}, of colours left out {found.left_out.mean():.2f} "
        f"(95 % below {found.left_out.quantile(0.95):.2f})\n"
        f"palette   {len(found.palette)} colours, each printed as itself within ΔE2000 {found.changes.max():.1f}\n"
        f"camera    blur {blur:.2f} pixels, noise {noise:.4f} of full scale\n"
        f"files     {path}, {palette}, {picture}\n\n"
        f"Train with it: patchattack train attack=flow appearance=[calibrated] appearance.calibrated.file={path} "
        f"camera=[defocus,sensor_noise] camera.defocus.range=[{low:.2f},{max(2 * blur, low):.2f}] "
        f"camera.sensor_noise.range=[0,{2 * noise:.4f}]"
    )


def _output(given: str | None, name: str) -> Path:
    path = Path(name if given is None else str(given)).expanduser()
    if path.suffix != Path(name).suffix:
        raise InputError(f"output: expected a file {Path(name).suffix}, got {path}; name it like {name}")
    return path
