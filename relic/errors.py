"""The one exception that means: the user can mend this."""


class InputError(ValueError):
    """Bad input (a flag, a file, a folder). The message is one line: what is wrong, where, and the way out.

    Command lines print it without a traceback; every other exception is a bug and keeps its traceback.
    """
