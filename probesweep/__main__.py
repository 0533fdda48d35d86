"""``python -m probesweep``."""

from probesweep.commands.main import main

if __name__ == "__main__":
    main()
