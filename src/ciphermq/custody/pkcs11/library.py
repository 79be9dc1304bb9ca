"""The door to python-pkcs11, and what its errors mean.

The types of python-pkcs11 stay in this package. What its errors become::

    the device is gone, or its session is       `Stale`: open another session, once
    the device is not there                     `TokenAway`: it may come back
    the PIN is wrong, expired, locked           `PinError`: never tried again
    everything else                             `TokenError`, with the module's own word
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from pkcs11 import exceptions

from ciphermq.errors import PinError, TokenAway, TokenError

MODULE_VARIABLE: Final = "CIPHERMQ_PKCS11_MODULE"

KNOWN_MODULES: Final = (
    "/usr/lib/x86_64-linux-gnu/opensc-pkcs11.so",
    "/usr/lib/aarch64-linux-gnu/opensc-pkcs11.so",
    "/usr/lib64/opensc-pkcs11.so",
    "/usr/lib/opensc-pkcs11.so",
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/lib/libsofthsm2.so",
)
"""Where distributions put the modules of smart cards (OpenSC: Nitrokey HSM) and of SoftHSM."""

_GONE: Final = (
    exceptions.DeviceError,
    exceptions.DeviceMemory,
    exceptions.DeviceRemoved,
    exceptions.FunctionFailed,
    exceptions.GeneralError,
    exceptions.KeyHandleInvalid,
    exceptions.ObjectHandleInvalid,
    exceptions.OperationActive,
    exceptions.OperationNotInitialized,
    exceptions.SessionClosed,
    exceptions.SessionHandleInvalid,
    exceptions.SlotIDInvalid,
    exceptions.TokenNotPresent,
    exceptions.TokenNotRecognised,
    exceptions.UserNotLoggedIn,
)
"""What devices say when they were pulled out, or put back meanwhile: no two say the same. The
general ones are among them, since OpenSC and SoftHSM use them for a vanished token."""

_PIN: Final = (
    exceptions.PinExpired,
    exceptions.PinIncorrect,
    exceptions.PinInvalid,
    exceptions.PinLenRange,
    exceptions.PinLocked,
    exceptions.PinTooWeak,
    exceptions.UserPinNotInitialized,
)


_CONTENT: Final = (
    exceptions.DataInvalid,
    exceptions.DataLenRange,
    exceptions.EncryptedDataInvalid,
    exceptions.EncryptedDataLenRange,
    exceptions.FunctionFailed,
    exceptions.GeneralError,
)
"""What devices say to something that does not decrypt. SoftHSM says no more than that it failed,
as of a token that is gone."""


class Stale(Exception):
    """A session is of no use any more. Never leaves this package."""


def load(path: str) -> Any:
    """The module at `path`, initialised for this process; `TokenError` when there is none.

    Not python-pkcs11's own register of modules: a forked child would find its parent's there.
    """
    from pkcs11 import _pkcs11

    if not Path(path).is_file():
        raise TokenError(
            f"there is no PKCS#11 module at {path}: install it (Debian: opensc-pkcs11 for smart "
            "cards, softhsm2 for SoftHSM), or name another"
        )
    _forget_parents(path)
    with explained(f"the module {path}"):
        module = _pkcs11.lib(path)
    _loaded[path] = (os.getpid(), module)
    return module


def initialise(module: Any, path: str) -> None:
    """Have the module at `path` ready, if it isn't: it may have failed to begin anew."""
    if not module.initialized:
        with explained(f"the module {path}"):
            module.initialize()


def finalise(module: Any) -> None:
    """End all that the module does in this process."""
    with suppress(exceptions.PKCS11Error):  # it may have ended by itself
        module.finalize()


_loaded: dict[str, tuple[int, Any]] = {}
"""What was loaded, and in which process. Not `Guarded`: a child may be forked while another thread
holds a lock, and one key is set by one thread."""


def _forget_parents(path: str) -> None:
    """Close what this process inherited at its fork: in this process's memory, not its parent's.

    PKCS#11 has a child initialise the module anew; SoftHSM refuses until the copy is closed."""
    pid, inherited = _loaded.get(path, (os.getpid(), None))
    if inherited is not None and pid != os.getpid():
        with suppress(exceptions.PKCS11Error):
            inherited.finalize()


def known() -> list[str]:
    """The modules found on this machine; the one in $CIPHERMQ_PKCS11_MODULE alone, if set."""
    if named := os.environ.get(MODULE_VARIABLE):
        return [named]
    return [path for path in KNOWN_MODULES if Path(path).is_file()]


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn the module's errors into ours, as the table above says; `what` begins the sentence."""
    try:
        yield
    except _PIN as error:
        raise PinError(_pin_sentence(what, error)) from error
    except _GONE as error:
        raise Stale(f"{what}: {spelled(error)}") from error
    except exceptions.PKCS11Error as error:
        raise TokenError(f"{what} refuses: {spelled(error)}") from error
    except AttributeError as error:
        # How python-pkcs11 says that an object lacks what would make the call possible.
        raise TokenError(f"{what} can't do that: {error}") from error


def may_be_the_content(error: Exception) -> bool:
    """Whether `error`, which `explained` made, may be about what was to be decrypted, and not about
    the device."""
    return isinstance(error.__cause__, _CONTENT)


def _pin_sentence(what: str, error: Exception) -> str:
    if isinstance(error, exceptions.PinLocked):
        return f"{what}: its PIN is locked; unlock it with its own tool and the SO-PIN"
    if isinstance(error, exceptions.UserPinNotInitialized):
        return f"{what} has no user PIN yet: set one with its own tool"
    return (
        f"{what} refuses the PIN ({spelled(error)}). It is not tried again, since a few wrong "
        "tries lock a token: put the right one in place and start anew"
    )


def away(what: str) -> TokenAway:
    """The error for a token that isn't there."""
    return TokenAway(
        f"{what} is not there: plug it in; what runs and waits for it goes on by itself then"
    )


def spelled(error: Exception) -> str:
    """A module's error in words: its PKCS#11 name, and what else it says."""
    words = re.findall("[A-Z][a-z]+|[A-Z]+(?![a-z])", type(error).__name__)
    said = str(error)
    return " ".join(words).lower() + (f" ({said})" if said else "")
