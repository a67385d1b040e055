"""What the check prints when it has ended."""

from rich.console import Console
from rich.table import Table

from zoo.record import Record
from zoo.tables import by_data, columns, count, reasons


def print_report(records: list[Record]) -> None:
    """Print the counts, and what did not pass."""
    console = Console()
    names = columns(records)
    table = Table('data', *names, title='Configs that prune')
    for data, group in by_data(records).items():
        counts = count(group)
        table.add_row(data, *(str(counts[name]) for name in names))
    console.print(table)
    for row in reasons(records):
        console.print(*row, markup=False, highlight=False)
