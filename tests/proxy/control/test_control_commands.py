"""What every command answers, byte for byte, and what it changes."""

from __future__ import annotations

import json
import ssl
from pathlib import Path

import pytest
from paper_office import PaperOffice

from ciphermq.errors import CipherMQError, ConfigError
from ciphermq.proxy.change import AddBackend
from ciphermq.proxy.control.commands import execute, failure, help_text
from ciphermq.proxy.control.lookup import with_addresses
from ciphermq.proxy.control.words import parse
from ciphermq.proxy.model import Backend, Configuration
from support.certificates import Certificates


@pytest.fixture
def office(tmp_path: Path) -> PaperOffice:
    return PaperOffice(tmp_path / "proxy.toml")


async def _say(office: PaperOffice, *lines: str) -> str:
    """The answer to the last of these, as a client sees it."""
    answer = ""
    for line in lines:
        words = parse(line.encode())
        try:
            answer = "".join([text async for text in execute(office, words.words, words.json)])
        except CipherMQError as error:
            answer = failure(error, words.json)
    return answer


async def _silently(office: PaperOffice, *lines: str) -> None:
    for line in lines:
        assert await _say(office, line) == ""


_TWO = (
    "BACKEND ADD rmq1 dc1 127.0.0.1 5672",
    "BACKEND ADD down1 dc2 127.0.0.1 5673",
)


# --- BACKEND, FARM, MAP, DATACENTER ------------------------------------------------------------


async def test_backends(office: PaperOffice) -> None:
    await _silently(
        office,
        "BACKEND ADD rmq1 dc1 127.0.0.1 5672",
        "backend add rmq3 dc1 localhost 5672 send-proxy tls",
        "Backend Add_Dns rmq2 dc2 rmq.example.org 5671 TLS",
        "BACKEND ADD v2 dc1 127.0.0.1 5673 SEND-PROXY-V2",
        "BACKEND ADD six dc1 [::1] 5674",
    )
    assert await _say(office, "BACKEND PRINT") == (
        "rmq1 (dc1): 127.0.0.1 127.0.0.1:5672\n"
        "rmq2 (dc2): rmq.example.org :5671 TLS\n"
        f"rmq3 (dc1): localhost {office.configuration.backends['rmq3'].address}:5672"
        " PROXY PROTOCOL V1 ENABLED TLS\n"
        "six (dc1): ::1 [::1]:5674\n"
        "v2 (dc1): 127.0.0.1 127.0.0.1:5673 PROXY PROTOCOL V2 ENABLED\n"
    )
    assert json.loads(await _say(office, "--json BACKEND PRINT"))[0] == {
        "name": "rmq1",
        "datacenter": "dc1",
        "host": "127.0.0.1",
        "port": 5672,
        "address": "127.0.0.1",
    }


async def test_a_backend_is_replaced_drained_and_deleted(office: PaperOffice) -> None:
    await _silently(
        office,
        *_TWO,
        "BACKEND REPLACE rmq1 dc1 127.0.0.2 5679",
        "BACKEND DRAIN rmq1",
        "BACKEND DELETE down1",
    )
    assert await _say(office, "BACKEND PRINT") == "rmq1 (dc1): 127.0.0.2 127.0.0.2:5679 DRAINED\n"
    await _silently(office, "BACKEND UNDRAIN rmq1", "BACKEND REPLACE_DNS rmq1 dc1 h 1")
    assert await _say(office, "BACKEND PRINT") == "rmq1 (dc1): h :1\n"


async def test_a_host_without_an_address_is_refused(office: PaperOffice) -> None:
    answer = await _say(office, "BACKEND ADD rmq1 dc1 no-such-host.invalid 5672")
    assert answer.startswith("'no-such-host.invalid' has no address: ")
    assert office.configuration == Configuration()


async def test_two_kinds_of_proxy_header_are_refused(office: PaperOffice) -> None:
    line = "BACKEND ADD a dc1 127.0.0.1 5672 SEND-PROXY SEND-PROXY-V2"
    assert "SEND-PROXY or SEND-PROXY-V2" in await _say(office, line)


