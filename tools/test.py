"""Test a checkpoint: the door to `infobatch test`, with the same flags."""

from infobatch_mm.commands.test import main

if __name__ == '__main__':
    main()
