"""``patchattack calibrate`` from a checkout: ``python scripts/calibrate.py``."""

from patchattack.commands.calibrate import main

if __name__ == "__main__":
    main()
