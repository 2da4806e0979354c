"""Cases and checks that every op and every implementation of one is run through.

A case is the argument list of one call of the registered op. Each op's cases are in the file of
its name here: a function ``cases(device)``.
"""

from fastprune.testing.ops._case import OpCase, cases_of
from fastprune.testing.ops._check import check_compiled, check_implementation, check_registration

__all__ = [
    "OpCase",
    "cases_of",
    "check_compiled",
    "check_implementation",
    "check_registration",
]
