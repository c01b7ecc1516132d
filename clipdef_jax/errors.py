"""The two kinds of failure a user can cause, told apart from bugs."""


class UserError(Exception):
    """A mistake in what the user gave us: shown as one line, without a stack trace.

    The message names the file or field, the value, what was expected and what to do.
    """


class BadRecord(Exception):
    """One record of a stream that cannot be used: skipped, counted and listed, never fatal.

    Args:
      uid: the record's identifier.
      reason: one line that says what is wrong with it.
    """

    def __init__(self, uid: str, reason: str):
        super().__init__(uid, reason)
        self.uid = uid
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.uid}: {self.reason}"
