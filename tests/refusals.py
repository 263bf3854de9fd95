"""What a user is told where something is wrong."""

import pytest

from shared_terminal import UserError


def refused(function, *args, **kwargs):
  """The message of the UserError that a call ends in: one line."""
  with pytest.raises(UserError) as error:
    function(*args, **kwargs)
  assert '\n' not in str(error.value)
  return str(error.value)
