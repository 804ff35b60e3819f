"""zuko, imported without its side effect.

Importing zuko turns off torch's argument validation for the whole process. Every module of this package takes zuko
from here, where the flag is put back. (zuko also gives every torch transform a method ``call_and_ladj``, which is
used: a value and the log-determinant of the Jacobian in one pass.)
"""

from torch.distributions import Distribution

_validate_args = Distribution._validate_args
try:
    import zuko
    import zuko.flows
    import zuko.lazy
    import zuko.transforms
finally:
    Distribution._validate_args = _validate_args

__all__ = ["zuko"]
