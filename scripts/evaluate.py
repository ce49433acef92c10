"""``patchattack evaluate`` from a checkout: ``python scripts/evaluate.py``."""

from patchattack.commands.evaluate import main

if __name__ == "__main__":
    main()
