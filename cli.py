"""The original scripts were called by this name; the commands are in ``probesweep.commands``."""

from probesweep.commands.main import main, probesweep

__all__ = ["main", "probesweep"]

if __name__ == "__main__":
    main()
