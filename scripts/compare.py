"""``patchattack compare`` from a checkout: ``python scripts/compare.py``."""

from patchattack.commands.compare import main

if __name__ == "__main__":
    main()
