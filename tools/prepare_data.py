"""Prepare data sets: the door to `infobatch prepare`, with the same flags."""

from infobatch_mm.commands.prepare import main

if __name__ == '__main__':
    main()
