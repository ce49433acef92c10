"""Optimise a patch: ``python train.py attack=flow``. All options: ``python train.py --help``."""

from patchattack.cli import train

if __name__ == "__main__":
    train()
