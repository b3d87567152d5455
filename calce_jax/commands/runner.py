"""Run a command's main function: parse its flags, and answer a user's mistakes in one line.

Exit codes: 2 after a mistake in the command line, 1 where the work could not be done, 130 after Ctrl-C.
"""

import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from absl import flags, logging

from calce_jax.errors import UserError

USAGE, FAILED, INTERRUPTED = 2, 1, 130


Parse = Callable[[flags.FlagValues, list[str]], list[str]]


def run_main(
    main: Callable[[list[str]], Any], argv: list[str], flag_values: flags.FlagValues, parse: Parse | None = None
) -> None:
    """Parse flags, call `main` with what is left, and answer errors of the user in one line.

    Args:
      main: takes the program's name and the arguments that are no flags.
      argv: the program's name and its arguments.
      flag_values: the command's flags.
      parse: reads them in place of `flag_values(argv)`.

    Raises:
      SystemExit: with a code above.
    """
    if "verbosity" not in flag_values:
        flags.DEFINE_integer(
            "verbosity", -1, "-1 logs warnings, 0 what libraries do, 1 details", flag_values=flag_values
        )
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    sys.argv = argv
    try:
        left = parse(flag_values, argv) if parse else flag_values(argv)
    except (flags.Error, UserError) as error:
        fail(f"{argv[0]}: {_first_cause(error)}", USAGE)
    logging.set_verbosity(int(flag_values["verbosity"].value or 0))
    try:
        main(left)
        sys.stdout.flush()
    except UsageError as error:
        fail(f"{argv[0]}: {error}", USAGE)
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does; nothing is wrong. Python must not flush again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except (UserError, OSError, ValueError) as error:
        logging.debug("where it happened", exc_info=True)
        fail(f"Error: {error}", FAILED)
    except KeyboardInterrupt:
        fail("interrupted; the same command goes on where it can", INTERRUPTED)


class UsageError(Exception):
    """A mistake in the command line that the flags themselves do not see."""


def no_arguments(argv: list[str], hint: str = "") -> None:
    """Refuse arguments that are no flags.

    Raises:
      UsageError: there is one.
    """
    if len(argv) > 1:
        raise UsageError(f"unknown argument: {argv[1]}" + (f"; {hint}" if hint else ""))


def fail(message: str, code: int) -> NoReturn:
    """Print a line on stderr and leave.

    Raises:
      SystemExit: with the code; with the message itself, which Python prints, where that is 1.
    """
    if code != FAILED:
        print(message, file=sys.stderr)
    raise SystemExit(message if code == FAILED else code)


def _first_cause(error: Exception) -> str:
    """Return the message of an error in the flags; ml_collections hides it at the end of a traceback."""
    text = str(error).strip()
    return re.sub(r"^[\w.]*\.", "", text.splitlines()[-1]) if "Traceback" in text else text