async def test_health(office: PaperOffice) -> None:
    office.known_health = {
        "down1": {"state": "resting", "failures": 3, "rest": 3.6, "error": "refused"},
        "six": {"state": "due", "failures": 1, "rest": 0.0, "error": "no Start"},
        "gone": {"state": "resting", "failures": 1, "rest": 1.0, "error": "refused"},
    }
    lines = (*_TWO, "BACKEND ADD six dc1 ::1 5672", "BACKEND HEALTH")
    assert await _say(office, *lines) == (
        "down1: resting for 4 s: refused\nrmq1: healthy\nsix: due: no Start\n"
    )
    assert json.loads(await _say(office, "--json BACKEND HEALTH"))["rmq1"] == {"state": "healthy"}


async def test_farms(office: PaperOffice) -> None:
    await _silently(
        office,
        *_TWO,
        "FARM ADD farmA round-robin rmq1 down1",
        "FARM ADD_MANUAL farmB round-robin rmq1",
        "FARM PARTITION farmA datacenter-affinity",
    )
    assert await _say(office, "FARM PRINT") == "farmA: rmq1 down1 \nfarmB: rmq1 \n"
    assert json.loads(await _say(office, "--json FARM PRINT"))[0]["partitions"] == [
        "datacenter-affinity"
    ]
    assert await _say(office, "FARM ADD f round-robin rmq1 x y") == (
        "Backend 'x' not found\n"
        "Backend 'y' not found\n"
        "Farm not inserted due to at least one missing Backend\n"
    )
    assert (await _say(office, "FARM ADD f fastest rmq1")).startswith("Selector 'fastest' not")
    answer = await _say(office, "FARM PARTITION farmB best")
    assert answer.startswith("Partition policy 'best' not found; there are datacenter-affinity")
    await _silently(office, "FARM DELETE farmB")
    assert await _say(office, "FARM PRINT") == "farmA: rmq1 down1 \n"


async def test_maps(office: PaperOffice) -> None:
    await _silently(
        office,
        "MAP BACKEND vb rmq1",
        "MAP FARM / farmA",
        'map farm "a b" farmA',
        "MAP FARM gone farmA",
        "MAP UNMAP gone",
        "MAP UNMAP never",
    )
    assert await _say(office, "MAP PRINT") == (
        '"/" => Farm:farmA\n"a b" => Farm:farmA\n"vb" => Backend:rmq1\n'
    )
    await _silently(office, "MAP DEFAULT farmB")
    assert json.loads(await _say(office, "--json MAP PRINT")) == {
        "vhosts": {"/": {"farm": "farmA"}, "a b": {"farm": "farmA"}, "vb": {"backend": "rmq1"}},
        "default": {"farm": "farmB"},
    }
    await _silently(office, "MAP REMOVE_DEFAULT")
    assert office.configuration.default is None


async def test_datacenter(office: PaperOffice) -> None:
    assert await _say(office, "DATACENTER SET dc1", "DATACENTER PRINT") == "dc1\n"
    assert await _say(office, "--json DATACENTER PRINT") == '{"datacenter": "dc1"}\n'
    assert await _say(office, "DATACENTER UNSET", "DATACENTER PRINT") == "\n"


# --- LISTEN, TLS, LIMIT, AUTH, TIMEOUT ---------------------------------------------------------


async def test_listening(office: PaperOffice) -> None:
    await _silently(
        office,
        "LISTEN START 5672",
        "LISTEN START 5672",
        "LISTEN START_SECURE 5671 PROXY ADDRESS 127.0.0.1",
        "listen start 5673 address ::1",
    )
    assert await _say(office, "LISTEN PRINT") == (
        "START_SECURE 5671 ADDRESS 127.0.0.1 PROXY\nSTART 5672\nSTART 5673 ADDRESS ::1\n"
    )
    assert json.loads(await _say(office, "--json LISTEN PRINT"))[1] == {"port": 5672}
    await _silently(office, "LISTEN STOP 5671 ADDRESS 127.0.0.1", "LISTEN STOP 5673")
    assert await _say(office, "LISTEN PRINT") == "START 5672\n"
    assert await _say(office, "LISTEN STOP 1") == "Not listening on port 1.\n"
    await _silently(office, "LISTEN STOP")
    assert await _say(office, "LISTEN PRINT") == ""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


