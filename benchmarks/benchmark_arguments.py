"""What the command lines of the benchmarks share."""

import argparse

from shared_terminal import UserError
from tools_arguments import ArgumentParser


def make_parser(description):
  """A parser that shows `description` (str) as it is and knows `--folder`."""
  parser = ArgumentParser(
      description=description,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--folder', metavar='DIR',
                      help='where the data go, which are removed in the end (a '
                      'temporary folder)')
  return parser


def check_smallest(args, smallest):
  """Raises `UserError` if a number is too small.

  Args:
    args: the parsed command line.
    smallest: a dict from flag, without its dashes, to int.
  """
  for flag, number in smallest.items():
    value = getattr(args, flag)
    if value < number:
      raise UserError(f'--{flag} {value}: give a number from {number} on')
