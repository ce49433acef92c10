"""``patchattack substitute`` from a checkout: ``python scripts/substitute.py``."""

from patchattack.commands.substitute import main

if __name__ == "__main__":
    main()
