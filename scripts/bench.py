"""``patchattack bench`` from a checkout: ``python scripts/bench.py``."""

from patchattack.commands.bench import main

if __name__ == "__main__":
    main()
