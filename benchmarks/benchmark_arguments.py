"""What the command lines of benchmarks of the record builder share."""

import argparse

from tools_command_line import ArgumentParser, InputError


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
  """Raises `InputError` if a number is too small.

  Args:
    args: the parsed command line.
    smallest: a dict from flag, without its dashes, to int.
  """
  for flag, number in smallest.items():
    if getattr(args, flag) < number:
      raise InputError('--{} {}: give a number from {} on'.format(
          flag, getattr(args, flag), number))
