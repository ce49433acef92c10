"""Optimise a patch: ``python train.py attack=flow``. All options: ``python train.py --help``."""

from patchattack.commands.train import main

if __name__ == "__main__":
    main()
