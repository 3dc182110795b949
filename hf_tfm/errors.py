"""The one error a person can mend: command lines print it as one line and exit with code 2."""


class InputError(ValueError):
    """Something a person gave (a file, a field, a setting) is wrong.

    The message is one line that says what is wrong, where, and how to mend it. Library code raises it; every script
    and the `hf-tfm` command print it as `error: …` on standard error and exit with code 2, with nothing written.
    """