async def test_tls(office: PaperOffice, certificates: Certificates) -> None:
    chain, key = certificates.directory / "server.crt", certificates.directory / "server.key"
    await _silently(
        office,
        f"TLS INGRESS CERT_CHAIN_FILE {chain}",
        f"TLS INGRESS RSA_KEY_FILE {key}",
        f"TLS INGRESS CA_CERT_FILE {chain}",
        f"TLS INGRESS TMP_DH_FILE {chain}",
        "TLS INGRESS VERIFY_MODE PEER fail_if_no_peer_cert",
        "TLS INGRESS CIPHERS SET ECDHE+AESGCM",
        f"TLS INGRESS SNI ADD *.Example.org {chain} {key}",
    )
    assert await _say(office, "TLS INGRESS PRINT") == (
        f"KEY_FILE {key}\nCERT_CHAIN_FILE {chain}\nCA_CERT_FILE {chain}\nTMP_DH_FILE {chain}\n"
        "VERIFY_MODE PEER FAIL_IF_NO_PEER_CERT\nCIPHERS ECDHE+AESGCM\n"
        f"SNI *.example.org {chain} {key}\n"
    )
    assert await _say(office, "TLS EGRESS PRINT") == ""
    assert json.loads(await _say(office, "--json TLS INGRESS PRINT"))["verify"] == [
        "peer",
        "fail_if_no_peer_cert",
    ]
    await _silently(office, "TLS INGRESS SNI DELETE *.example.org")
    assert office.configuration.ingress.certificates == ()
    await _silently(office, "TLS INGRESS RESET")
    assert office.configuration == Configuration()


async def test_ciphers(office: PaperOffice) -> None:
    shown = await _say(office, "TLS EGRESS CIPHERS PRINT")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    names = [suite["name"] for suite in context.get_ciphers()]
    assert shown == "Ciphers:\n" + "".join(f"{name}\n" for name in names)
    one = "ECDHE-RSA-AES128-GCM-SHA256"
    shown = await _say(office, f"TLS EGRESS CIPHERS SET {one}", "TLS EGRESS CIPHERS PRINT")
    assert [name for name in shown.split() if not name.startswith("TLS_")] == ["Ciphers:", one]
    answer = await _say(office, "TLS EGRESS CIPHERS SET NONSENSE")
    assert answer == "OpenSSL knows none of these ciphers: NONSENSE\n"


async def test_files_that_are_not_what_they_should_be_are_refused(
    office: PaperOffice, certificates: Certificates, tmp_path: Path
) -> None:
    chain, key = certificates.directory / "server.crt", certificates.directory / "server.key"
    certificates.issue("other")
    other = certificates.directory / "other.key"
    for line, complaint in (
        (f"TLS INGRESS KEY_FILE {tmp_path}/no", f"{tmp_path}/no can't be read: No such file"),
        (f"TLS INGRESS KEY_FILE {tmp_path}", f"{tmp_path} is not a file."),
        ("TLS INGRESS KEY_FILE /dev/zero", "/dev/zero is not a file."),
        (f"TLS INGRESS KEY_FILE {chain}", f"{chain} has no private key in PEM"),
        (f"TLS INGRESS CERT_CHAIN_FILE {key}", f"{key} has no certificates in PEM"),
        (f"TLS INGRESS SNI ADD a {chain} {other}", f"{other} is not the key of {chain}."),
        (f"AUTH EXTERNAL ADD c u {tmp_path}/no", f"{tmp_path}/no can't be read: No such file"),
    ):
        assert (await _say(office, line)).startswith(complaint), line
    assert office.configuration == Configuration()


