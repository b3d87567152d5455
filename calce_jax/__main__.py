"""The program `calce`, also as `python -m calce_jax`: Ctrl-C is handled before anything large is imported."""

from calce_jax.commands.interrupts import end_interrupted, interrupt_ends_process
from calce_jax.commands.process import end_process, garbage_kept, open_missing_streams


def main() -> None:
    """Run the command of `sys.argv`, see `calce_jax.commands.cli.main`.

    Raises:
      SystemExit: with an exit code of `calce_jax.commands.runner`.
    """
    interrupt_ends_process()
    open_missing_streams()
    try:
        with garbage_kept():
            from calce_jax.commands import cli  # noqa: PLC0415 - takes a fraction of a second

        cli.main()
        end_process()
    except KeyboardInterrupt:  # in the moment between two handlers
        end_interrupted()


if __name__ == "__main__":
    main()
