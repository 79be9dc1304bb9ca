"""``ciphermq keys``: whose keys are known, how, and what to do when one changes."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ciphermq.cli.access import Access, connected, load_identity, with_access
from ciphermq.cli.common import JsonOption, home_directory, run
from ciphermq.cli.output import moment, print_fields, print_json, print_table, report

if TYPE_CHECKING:
    from ciphermq.client.identity import Identity
    from ciphermq.client.trust import Known
    from ciphermq.directory.records import VerifiedRecord

_ClientArgument = Annotated[
    str | None,
    typer.Argument(metavar="[NAME]", help="A client.  [default: oneself]", show_default=False),
]
_OfflineOption = Annotated[
    bool, typer.Option("--offline", help="Tell what is remembered; don't ask the broker.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Public keys: one's own and those of others.")
    group.command("list")(with_access(list_))
    group.command()(with_access(show))
    group.command()(with_access(fingerprint))
    group.command()(with_access(trust))
    group.command()(with_access(forget))
    group.command()(with_access(renew))
    group.command()(make)
    group.command()(with_access(offer))
    app.add_typer(group, name="keys")


def list_(access: Access, as_json: JsonOption = False) -> None:
    """Everybody whose key this identity has ever seen, or for CipherMQ 1.x has confirmed."""
    from ciphermq.client.layout import TRUST
    from ciphermq.client.trust import TrustFile

    trust_file = TrustFile(_own_path(access) / TRUST)
    known, pins = trust_file.clients(), trust_file.onex_pins()
    entries = [
        {"client": name, **_remembered(known.get(name)), "one_x_key": pins.get(name)}
        for name in sorted(known.keys() | pins.keys())
    ]
    if as_json:
        print_json(entries)
        return
    rows = [
        (
            entry["client"],
            entry["trusted"],
            entry["version"],
            _short(entry["certificate_key"]),
            _short(entry["one_x_key"]),
        )
        for entry in entries
    ]
    print_table(("client", "trusted", "version", "certificate key", "1.x key"), rows)


def show(
    access: Access,
    name: _ClientArgument = None,
    offline: _OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """A client's key: what is remembered of it, and what the broker says now."""
    from ciphermq.client import view
    from ciphermq.client.layout import TRUST
    from ciphermq.client.trust import TrustFile
    from ciphermq.errors import CipherMQError, TransportError, UnknownReceiver

    path = _own_path(access)
    own = view.describe(path, _now_ms())
    if name is None or name == own["name"]:
        keys = own["sealing_keys"]
        about = {
            "client": own["name"],
            "suite": own["suite"],
            "key_id": keys[0],
            "former_keys": len(keys) - 1,
            "version": own["key_record_version"],
            "not_after": own["key_record_not_after"],
            "certificate_key": own["certificate_key_sha256"],
        }
        _print(about, as_json)
        return
    about = {"client": name}
    problem: CipherMQError | None = None
    if not offline:
        try:
            about |= _described(_ask_for(access, load_identity(access), name))
        except TransportError as error:
            print(f"ciphermq: the broker could not be asked: {error}", file=sys.stderr)
        except CipherMQError as error:
            problem = error
    trust_file = TrustFile(path / TRUST)
    known, pin = trust_file.known(name), trust_file.onex_pin(name)
    if known is not None:
        about |= _remembered(known)
    if pin is not None:
        about["one_x_key"] = pin
        if isinstance(problem, UnknownReceiver):
            problem = None  # of cmq/2 it is not, and need not be
    elif problem is None and len(about) == 1:
        problem = UnknownReceiver(f"nothing is remembered of {name!r}: it was never sent to")
    if len(about) > 1:
        _print(about, as_json)
    if problem is not None:
        raise problem