async def test_limits(office: PaperOffice) -> None:
    assert await _say(office, "LIMIT PRINT") == "No limits are set.\n"
    assert await _say(office, "LIMIT PRINT /") == "No limits hold for vhost /.\n"
    await _silently(
        office,
        "LIMIT CONN_RATE DEFAULT 100",
        "LIMIT CONN_RATE VHOST / 5",
        "LIMIT conn_rate_alarm DEFAULT 50",
        "LIMIT TOTAL_CONN VHOST / 7",
        "LIMIT CONNECTIONS DEFAULT 9",
        "LIMIT DATA_RATE DEFAULT 1000",
        "LIMIT DATA_RATE_ALARM VHOST / 500",
    )
    assert await _say(office, "LIMIT PRINT") == (
        "CONN_RATE DEFAULT: 100 connections a second\n"
        "CONN_RATE VHOST /: 5 connections a second\n"
        "CONN_RATE_ALARM DEFAULT: 50 connections a second, beyond which it is logged\n"
        "CONNECTIONS DEFAULT: 9 connections at a time\n"
        "CONNECTIONS VHOST /: 7 connections at a time\n"
        "DATA_RATE DEFAULT: 1000 bytes a second from each client\n"
        "DATA_RATE_ALARM VHOST /: 500 bytes a second from each client, beyond which it is logged\n"
    )
    assert await _say(office, "LIMIT PRINT /") == (
        "CONN_RATE: 5 connections a second\n"
        "CONN_RATE_ALARM: 50 connections a second, beyond which it is logged\n"
        "CONNECTIONS: 7 connections at a time\n"
        "DATA_RATE: 1000 bytes a second from each client\n"
        "DATA_RATE_ALARM: 500 bytes a second from each client, beyond which it is logged\n"
    )
    assert json.loads(await _say(office, "--json LIMIT PRINT other")) == {
        "conn_rate": 100,
        "conn_rate_alarm": 50,
        "connections": 9,
        "data_rate": 1000,
    }
    await _silently(
        office,
        "LIMIT DISABLE CONN_RATE VHOST /",
        "LIMIT DISABLE CONN_RATE_ALARM DEFAULT",
        "LIMIT DISABLE TOTAL_CONN VHOST /",
        "LIMIT DISABLE CONNECTIONS DEFAULT",
        "LIMIT DISABLE DATA_RATE DEFAULT",
        "LIMIT DISABLE DATA_RATE_ALARM VHOST /",
        "LIMIT DISABLE DATA_RATE_ALARM VHOST /",
    )
    assert await _say(office, "LIMIT PRINT") == "CONN_RATE DEFAULT: 100 connections a second\n"


async def test_authentication(office: PaperOffice, tmp_path: Path) -> None:
    assert await _say(office, "AUTH PRINT") == "ALWAYS_ALLOW\n"
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    await _silently(
        office,
        "AUTH SERVICE localhost 8080 /auth?tier=dev",
        f"AUTH EXTERNAL ADD alice@example.org guest {secret}",
    )
    shown = await _say(office, "AUTH PRINT")
    assert shown == (
        f"SERVICE localhost 8080 /auth?tier=dev\nEXTERNAL alice@example.org guest {secret}\n"
    )
    assert json.loads(await _say(office, "--json AUTH PRINT")) == {
        "service": {"host": "localhost", "port": 8080, "target": "/auth?tier=dev"},
        "external": {"alice@example.org": {"user": "guest", "password_file": str(secret)}},
    }
    assert "hunter2" not in await _say(office, "CONFIG PRINT")
    await _silently(office, "AUTH ALWAYS_ALLOW", "AUTH EXTERNAL DELETE alice@example.org")
    assert await _say(office, "AUTH PRINT") == "ALWAYS_ALLOW\n"


async def test_timeouts(office: PaperOffice) -> None:
    usual = await _say(office, "TIMEOUT PRINT")
    assert "header = 10\n" in usual
    shown = await _say(office, "TIMEOUT SET HEADER 2.5", "TIMEOUT PRINT")
    assert shown == usual.replace("header = 10\n", "header = 2.5\n")
    assert json.loads(await _say(office, "--json TIMEOUT PRINT"))["header"] == 2.5
    assert await _say(office, "TIMEOUT RESET header", "TIMEOUT PRINT") == usual
    answer = await _say(office, "TIMEOUT SET lunch 5")
    assert answer.startswith("No phase 'lunch'; there are ingress_tls, header, ")


# --- VHOST, SESSION, CONN ----------------------------------------------------------------------


