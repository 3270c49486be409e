"""The one error that a user's mistake raises: it names the value, the place, and what would be legal.

Commands print its message on one line and leave with exit code 2. Anything else that escapes is a bug of ours.
"""


class InputError(ValueError):
    """Input from outside (flag, file, plan, degree) that cannot be used; the message holds the fix."""
