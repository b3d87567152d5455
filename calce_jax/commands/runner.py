"""Run a command's main function: parse its flags, and print errors of the user without a traceback.

Exit codes: 2 for a usage error, 1 if the command failed, 130 after Ctrl-C, 143 after SIGTERM.
"""

import logging as standard_logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from types import FrameType
from typing import Any, NoReturn

from absl import flags, logging

from calce_jax.commands.interrupts import SIGNAL_LINES, TerminatedError, end_interrupted, ends_at_signals, is_importing
from calce_jax.errors import OneHostError, UsageError, UserError

TEXT_FLAGS = ("query",)  # in which "~" is no folder
TRUE_WORDS, FALSE_WORDS = ("true", "yes", "on", "1", "t", "y"), ("false", "no", "off", "0", "f", "n")
BOOLEAN_WORDS = TRUE_WORDS + FALSE_WORDS
DEFAULT_VERBOSITY = -1
VERBOSITY_HELP = "logging level: -1 warnings, 0 information, 1 debugging, with the traceback of an error"
USAGE, FAILED, INTERRUPTED, TERMINATED = 2, 1, 128 + signal.SIGINT, 128 + signal.SIGTERM

# By the name of the command: what decides its memory.
MEMORY_REMEDIES = {
    "train": "lower config.data.batch, config.data.eval_batch and config.data.group, or set config.model.remat=full",
    "infer": "lower --batch and --group",
    "cache_features": "lower config.data.eval_batch",
    "search": "lower --batch",
    "web": "lower --batch",
}

Parse = Callable[[flags.FlagValues, list[str]], list[str]]


def run_main(
    main: Callable[[list[str]], Any], argv: list[str], flag_values: flags.FlagValues, parse: Parse | None = None
) -> None:
    """Parse the flags, call `main` with the remaining arguments, and turn errors into a message and an exit code.

    Args:
      main: takes the program's name and the arguments that are not flags.
      argv: the program's name and its arguments.
      flag_values: the command's flags.
      parse: called as `parse(flag_values, argv)` in place of `flag_values(argv)`.

    Raises:
      SystemExit: with one of the exit codes above; after success the function returns.
    """
    define_verbosity(flag_values)
    set_up_process()
    sys.argv = argv
    try:
        argv = [argv[0], *map(expand_home, argv[1:])]
        check_switches(argv[1:], {name for name in flag_values if flag_values[name].boolean})
        remaining = parse(flag_values, argv) if parse else flag_values(argv)
    except (flags.Error, UserError) as error:
        fail(f"{argv[0]}: {first_cause(error)}; see `{argv[0]} --help`", USAGE)
    set_verbosity(int(flag_values["verbosity"].value or 0))
    with exit_codes(argv[0]):
        main(remaining)


@contextmanager
def exit_codes(program: str) -> Iterator[None]:
    """Turn errors and signals into a message and an exit code.

    Args:
      program: its name, in front of the message of a usage error.

    Raises:
      SystemExit: with one of the exit codes above; without an error the context ends normally.
    """
    try:
        with _signals_raise():
            yield
            print(end="", flush=True)  # there may be no stdout
    except UsageError as error:
        fail(f"{program}: {error}", USAGE)
    except BrokenPipeError:
        discard_stdout()
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OneHostError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise AbruptExit(FAILED) from None
    except (UserError, OSError, ValueError) as error:
        logging.debug("traceback of the error", exc_info=True)
        fail(f"Error: {error}", FAILED)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        logging.debug("traceback of the error", exc_info=True)
        fail(
            f"Error: the device has too little memory ({str(error).splitlines()[0]:.200}); {memory_remedy(program)}",
            FAILED,
        )
    except (KeyboardInterrupt, TerminatedError) as signalled:
        number = signal.SIGINT if isinstance(signalled, KeyboardInterrupt) else signal.SIGTERM
        with suppress(OSError):  # a full disk, or a terminal that is gone
            print(SIGNAL_LINES[number], file=sys.stderr)
        raise AbruptExit(128 + number) from None


def discard_stdout() -> None:
    """Write to nowhere from now on: whoever read our output has ended, as `head` does."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())  # Python flushes it again at exit
    os.close(null)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether the device, or the host, could not give a program its memory."""
    # By its name: commands that never import jax end here too.
    return isinstance(error, MemoryError) or (
        type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and "RESOURCE_EXHAUSTED" in str(error)
    )


def memory_remedy(program: str) -> str:
    """Return what to lower for a command that ran out of memory."""
    return MEMORY_REMEDIES.get(re.split(r"[ /]", program.removesuffix(".py"))[-1], "close other programs")


@contextmanager
def end_abruptly() -> Iterator[None]:
    """End the process at once where an `AbruptExit` leaves the context."""
    try:
        yield
    except AbruptExit as end:
        # A thread may be compiling, or a library's be writing: taking the interpreter down under it would crash. With a
        # host lost, JAX would wait for it.
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                print(end="", file=stream, flush=True)
        os._exit(int(str(end.code)))


class AbruptExit(SystemExit):
    """The exit code of a process that must end without taking the interpreter down.

    A signal interrupted it anywhere, perhaps in the middle of native code, or it lost another host.
    """