async def test_vhosts(office: PaperOffice) -> None:
    await _silently(
        office,
        "VHOST PAUSE v",
        "VHOST PAUSE u",
        "VHOST UNPAUSE u",
        "VHOST BACKEND_DISCONNECT v",
        "VHOST FORCE_DISCONNECT v",
    )
    assert await _say(office, "VHOST PRINT") == "u = UNPAUSED\nv = PAUSED\n"
    assert await _say(office, "--json VHOST PRINT") == (
        '{"u": {"paused": false}, "v": {"paused": true}}\n'
    )
    assert office.acts == [("v", "backend_disconnect"), ("v", "force_disconnect")]


async def test_sessions(office: PaperOffice) -> None:
    assert await _say(office, "CONN") == ""
    office.known_sessions = [
        {"id": 1, "vhost": "/", "disconnected": False, "paused": True, "inBytes": 12},
        {"id": 2, "vhost": "a b\nid=3 \x1b[2J\u202e", "disconnected": False},
    ]
    assert await _say(office, "CONN") == (
        "id=1 vhost=/ disconnected=N paused=Y inBytes=12\n"
        "id=2 vhost=a\\x20b\\x0aid=3\\x20\\x1b[2J\\x202e disconnected=N\n"
    )
    assert json.loads(await _say(office, "--json CONN")) == office.known_sessions
    await _silently(
        office,
        "SESSION 1 PAUSE",
        "SESSION 1 UNPAUSE",
        "session 1 disconnect_graceful",
        "SESSION 2 FORCE_DISCONNECT",
    )
    assert office.acts == [
        (1, "pause"),
        (1, "unpause"),
        (1, "disconnect_graceful"),
        (2, "force_disconnect"),
    ]
    assert await _say(office, "SESSION 3 PAUSE") == "Session 3 not found\n"


# --- STAT, METRICS, LOG, MAPHOSTNAME, CONFIG, EXIT, HELP ---------------------------------------


@pytest.mark.parametrize("what", ["", "all", "overall", "process", "bufferpool", "vhost=/"])
async def test_listening_to_statistics(office: PaperOffice, what: str) -> None:
    for line, is_json in (
        (f"STAT LISTEN json {what}", True),
        (f"STAT LISTEN Human {what}", False),
        (f"--json STAT LISTEN human {what}", True),
    ):
        words = parse(line.encode())
        pieces = execute(office, words.words, words.json)
        for _ in range(2):
            piece = await anext(pieces)
            assert piece.endswith("\n")
            assert piece.startswith("{") == is_json
        assert office.listening == 1
        await pieces.aclose()
        assert office.listening == 0


async def test_statistics_of_nothing_are_refused(office: PaperOffice) -> None:
    for what in ("everything", "vhost=", "colour=red"):
        assert await _say(office, f"STAT LISTEN json {what}") == (
            f"No filter '{what}'; there are overall, all, all-except-per-source, process, "
            "bufferpool, vhost=V, backend=B and source=S.\n"
        )


async def test_sending_statistics(office: PaperOffice) -> None:
    assert await _say(office, "STAT PRINT") == "STOP SEND\nDISABLE PER-SOURCE\n"
    await _silently(office, "STAT SEND 127.0.0.1 8125", "stat enable per-source")
    assert await _say(office, "STAT PRINT") == "SEND 127.0.0.1 8125\nENABLE PER-SOURCE\n"
    assert json.loads(await _say(office, "--json STAT PRINT")) == {
        "host": "127.0.0.1",
        "port": 8125,
        "per-source": True,
    }
    answer = await _say(office, "STAT SEND no-such-host.invalid 8125")
    assert answer.startswith("'no-such-host.invalid' has no address")
    await _silently(office, "STAT STOP SEND", "STAT DISABLE per-source")
    assert await _say(office, "STAT PRINT") == "STOP SEND\nDISABLE PER-SOURCE\n"


async def test_metrics(office: PaperOffice) -> None:
    assert await _say(office, "METRICS PRINT") == "STOP\n"
    shown = await _say(office, "METRICS START 9100", "METRICS PRINT")
    assert shown == "START 9100 ADDRESS 127.0.0.1\n"
    await _silently(office, "METRICS START 9101 ADDRESS ::")
    assert await _say(office, "--json METRICS PRINT") == '{"address": "::", "port": 9101}\n'
    await _silently(office, "METRICS STOP")
    assert await _say(office, "--json METRICS PRINT") == "null\n"


