"""The commands: ``infobatch COMMAND``, or ``python -m infobatch_mm COMMAND``.

A command is a module in here, of the same name, with a function
``main(argv, prog)``. It is imported only when it is run, so that no command
needs what only another one does.
"""

import argparse
from collections.abc import Sequence
from importlib import import_module

# Each command and what it does, in the order of `infobatch --help`.
COMMANDS = {
    'train': 'train a model from a config, pruned with --infobatch',
    'test': 'test a checkpoint',
    'prepare': 'unpack and check the data sets that the configs train on',
    'report': 'make a page about a run, beside its baseline if there is one',
    'rank': 'list the training samples of a run by their scores',
    'estimate': 'say what pruning will save, before training',
    'compare': 'find out whether pruning pays: arms and seeds of a config',
}

EPILOG = '`infobatch COMMAND --help` says what a command takes.'


def build_parser() -> argparse.ArgumentParser:
    """Declare the name of a command; what follows it is for the command."""
    width = max(map(len, COMMANDS))
    lines = [f'  {name:{width}}  {does}' for name, does in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        'infobatch',
        description='InfoBatch dynamic data pruning for OpenMMLab',
        epilog='\n'.join(['commands:', *lines, '', EPILOG]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('command', choices=COMMANDS, metavar='COMMAND')
    parser.add_argument(
        'arguments',
        nargs=argparse.REMAINDER,
        metavar='...',
        help='what the command takes',
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names."""
    args = build_parser().parse_args(argv)
    command = import_module(f'{__name__}.{args.command}')
    command.main(args.arguments, prog=f'infobatch {args.command}')
