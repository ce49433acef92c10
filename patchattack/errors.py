"""The one exception that a user is meant to read."""


class InputError(Exception):
    """Bad input: a key, a file, a value or a device that cannot be used.

    The message is one line and says what was expected, what was got and how to mend it. Entries print it
    without a traceback and exit with status 2.
    """
