"""The one exception of the command line: something the user can mend."""


class UserError(Exception):
    """Wrong input to a command. The message says what must hold, what was received and what to do; no traceback."""
