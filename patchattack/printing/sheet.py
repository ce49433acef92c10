"""Print sheets: the patch on paper in its true size."""

from __future__ import annotations

import io
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from patchattack.errors import InputError
from patchattack.files import write

PAGES = {"a4": (210.0, 297.0), "a3": (297.0, 420.0), "letter": (215.9, 279.4)}  # width, height in mm, upright

_BAND = 22.0  # mm above and below the patch for the text and the ruler
_MM = 72 / 25.4  # PDF points
_DPI = 150  # texels are millimetres wide: more would only make the file larger
_PURPOSE = (
    "Adversarial test pattern: made to mislead computer vision. For robustness tests of systems that you own or are "
    "permitted to test; keep it out of public traffic."
)


class Sheet:
    """A page of paper.

    Args:
        page: "a4", "a3" or "letter"; it is turned on its side for a patch that is wider than high.
        margin_mm: border that the printer leaves white.

    Raises:
        InputError: no such page.
    """

    def __init__(self, page: str = "a4", margin_mm: float = 10) -> None:
        if page not in PAGES:
            raise InputError(f"print.page: expected one of {', '.join(PAGES)}, got {page!r}")
        self.page, self.margin_mm = page, margin_mm

    def check(self, size_mm: tuple[float, float]) -> tuple[float, float]:
        """Width and height in mm of the page that a patch of ``size_mm`` (width, height) goes on.

        Raises:
            InputError: the patch does not fit on the page.
        """
        width, height = size_mm
        page_width, page_height = PAGES[self.page] if width <= height else PAGES[self.page][::-1]
        room, free = page_width - 2 * self.margin_mm, page_height - 2 * (self.margin_mm + _BAND)
        if not (0 < width <= room and 0 < height <= free):
            raise InputError(
                f"print={self.page}: expected a patch that fits on the page, got {width:g} × {height:g} mm, "
                f"the largest that fits is {room:g} × {free:g} mm; "
                "use a smaller patch.size_mm or a larger page (print=a3)"
            )
        return page_width, page_height

    def write(
        self, path: Path, texture: Tensor, mask: Tensor, size_mm: tuple[float, float], title: str, note: str
    ) -> None:
        """Write the sheet as a PDF; the same arguments give the same bytes.

        Beside the patch, centred on the page, stand the title, the note, what the sheet is for, and a ruler that
        shows whether the printer has scaled it.

        Args:
            path: the PDF.
            texture: ``[3, h, w]`` in [0, 1].
            mask: ``[1, h, w]`` in [0, 1]; the paper stays white where it is 0.
            size_mm: width and height on paper.
            title: one line.
            note: small print below the title; what does not fit in three lines is left out.

        Raises:
            InputError: the patch does not fit on the page, or the file cannot be written.
        """
        from PIL import Image
        from reportlab.lib.utils import ImageReader, simpleSplit
        from reportlab.pdfbase.pdfmetrics import stringWidth
        from reportlab.pdfgen.canvas import Canvas

        width, height = size_mm
        page_width, page_height = self.check(size_mm)
        room = page_width - 2 * self.margin_mm  # mm

        buffer = io.BytesIO()
        pdf = Canvas(buffer, pagesize=(page_width * _MM, page_height * _MM), invariant=True, pageCompression=True)
        pdf.setTitle(title)
        pdf.setSubject(note)
        pdf.setCreator("patchattack")
        pdf.setViewerPreference("PrintScaling", "None")  # the print dialogue opens with "actual size"
        pdf.scale(_MM, _MM)  # from here on, lengths are millimetres

        pixels = (_on_paper(texture, mask, size_mm) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        picture = ImageReader(Image.fromarray(pixels))
        pdf.drawImage(picture, (page_width - width) / 2, (page_height - height) / 2, width, height)

        left, top, bottom = self.margin_mm, page_height - self.margin_mm, self.margin_mm
        size = min(5.0, 5.0 * room / stringWidth(title, "Helvetica-Bold", 5.0)) if title else 5.0
        pdf.setFont("Helvetica-Bold", size)
        pdf.drawString(left, top - 5, title)
        pdf.setFont("Helvetica", 3)
        for row, line in enumerate(simpleSplit(note, "Helvetica", 3, room)[:3]):
            pdf.drawString(left, top - 10 - 4 * row, line)

        pdf.setLineWidth(0.2)
        pdf.line(left, bottom + 10, left + 100, bottom + 10)
        for mm in range(0, 101, 5):
            pdf.line(left + mm, bottom + 10, left + mm, bottom + (13 if mm % 10 == 0 else 12))
        for mm in range(0, 101, 50):
            pdf.drawCentredString(left + mm, bottom + 14, f"{mm}")
        pdf.drawString(left + 108, bottom + 13, "Print at 100 %.")
        pdf.drawString(left + 108, bottom + 9, "This ruler must measure 100 mm.")
        pdf.setFont("Helvetica", 2.6)
        for row, line in enumerate(simpleSplit(_PURPOSE, "Helvetica", 2.6, room)):
            pdf.drawString(left, bottom + 4 - 3.4 * row, line)
        pdf.save()
        write(path, buffer.getvalue())


def _on_paper(texture: Tensor, mask: Tensor, size_mm: tuple[float, float]) -> Tensor:
    """``[3, H, W]`` in [0, 1]: the patch on white at 150 dpi, or at its own resolution where that is finer.

    The renderer that the patch was optimised with takes the texture as bilinear between texel centres. Printers and
    viewers smooth a coarse image each in their own way, or not at all, so the interpolation is done here.
    """
    paper = texture * mask + (1 - mask)
    height, width = (
        max(texels, round(mm / 25.4 * _DPI)) for texels, mm in zip(paper.shape[1:], reversed(size_mm), strict=True)
    )
    return F.interpolate(paper[None].detach(), (height, width), mode="bilinear", align_corners=False)[0].clamp(0, 1)
