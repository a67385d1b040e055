"""Train a model: the door to `infobatch train`, with the same flags."""

from infobatch_mm.commands.train import main

if __name__ == '__main__':
    main()
