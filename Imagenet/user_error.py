"""The one exception that is meant for the person at the terminal."""


class UserError(Exception):
  """A wrong flag, file or folder: what is wrong, where, and the remedy.

  Command lines print the message as one line and exit with status 1; any other
  exception is a defect of this project and keeps its traceback.
  """
