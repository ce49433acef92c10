"""``patchattack cost`` from a checkout: ``python scripts/cost.py``."""

from patchattack.commands.cost import main

if __name__ == "__main__":
    main()
