"""The commands: ``infobatch COMMAND``, or ``python -m infobatch_mm COMMAND``.

A command is a module in here, of the same name, with a function
``main(argv, prog)``. It is imported only when it is run, so that no command
needs what only another one does.
"""

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from ..host.packages import require
from .ending import in_one_line

# Each command and what it does, in the order of `infobatch --help`.
COMMANDS = {
    'train': 'train a model from a config, pruned with --infobatch',
    'test': 'test a checkpoint',
    'prepare': 'unpack and check the data sets that the configs train on',
    'report': 'make a page about runs, by arm, or about a comparison',
    'rank': 'list the training samples of a run by their scores',
    'estimate': 'say what pruning will save, before training',
    'compare': 'find out whether pruning pays: arms and seeds of a config',
}

EPILOG = '`infobatch COMMAND --help` says what a command takes.'
SHELLS = ('bash', 'zsh', 'tcsh')
# Arguments that name a file or a folder, beside those of type Path.
PATHS = ('checkpoint', 'config', 'out', 'resume', 'show_dir', 'work_dir')


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
    parser.add_argument(
        '--print-completion',
        action=PrintCompletion,
        choices=SHELLS,
        help='print a script that lets this shell complete the command line',
    )
    parser.add_argument('command', choices=COMMANDS, metavar='COMMAND')
    parser.add_argument(
        'arguments',
        nargs=argparse.REMAINDER,
        metavar='...',
        help='what the command takes',
    )
    return parser


class PrintCompletion(argparse.Action):
    """Print the script that completes all commands in a shell, and exit."""

    def __call__(self, parser: Any, _: Any, shell: Any, __: Any = None) -> Any:
        """Print it for the shell that the option names."""
        with in_one_line(parser):
            shtab = require('shtab', 'completion')
        print(shtab.complete(whole_parser(shtab), shell=shell))
        parser.exit()


def whole_parser(shtab: ModuleType) -> argparse.ArgumentParser:
    """Return one parser of all commands, as a completion needs it.

    The script is static: the shell completes by it without starting Python.
    """
    parser = argparse.ArgumentParser('infobatch')
    subparsers = parser.add_subparsers(dest='command')
    for name, does in COMMANDS.items():
        command = import_module(f'{__name__}.{name}')
        subparsers.add_parser(
            name,
            parents=[command.build_parser()],
            add_help=False,
            help=does,
        )
    complete_paths(parser, shtab.FILE)
    return parser


def complete_paths(parser: argparse.ArgumentParser, how: Any) -> None:
    """Let arguments that name a file or a folder be completed as such."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                complete_paths(subparser, how)
        elif action.type is Path or action.dest in PATHS:
            action.complete = how  # type: ignore[attr-defined]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names."""
    args = build_parser().parse_args(argv)
    command = import_module(f'{__name__}.{args.command}')
    command.main(args.arguments, prog=f'infobatch {args.command}')
