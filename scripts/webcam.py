"""``patchattack webcam`` from a checkout: ``python scripts/webcam.py``."""

from patchattack.commands.webcam import main

if __name__ == "__main__":
    main()
