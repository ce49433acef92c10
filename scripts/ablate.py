"""``patchattack ablate`` from a checkout: ``python scripts/ablate.py``."""

from patchattack.commands.ablate import main

if __name__ == "__main__":
    main()
