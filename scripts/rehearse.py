"""``patchattack rehearse`` from a checkout: ``python scripts/rehearse.py``."""

from patchattack.commands.rehearse import main

if __name__ == "__main__":
    main()
