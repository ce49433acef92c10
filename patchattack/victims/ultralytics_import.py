"""How ultralytics is imported."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Import ultralytics within this, and the rest of the program and the user's home stay as they were.

    At its import it makes a file of settings in the user's home, asks a name server whether the machine is online (if
    so, it reports its use), talks on the terminal, and changes environment variables, warnings, OpenCV's threads and
    ``torch.save``, and makes PIL's ``Image.open`` call pip for a package where a file is no image. Where it is loaded
    already, nothing is undone.
    """
    if "ultralytics" in sys.modules:
        yield
        return
    import cv2
    from PIL import Image

    environment, threads, save, opened = dict(os.environ), cv2.getNumThreads(), torch.save, Image.open
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        os.environ |= {"YOLO_CONFIG_DIR": folder, "YOLO_OFFLINE": "true", "YOLO_VERBOSE": "false"}
        os.environ |= {"YOLO_AUTOINSTALL": "false"}  # else it calls pip where a checkpoint wants a missing package
        try:
            yield
        finally:
            for key in os.environ.keys() - environment.keys():
                del os.environ[key]
            os.environ |= environment
            cv2.setNumThreads(threads)
            torch.save, Image.open = save, opened
