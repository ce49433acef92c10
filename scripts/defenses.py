"""``patchattack defenses`` from a checkout: ``python scripts/defenses.py``."""

from patchattack.commands.defenses import main

if __name__ == "__main__":
    main()
