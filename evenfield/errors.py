"""Errors that say what is wrong, where, and what to do next."""


class EvenfieldError(Exception):
    """Something that a user can mend.

    Args:
        problem: What is wrong: the object and its value.
        fix: The next step, as an instruction.
    """

    exit_code = 2

    def __init__(self, problem: str, *, fix: str) -> None:
        super().__init__(problem, fix)
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.problem}\n  What to do: {self.fix}"


class InputError(EvenfieldError, ValueError):
    """A value, a table or a file that was given cannot be used (exit code 2)."""


class StorageError(EvenfieldError, OSError):
    """The disk did not take or give what was asked (exit code 3). Nothing partial is left."""

    exit_code = 3

    def __str__(self) -> str:
        return EvenfieldError.__str__(self)


class EvenfieldWarning(UserWarning):
    """A stated fallback was taken; the text names the rows or units and the consequence."""
