"""``patchattack baselines`` from a checkout: ``python scripts/baselines.py``."""

from patchattack.commands.baselines import main

if __name__ == "__main__":
    main()