def fingerprint(
    access: Access,
    name: _ClientArgument = None,
    offline: _OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """The fingerprint of a client's certificate key, for two people to compare."""
    from ciphermq.client import view
    from ciphermq.client.layout import TRUST
    from ciphermq.client.trust import TrustFile
    from ciphermq.directory.records import fingerprint as spell
    from ciphermq.errors import UnknownReceiver

    path = _own_path(access)
    own = view.describe(path, _now_ms())
    name = name or own["name"]
    if name == own["name"]:
        digest, how = own["certificate_key_sha256"], "own"
        if digest is None:
            raise UnknownReceiver(f"{name!r} has no certificate yet, so it has no fingerprint")
    else:
        known = TrustFile(path / TRUST).known(name)
        if known is not None:
            digest, how = known.pin, _how(known)
        elif offline:
            raise UnknownReceiver(f"nothing is remembered of {name!r}: ask without --offline")
        else:
            record = _ask_for(access, load_identity(access), name)
            digest, how = record.certificate_key_sha256.hex(), "on first sight"
    if as_json:
        print_json({"client": name, "certificate_key": digest, "trusted": how})
        return
    print(f"{name} ({how}):\n  {spell(bytes.fromhex(digest))}")


def trust(
    access: Access,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A client.")],
    fingerprint: Annotated[
        str | None,
        typer.Option(
            "--fingerprint",
            help="The certificate key's fingerprint, as NAME told you by another road.",
            show_default=False,
        ),
    ] = None,
    one_x: Annotated[
        bool,
        typer.Option("--one-x", help="The fingerprint is of NAME's key for CipherMQ 1.x."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Believe that NAME has the certificate key it shows now: after comparing fingerprints.

    With --fingerprint that key is trusted, and no other; the broker is not asked.
    """
    from ciphermq.directory import records
    from ciphermq.errors import UsageError

    if one_x:
        if fingerprint is None:
            raise UsageError("nobody vouches for a key of CipherMQ 1.x: say --fingerprint")
        digest = records.parse_fingerprint(fingerprint)
        _trust_file(access).trust_onex(name, digest)
        if as_json:
            print_json({"client": name, "one_x_key": digest.hex(), "trusted": "by hand"})
        else:
            print(f"Trusted from now on as the 1.x key of {name}:\n  {digest.hex()}")
        return
    if fingerprint is not None:
        digest = records.parse_fingerprint(fingerprint)
        trust_file = _trust_file(access)
    else:
        # Asked first, so that nobody waits for a connection to be told to say --fingerprint.
        _check_somebody_is_there()
        identity = load_identity(access)
        trust_file = identity.trust
        digest = _offered(access, identity, name)
        known = trust_file.known(name)
        if known is not None and known.pin != digest.hex():
            before = records.fingerprint(bytes.fromhex(known.pin))
            print(f"{name} had the key\n  {before}", file=sys.stderr)
        print(f"{name} shows the key\n  {records.fingerprint(digest)}", file=sys.stderr)
        typer.confirm(f"Did {name} tell you this fingerprint itself?", abort=True, err=True)
    trust_file.trust(name, digest, _now_ms())
    if as_json:
        print_json({"client": name, "certificate_key": digest.hex(), "trusted": "by hand"})
        return
    print(f"Trusted from now on for {name}:\n  {records.fingerprint(digest)}")


def forget(
    access: Access,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A client.")],
    as_json: JsonOption = False,
) -> None:
    """Trust no key of NAME for CipherMQ 1.x any more: nothing is sealed to it as 1.x does.

    Certificate keys are not forgotten, since then a broker could bring in another: `keys trust`
    puts one in the place of another.
    """
    from ciphermq.errors import UnknownReceiver

    if not _trust_file(access).forget_onex(name):
        raise UnknownReceiver(f"no 1.x key of {name!r} is trusted")
    report(f"The 1.x key of {name} is forgotten.", {"client": name}, as_json=as_json)


def renew(
    access: Access,
    new_key: Annotated[
        bool,
        typer.Option(
            "--new-key",
            help="Take a new sealing key into use; the former still opens what was sealed to it.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Sign a new record of one's own key, and register it with the broker.

    Without a broker the record is kept, and the command fails: run it again, or receive.
    """
    from ciphermq.cli.errors import exit_status
    from ciphermq.errors import TransportError
    from ciphermq.model import keyrecord
    from ciphermq.pki import dates

    identity = load_identity(access)
    made = identity.rotate_key(_now_ms()) if new_key else identity.make_key_record(_now_ms())
    said = keyrecord.parse(made).record
    failure = None
    try:
        run(_register(access, identity))
    except TransportError as error:
        failure = error
        print(f"ciphermq: not registered yet: {error}", file=sys.stderr)
    if as_json:
        print_json(
            {
                "client": said.client,
                "key_id": said.key_id,
                "version": said.version,
                "not_after": moment(said.not_after_ms),
                "registered": failure is None,
            }
        )
    else:
        where = "is registered" if failure is None else "will be registered when it next receives"
        print(
            f"The key {said.key_id.hex()} of {said.client}, until "
            f"{dates.spell(said.not_after_ms)}, {where}."
        )
    if failure is not None:
        raise typer.Exit(exit_status(failure))


def make(
    out: Annotated[
        Path, typer.Option("--out", help="Where to; made when missing.", show_default=False)
    ],
    as_json: JsonOption = False,
) -> None:
    """Make a pair of X25519 keys as receivers of CipherMQ 1.x have them, in two files."""
    from ciphermq.custody import onex

    key = onex.OnexKey.create(out)
    private, public = out / onex.PRIVATE_FILE, out / onex.PUBLIC_FILE
    digest = onex.fingerprint(key.public_key)
    if as_json:
        print_json({"private": str(private), "public": str(public), "fingerprint": digest})
        return
    print(f"Made {private} (secret) and {public}.")
    print(f"Its fingerprint, for senders to compare:\n  {digest}")


def offer(access: Access, as_json: JsonOption = False) -> None:
    """Give out one's key for messages of CipherMQ 1.x, so that its senders can seal to it.

    For an identity whose identity.toml enables [one_x], at a broker that does too.
    """
    from ciphermq.custody import onex

    identity = load_identity(access)

    async def work() -> None:
        async with connected(access, identity) as client:
            await client.onex.register_key()

    run(work())
    reader = identity.onex
    digest = onex.fingerprint(reader.key.public_key) if reader is not None else None
    if as_json:
        print_json({"client": identity.name, "fingerprint": digest})
        return
    print(f"Registered the 1.x key of {identity.name}. Its fingerprint:\n  {digest}")


# --- helpers --------------------------------------------------------------------------------------


def _now_ms() -> int:
    return int(time.time() * 1000)


def _check_somebody_is_there() -> None:
    from ciphermq.errors import UsageError

    # Without a person or a fingerprint, whatever a broker shows would be trusted.
    if not sys.stdin.isatty():
        raise UsageError("nobody is at a terminal to compare fingerprints: say --fingerprint")


def _own_path(access: Access) -> Any:
    from ciphermq.client import places

    return places.find(access.identity, home_directory(access.home))


def _trust_file(access: Access) -> Any:
    from ciphermq.client.layout import TRUST
    from ciphermq.client.trust import TrustFile

    return TrustFile(_own_path(access) / TRUST)


def _ask_for(access: Access, identity: Identity, name: str) -> VerifiedRecord:
    """The newest record of `name`, verified and remembered."""

    async def question() -> VerifiedRecord:
        async with connected(access, identity) as client:
            return await client.key_record(name)

    return run(question())


async def _register(access: Access, identity: Identity) -> None:
    async with connected(access, identity) as client:
        await client.register_key()


def _offered(access: Access, identity: Identity, name: str) -> bytes:
    """The certificate key that `name` shows now."""
    from ciphermq.errors import CertificateKeyChanged

    try:
        return _ask_for(access, identity, name).certificate_key_sha256
    except CertificateKeyChanged:
        known = identity.trust.known(name)
        if known is None or known.offered is None:
            raise
        return bytes.fromhex(known.offered)


def _described(record: VerifiedRecord) -> dict[str, Any]:
    return {
        "suite": record.suite.name,
        "key_id": record.key_id.hex(),
        "not_before": moment(record.not_before_ms),
        "not_after": moment(record.not_after_ms),
    }


def _remembered(known: Known | None) -> dict[str, Any]:
    if known is None:
        return dict.fromkeys(("version", "certificate_key", "trusted", "since", "refused_key"))
    return {
        "version": known.version,
        "certificate_key": known.pin,
        "trusted": _how(known),
        "since": moment(known.since_ms),
        "refused_key": known.offered,
    }


def _how(known: Known) -> str:
    return "by hand" if known.by_hand else "on first sight"


def _short(digest: str | None) -> str | None:
    return None if digest is None else f"{digest[:16]}…"


def _print(about: dict[str, Any], as_json: bool) -> None:
    from ciphermq.directory.records import fingerprint as spell

    if as_json:
        print_json(about)
        return
    for digest in ("certificate_key", "refused_key"):
        if about.get(digest) is not None:
            about[digest] = spell(bytes.fromhex(about[digest]))
    print_fields(about)
