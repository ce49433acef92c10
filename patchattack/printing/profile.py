"""ICC profiles: what the numbers of a sheet's colours mean."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

from patchattack.errors import InputError, one_line


def load_profile(path: str | None) -> bytes:
    """The profile in a file, or sRGB.

    Raises:
        InputError: it is missing, damaged, or not of RGB colours.
    """
    from PIL import ImageCms

    if path is None:
        made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        return made[:24] + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + made[36:]  # its date would differ every time
    try:
        content = Path(path).expanduser().read_bytes()
        space = ImageCms.ImageCmsProfile(io.BytesIO(content)).profile.xcolor_space.strip()
    except (OSError, ImageCms.PyCMSError) as error:
        raise InputError(f"print.profile: expected a readable ICC profile, got {path} ({one_line(error)})") from error
    if space != "RGB":
        raise InputError(
            f"print.profile: expected an ICC profile of RGB colours, got {space} in {path}; the sheet is RGB, and the "
            "printer's driver converts it"
        )
    return content


def embed(pdf: Any, profile: bytes) -> str:
    """Add a colour space of an RGB profile to the document; its name there."""
    from reportlab.pdfbase.pdfdoc import PDFArray, PDFDictionary, PDFName, PDFStream

    stream = PDFStream(PDFDictionary({"N": 3, "Alternate": PDFName("DeviceRGB")}), profile)
    pdf._doc.Reference(PDFArray([PDFName("ICCBased"), pdf._doc.Reference(stream)]), "profile")
    return "profile"
