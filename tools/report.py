"""Report on a run: the door to `infobatch report`, with the same flags."""

from infobatch_mm.commands.report import main

if __name__ == '__main__':
    main()
