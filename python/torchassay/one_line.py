"""Errors of the command line: one line that names the command."""

from __future__ import annotations

import sys

import click


class OneLine(click.Group):
    """A group whose errors are one line naming the command, in place of click's usage block."""

    def main(self, *args, standalone_mode: bool = True, **kwargs):
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **kwargs)
        try:
            sys.exit(super().main(*args, standalone_mode=False, **kwargs) or 0)
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            click.echo(f"{context.command_path if context else self.name}: {error.format_message()}", err=True)
            sys.exit(error.exit_code)
        except click.Abort:
            click.echo("stopped", err=True)
            sys.exit(130)


class Stop(click.ClickException):
    """An error outside the command line's own syntax, told with the command's name."""

    def __init__(self, message: str):
        super().__init__(message)
        self.ctx = click.get_current_context()
