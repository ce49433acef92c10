"""``patchattack one-pixel`` from a checkout: ``python scripts/one_pixel.py``."""

from patchattack.commands.one_pixel import main

if __name__ == "__main__":
    main()