async def test_logging_and_names(office: PaperOffice) -> None:
    await _silently(office, "LOG CONSOLE 5", "LOG FILE 0", "MAPHOSTNAME DNS")
    now = office.configuration
    assert (now.console_level, now.file_level, now.hostnames) == (5, 0, True)
    await _silently(office, "MAPHOSTNAME NONE")
    assert not office.configuration.hostnames


async def test_the_configuration_is_kept_compared_and_taken_back(office: PaperOffice) -> None:
    assert office.config_file is not None
    assert (await _say(office, "CONFIG RELOAD")).endswith("is not there: CONFIG SAVE writes it.\n")
    await _silently(office, *_TWO, "MAP BACKEND / rmq1", "CONFIG SAVE", "CONFIG DIFF")
    saved = office.configuration
    shown = await _say(office, "MAP BACKEND / down1", "CONFIG DIFF")
    assert shown == '- maps."/" = { backend = "rmq1" }\n+ maps."/" = { backend = "down1" }\n'
    assert json.loads(await _say(office, "--json CONFIG DIFF")) == [
        {"key": 'maps."/"', "file": {"backend": "rmq1"}, "running": {"backend": "down1"}}
    ]
    await _silently(office, "CONFIG RELOAD")
    assert office.configuration == saved
    assert office.config_file.read_text().endswith(await _say(office, "CONFIG PRINT"))
    shown_json = json.loads(await _say(office, "--json CONFIG PRINT"))
    assert shown_json["maps"] == {"/": {"backend": "rmq1"}}


async def test_a_file_that_is_wrong_changes_nothing(office: PaperOffice) -> None:
    assert office.config_file is not None
    await _silently(office, *_TWO)
    before = office.configuration
    office.config_file.write_text('[farms.f]\nbackends = ["nobody"]\n')
    office.config_file.chmod(0o600)
    for line in ("CONFIG RELOAD", "CONFIG DIFF"):
        with pytest.raises(ConfigError, match="Backend 'nobody' not found"):
            async for _ in execute(office, tuple(line.split()), False):
                pass
    assert office.configuration is before


async def test_without_a_file_there_is_nothing_to_save(office: PaperOffice) -> None:
    office.config_file = None
    for word in ("SAVE", "DIFF", "RELOAD"):
        answer = await _say(office, f"CONFIG {word}")
        assert answer == "This proxy was started without a configuration file.\n"


async def test_addresses_are_looked_up_for_a_loaded_configuration() -> None:
    now = Configuration()
    for name, host, dns in (
        ("a", "127.0.0.1", False),
        ("b", "localhost", False),
        ("c", "localhost", True),
        ("d", "no-such-host.invalid", False),
    ):
        backend = Backend(name=name, datacenter="d", host=host, port=1, dns=dns)
        now = AddBackend(backend).apply(now)
    looked_up = (await with_addresses(now)).backends
    assert looked_up["a"].address == "127.0.0.1"
    assert looked_up["b"].address in ("127.0.0.1", "::1")
    assert looked_up["c"].address == looked_up["d"].address == ""


async def test_exit(office: PaperOffice) -> None:
    await _silently(office, "exit")
    assert office.left
    assert office.configuration == Configuration()
    await _silently(office, "EXIT WITHIN 2.5")
    assert office.configuration.timeouts == {"drain": 2.5}


async def test_restart(office: PaperOffice) -> None:
    await _silently(office, "RESTART")
    assert office.restarted


async def test_help_and_what_is_no_command(office: PaperOffice) -> None:
    shown = await _say(office, "HELP")
    assert shown == help_text() == await _say(office, "FROBNICATE now") == await _say(office, "")
    verbs = [line.split()[0] for line in shown.splitlines()]
    assert verbs == sorted(verbs)
    assert json.loads(await _say(office, "--json HELP"))[0]["usage"].startswith("AUTH")
    assert json.loads(await _say(office, "--json FROBNICATE"))["error"] == "proxy"
    assert await _say(office, "MAP FROBNICATE") == (
        "After 'MAP' came 'FROBNICATE'. What can be said:\n"
        + "".join(f"{line}\n" for line in shown.splitlines() if line.startswith("MAP "))
    )