@dataclass(frozen=True)
class _RaiseSignal:
    """A handler that raises in the main thread, or ends a process of ours that is in the middle of an import."""

    is_own_process: bool

    def __call__(self, number: int, frame: FrameType | None) -> NoReturn:
        # A library in the middle of its import may crash where an exception passes through native code.
        if self.is_own_process and is_importing(frame):
            end_interrupted(number)
        raise KeyboardInterrupt if number == signal.SIGINT else TerminatedError


@contextmanager
def _signals_raise() -> Iterator[None]:
    """While the context lasts, SIGTERM and SIGINT (Ctrl-C) raise in the main thread.

    A context inside another changes nothing: it would not know whose process this is.
    """
    is_inner = isinstance(signal.getsignal(signal.SIGTERM), _RaiseSignal)
    if is_inner or threading.current_thread() is not threading.main_thread():
        yield
        return
    is_own_process = ends_at_signals()
    numbers = [signal.SIGTERM] if signal.getsignal(signal.SIGTERM) != signal.SIG_IGN else []
    if signal.getsignal(signal.SIGINT) == end_interrupted:
        numbers.append(signal.SIGINT)
    previous = {}
    try:
        previous |= {number: signal.signal(number, _RaiseSignal(is_own_process)) for number in numbers}
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def set_up_process() -> None:
    """Set what all commands need before they parse their options, and before they import a library."""
    # Of transformers only tokenizers are used: no advice to install PyTorch. Read when transformers is imported.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)


def set_verbosity(verbosity: int) -> None:
    """Write warnings as plain lines; at verbosity 0 and above, time and place are of use."""
    flags.FLAGS.mark_as_parsed()  # those of absl itself, or it says that logging begins before flags are parsed
    logging.set_verbosity(verbosity)
    if verbosity < 0:
        logging.get_absl_handler().setFormatter(standard_logging.Formatter("%(levelname)s: %(message)s"))


def expand_home(argument: str) -> str:
    """Return an argument with "~" expanded behind "=" and ",", where a shell leaves it; texts are unchanged."""
    name = argument.lstrip("-").partition("=")[0]
    if not argument.startswith("-") or name in TEXT_FLAGS:
        return argument
    return re.sub(r"(?<=[=,])~(?=[/,]|$)", lambda _: os.path.expanduser("~"), argument)


def check_switches(arguments: Sequence[str], switches: Container[str]) -> None:
    """Check that no switch is followed by its value, which would be taken for an argument, and switch it on.

    Args:
      arguments: of a command line.
      switches: the names of boolean flags.

    Raises:
      UsageError: it is.
    """
    for argument, following in pairwise(arguments):
        if argument == "--":
            return
        name = argument.lstrip("-")
        if argument.startswith("-") and name in switches and following.lower() in BOOLEAN_WORDS:
            raise UsageError(f"--{name} {following}: write --{name} or --no{name}, or --{name}={following}")


def define_verbosity(flag_values: flags.FlagValues) -> None:
    """Define --verbosity, which all commands have; absl's own FLAGS have it already."""
    if "verbosity" not in flag_values:
        flags.DEFINE_integer("verbosity", DEFAULT_VERBOSITY, VERBOSITY_HELP, flag_values=flag_values)


def warn_deprecated(old: str, new: str) -> None:
    """Say on stderr that a flag, or a value of one, has another name now; the old one is still accepted."""
    print(f"{old} is deprecated; use {new}", file=sys.stderr)


def no_arguments(argv: list[str], hint: str = "") -> None:
    """Check that a command got flags alone.

    Args:
      argv: the program's name and the arguments that are not flags.
      hint: appended to the message.

    Raises:
      UsageError: there is an argument.
    """
    if len(argv) > 1:
        raise UsageError(f"unknown argument: {argv[1]}" + (f"; {hint}" if hint else ""))


def fail(message: str, code: int) -> NoReturn:
    """Print a message on stderr and exit.

    Raises:
      SystemExit: with the code; for code 1 with the message, which Python then prints itself.
    """
    if code != FAILED:
        print(message, file=sys.stderr)
    raise SystemExit(message if code == FAILED else code)


def first_cause(error: Exception) -> str:
    """Return the message of a flag error; ml_collections puts that of a config file at the end of a traceback."""
    text = str(error).strip()
    if "Traceback" in text:
        return re.sub(r"^[\w.]+: ", "", text.splitlines()[-1])
    if missing := re.findall(r"Flag (--\w+) must have a value other than None", text):
        *others, last = missing
        return f"{', '.join(others)} and {last} are missing" if others else f"{last} is missing"
    if bound := re.fullmatch(r"flag (--[\w.]+)=(.*): \S+ is not (an? )?(.*)", text):
        article = bound[3] or ("an " if bound[4].startswith("i") else "a ")
        return f"{bound[1]}={bound[2]}: must be {article}{bound[4]}"
    if switch := re.fullmatch(r"flag (--[\w.]+)=(.*): \('Non-boolean argument.*", text):
        return f"{switch[1]}={switch[2]}: must be true or false"
    text = re.sub(r"^flags [^:]*=[^:]*: ", "", text)
    number = re.fullmatch(r"flag (--[\w.]+)=(.*): (invalid literal for int|could not convert string to float).*", text)
    return f"{number[1]}={number[2]}: must be a {'whole ' if 'int' in number[3] else ''}number" if number else text
