"""The commands without the console script: ``python -m infobatch_mm``."""

from .commands import main

# Processes that are spawned, as workers may be, import this file again.
if __name__ == '__main__':
    main()
