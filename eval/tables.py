"""Tables that are printed a row at a time, while the work goes on."""

WIDTH, FIRST = 19, 30


def print_row(name: str, *cells: str) -> None:
    print(f"{name:<{FIRST}}" + "".join(f"{cell:>{WIDTH}}" for cell in cells), flush=True)
