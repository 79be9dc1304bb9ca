"""Files of the ``[tls]`` section that are replaced while the server runs.

One keeper has what counts now, and everybody asks it: listeners for the context of each new
handshake, the reception and the key directory for the judgement of certificates. New files are read
beside that, looked at whole, and take its place in one assignment; whatever is wrong with them,
what was there before stays. So a file can be replaced at any moment and in any order: half of a
change is refused, and the next look finds the rest.

A newer revocation list is the exception. It counts whatever is wrong with the other files, since
whoever is on it must not stay because of them.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from ciphermq.errors import IdentityError, ReceiverFault
from ciphermq.pki import dates, names, pem
from ciphermq.pki.revocation import RevocationList
from ciphermq.pki.verify import ChainVerifier
from ciphermq.server import trust
from ciphermq.server.trust import Trust
from ciphermq.settings import TlsSection
from ciphermq.telemetry import Counters, get_logger

_Stamp = tuple[int, int, int, int]
_Stamps = tuple[_Stamp | None, ...]

Changed = Callable[[Trust, Trust], Awaitable[None]]
"""Told of what counted before, and of what counts now."""

_NEVER: Final = 0.0
_SETTLE: Final = 0.2
"""Seconds that somebody who replaces several files gets to do so."""

_log = get_logger("server")


class TrustKeeper:
    """What counts now, and how it gets replaced."""

    def __init__(
        self, files: TlsSection, *, tls_1_2: bool = False, now_ms: Callable[[], int]
    ) -> None:
        """Reads the files; raises as `trust.load`."""
        self._files = files
        self._tls_1_2 = tls_1_2
        self._now_ms = now_ms
        # Before they are read: what is replaced meanwhile will look new.
        self._seen = self._stamps()
        self.current: Trust = trust.load(files, tls_1_2=tls_1_2)
        self.counters = Counters("tls_reloads", "tls_reloads_failed", "clients_shut_out")
        self._refused: str | None = None
        """Why the files that are there now do not count; None: they do."""
        self._asked = False
        self._woken = asyncio.Event()

    # --- what counts now --------------------------------------------------------------------

    def context(self) -> ssl.SSLContext:
        """For a handshake that begins now."""
        return self.current.context

    def verifier(self) -> ChainVerifier:
        """Judges who signed what."""
        return self.current.verifier

    def check_client(self, certificate: bytes, context: ssl.SSLContext) -> None:
        """`CertificateError` for a client's certificate (DER) that passed a handshake by `context`
        and is not let in all the same."""
        current = self.current
        current.check_client(certificate)
        # A handshake may have begun before the files were replaced, and ended after the connections
        # there were had been judged by the new ones. And a list may count that no context has.
        current.judge(certificate, issuer=context is not current.context)

    # --- its replacement --------------------------------------------------------------------

    def ask(self) -> None:
        """Have the files read now, whether they look new or not."""
        self._asked = True
        self._woken.set()

    async def watch(self, seconds: float, changed: Changed) -> None:
        """Look every so many `seconds`, and when asked to; 0: only then. Ends when cancelled."""
        while True:
            try:
                async with asyncio.timeout(None if seconds == _NEVER else seconds):
                    await self._woken.wait()
            except TimeoutError:
                pass
            self._woken.clear()
            asked, self._asked = self._asked, False
            before = self.current
            try:
                if await self._look(asked=asked):
                    await changed(before, self.current)
            except Exception:  # noqa: BLE001  (a fault here must not end the watching)
                _log.error("the certificate files could not be looked after", exc_info=True)

    async def _look(self, *, asked: bool) -> bool:
        """Whether there is something new, and it counts from now on."""
        # Not here and now: the files may be on a disk that hangs.
        stamps = await asyncio.to_thread(self._stamps)
        same = stamps == self._seen and not asked
        # What was refused is tried again: permissions, a clock or a disk may have been put right.
        if same and self._refused is None:
            return False
        self._seen = stamps
        try:
            new = await asyncio.to_thread(self._load)
        except Exception as error:  # noqa: BLE001  (whatever it is, there is something that works)
            reason = str(error) or repr(error)
            if not (same and reason == self._refused):
                # A certificate and its key are two files: who writes them gets a moment for both.
                await asyncio.sleep(_SETTLE)
                if await self._moved(stamps):
                    return False
                self._refuse(reason)
            return await self._take_lists()
        if await self._moved(stamps):
            return False
        self.current, self._refused = new, None
        self.counters.add("tls_reloads")
        self._say(new)
        return True

    def _refuse(self, reason: str) -> None:
        self._refused = reason
        self.counters.add("tls_reloads_failed")
        _log.error(
            "the new certificate files were not taken over, the former ones still count",
            reason=reason,
        )

    async def _take_lists(self) -> bool:
        """Judge by newer revocation lists of the authorities that count, if there are any."""
        verifier = self.current.verifier
        newer = await asyncio.to_thread(self._newer_lists, verifier)
        for crl in newer:
            verifier.use(crl)
        if newer:
            number = verifier.crl_number
            _log.warning("the newer revocation list counts all the same", number=number)
        return bool(newer)

    def _newer_lists(self, verifier: ChainVerifier) -> list[RevocationList]:
        """Those in the file that `verifier` can judge by, and does not yet."""
        path = self._files.crl_path
        try:
            ders = pem.blocks("X509 CRL", path.read_bytes()) if path is not None else ()
        except (OSError, IdentityError):
            return []  # which was said with the rest
        in_use = {crl.issuer: crl for crl in verifier.revocation_lists}
        found = []
        for der in ders:
            try:
                crl = RevocationList(der, verifier.authorities)
                crl.check_current(self._now_ms())
            except ReceiverFault:
                continue  # it is no list of ours, or an old one; the next may be
            before = in_use.get(crl.issuer)
            if before is None or (crl.number >= before.number and crl.der != before.der):
                in_use[crl.issuer] = crl
                found.append(crl)
        return found

    async def _moved(self, stamps: _Stamps) -> bool:
        """Whether the files were replaced while they were read; then they are read again."""
        if await asyncio.to_thread(self._stamps) == stamps:
            return False
        self._seen = ()  # what was read is forgotten, so that whatever is there now is new
        asyncio.get_running_loop().call_later(_SETTLE, self._woken.set)
        return True

    def _load(self) -> Trust:
        new = trust.load(self._files, tls_1_2=self._tls_1_2)
        new.check_dates(self._files.cert_path, self._now_ms())
        # An older list would let in again who was shut out since.
        new.verifier.check_not_older(self.current.verifier)
        return new

    def _say(self, new: Trust) -> None:
        _log.info(
            "new certificate files count from now on",
            valid_until=dates.spell(dates.to_ms(new.certificate.not_valid_after_utc)),
            serial=names.spell_serial(new.certificate.serial_number),
            authorities=len(new.verifier.authorities),
            revocation_list=new.verifier.crl_number,
        )
        for warning in new.warnings(self._now_ms()):
            _log.warning(warning)

    def _stamps(self) -> _Stamps:
        """What a replaced file does not share with the one before."""
        files = self._files
        paths = (files.cert_path, files.key_path, files.ca_cert_path, files.crl_path)
        return tuple(_stamp(path) for path in paths)


def _stamp(path: Path | None) -> _Stamp | None:
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    # The last is nobody's to set: archives are unpacked with the times of long ago.
    return found.st_mtime_ns, found.st_ino, found.st_size, found.st_ctime_ns
