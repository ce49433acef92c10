"""``patchattack transfer`` from a checkout: ``python scripts/transfer.py``."""

from patchattack.commands.transfer import main

if __name__ == "__main__":
    main()
