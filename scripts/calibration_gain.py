"""``patchattack calibration-gain`` from a checkout: ``python scripts/calibration_gain.py``."""

from patchattack.commands.calibration_gain import main

if __name__ == "__main__":
    main()
