"""The page of the command line, read off its parsers."""

from argparse import SUPPRESS, Action, ArgumentParser

from optimum.commands.register.register_dendritic import DendriticCommand


def page() -> str:
    """Every command with its arguments, as Markdown."""
    return "\n".join(section(command.name, command.subcommand_class) for command in DendriticCommand.SUBCOMMANDS)


def section(name: str, command: type) -> str:
    parser = ArgumentParser(prog=f"optimum-cli dendritic {name}")
    command.parse_args(parser)  # type: ignore[attr-defined]
    shown = [a for a in parser._actions if a.help != SUPPRESS and "--help" not in a.option_strings]
    rows = [row(action) for action in shown]
    return "\n".join([f"## {name}", "", str(parser.description), "", "| argument | what |", "| --- | --- |", *rows, ""])


def row(action: Action) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar or action.dest}`"
    choices = {"choices": ", ".join(map(str, action.choices or ())), "default": action.default}
    return f"| {names} | {str(action.help) % choices} |".replace("%%", "%")
