"""The command `vl2`. One file a command, imported when it is used: `vl2 --help` loads no torch."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from vl2 import __version__
from vl2.core.errors import SetupError, VL2Error

COMMANDS = (
    "serve", "chat", "run", "watch", "pull", "quantize", "export", "key", "evaluate", "plan", "doctor", "selfcheck",
    "tune", "top", "deploy",
)  # fmt: skip


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"vl2.cli.{cmd_name}").command
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, package_name="vl2", message="vl2 %(version)s")
def cli() -> None:
    """Serve DeepSeek-VL2: pictures and text in; text and boxes out.

    \b
    vl2 serve                                   # a small built-in model, at http://127.0.0.1:8000
    vl2 serve tiny --port 9000                  # the official DeepSeek-VL2-Tiny, downloaded once
    vl2 chat                                    # talk in the terminal; /image PATH shows a picture
    vl2 run cat.jpg "What is in the picture?"   # one answer on stdout

    Every option can also be set in the environment: --max-sequences is VL2_MAX_SEQUENCES.
    """


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done; 1 the request failed; 2 wrong usage or set-up; 130 interrupted."""
    sys.exit(execute(args))


def execute(args: Sequence[str] | None = None) -> int:
    """As `main`, but return the exit code."""
    try:
        code = cli.main(args, prog_name="vl2", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except VL2Error as error:
        click.echo("error: " + " ".join(str(error).split()), err=True)
        return 2 if isinstance(error, SetupError) else 1
    except (click.Abort, KeyboardInterrupt):
        click.echo(err=True)
        return 130
    except BrokenPipeError:  # the reader, say `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
