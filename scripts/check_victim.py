"""``patchattack check-victim`` from a checkout: ``python scripts/check_victim.py``."""

from patchattack.commands.check_victim import main

if __name__ == "__main__":
    main()
