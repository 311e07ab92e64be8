"""The command line: the only package that prints. Exit code 0: every check passed; 1: one was missed; 2: could not run.

The work runs in a child process whose output goes to a log, so the terminal shows progress, the verdict and nothing
else; this process imports nothing heavy.
"""

from edgeredux.cli.start import main

__all__ = ["main"]
