"""``patchattack print`` from a checkout: ``python scripts/print.py``."""

from patchattack.commands.print import main

if __name__ == "__main__":
    main()
