"""What the command lines of this folder share in reading their arguments."""

import argparse

from shared_terminal import UserError


class ArgumentParser(argparse.ArgumentParser):
  """The standard parser, with errors of one line and exit status 1."""

  def error(self, message):
    raise UserError(f'{message}; see --help')


def check_range(args, flag, smallest, largest):
  """Raises `UserError` unless the value of `flag` is in the range."""
  value = getattr(args, flag)
  if not smallest <= value <= largest:
    raise UserError(
        f'--{flag} {value}: give a number from {smallest} to {largest}')
