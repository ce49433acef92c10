"""Print sheets of a patch: PDF in true millimetres, with the markers by which a camera finds it.

patchattack print run=outputs/flow/TIME print=a4 control=true
patchattack print run=outputs/flow/TIME proof=printer.icc
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from patchattack import cli


def main() -> None:
    """Compose the config from the command line and print."""
    cli.command("print", run)


def run(parts: dict[str, Any]) -> None:
    """Write the sheets and ``layout.json``, and say where they are."""
    from patchattack.errors import InputError
    from patchattack.patch import Patch, random_texture, read_facts
    from patchattack.printing.fiducials import save_layouts

    if (parts["run"] is None) == (parts["patch"] is None):
        raise InputError("run: expected the folder of a run, or patch=FILE, got neither or both; give one of them")
    file = Path(parts["run"]) / "patch.png" if parts["patch"] is None else Path(parts["patch"])
    patch, sheet = Patch.load(file), parts["print"]
    facts = read_facts(file)
    folder = file.parent / "print" if parts["output"] is None else Path(parts["output"])
    height, width = patch.mask.shape[1:]
    name = " + ".join(facts["victims"]) or file.stem
    made = datetime.fromtimestamp(file.stat().st_mtime, UTC).date()
    size = " × ".join(f"{side:g}" for side in patch.size_mm)
    note = f"run {file.absolute().parent.name}, config {facts.get('config', 'unknown')}, {made}, {size} mm"

    sheets = [("", patch().detach(), sheet.number, f"Patch against {name}")]
    if parts["control"]:
        control = random_texture(height, width, 0)
        sheets.append(("control_", control, sheet.number + 1, f"Control: random patch for {name}"))
    if parts["blank"]:
        sheets.append(("blank_", None, sheet.number, "Blank sheet: the patch is drawn onto it on the screen"))
    if parts["proof"] is not None:
        from patchattack.printing.proof import proof

        proofed = proof(patch().detach(), patch.mask, Path(parts["proof"]))
        Patch(proofed.texture, patch.mask, patch.size_mm).save(folder / "proof.png", facts)
        print(
            f"  {folder / 'proof.png'}   mean ΔE2000 {proofed.mean:.1f}, 95 % of the texels within {proofed.most:.1f}"
        )
    for prefix, texture, number, title in sheets:
        path = folder / f"{prefix}{sheet.page}.pdf"
        sheet.write(path, texture, patch.mask, patch.size_mm, title, note, number)
        print(f"  {path}")
        if parts["png"]:
            sheet.write_png(path.with_suffix(".png"), texture, patch.mask, patch.size_mm, number)
            print(f"  {path.with_suffix('.png')}")
    save_layouts(folder / "layout.json", [sheet.layout(patch.size_mm, sheet.number + extra) for extra in (0, 1)])
    print(f"  {folder / 'layout.json'}")
