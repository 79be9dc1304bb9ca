"""Files that clients of 1.x are configured by: each generation's, and what is wrong in one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ciphermq.errors import ConfigError
from ciphermq.settings.onexclient import (
    Generation,
    ReceiverFile,
    SenderFile,
    load_client_file,
)

TLS = {
    "certificate_path": "certs/ca.crt",
    "client_cert_path": "certs/client.crt",
    "client_key_path": "/etc/client.key",
    "protocol": "PROTOCOL_TLS_CLIENT",
    "verify_mode": "CERT_REQUIRED",
    "check_hostname": False,
}
COMMON: dict[str, Any] = {
    "exchange_name": "ciphermq_exchange",
    "server_address": "127.0.0.1",
    "server_port": 5672,
    "tls": TLS,
}
LOGGING = {
    "level": "INFO",
    "info_file_path": "logs/info.log",
    "debug_file_path": "logs/debug.log",
    "error_file_path": "logs/error.log",
    "rotation": "daily",
    "max_size_mb": 100,
}
BINDING = {"queue_name": "r_queue", "exchange_name": "ciphermq_exchange", "routing_key": "r_key"}
PACE = {
    "num_messages": 200,
    "max_inflight": 100,
    "max_retries": 5,
    "ack_timeout_secs": 3,
    "tcp_connect_timeout_secs": 120,
    "batch_size": 10,
    "batch_delay_ms": 0,
    "message": {"content_template": "{a}{seq}{sender_id}", "extra_fields": {"a": "x", "n": 1}},
}
OLDEST = COMMON | {"queue_name": "q", "routing_key": "k"}


def write(tmp_path: Path, values: Any) -> Path:
    path = tmp_path / "config.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


def sender(tmp_path: Path, values: Any) -> SenderFile:
    file, unknown = load_client_file(write(tmp_path, values), SenderFile)
    assert unknown == []
    return file


def test_1_4_0(tmp_path: Path) -> None:
    file = sender(tmp_path, OLDEST | {"receiver_client_ids": ["a", "b"]})
    assert file.generation is Generation.V1_4_0
    assert file.receiver_client_ids == ("a", "b")
    assert [each.queue_name for each in file.declared] == ["q"]
    assert file.key_for("a") == "k"
    assert (file.pace.num_messages, file.pace.max_inflight, file.pace.ack_timeout_secs) == (
        10,
        10,
        10,
    )
    assert file.tls.certificate_path == tmp_path / "certs/ca.crt"
    assert file.tls.client_key_path == Path("/etc/client.key")


def test_1_4(tmp_path: Path) -> None:
    values = COMMON | {"receiver_client_ids": "r", "bindings": [BINDING], "logging": LOGGING}
    file = sender(tmp_path, values)
    assert file.generation is Generation.V1_4
    assert file.receiver_client_ids == ("r",)
    assert (file.key_for("r"), file.key_for("other")) == ("r_key", "other_key")
    assert (file.pace.num_messages, file.pace.max_inflight) == (100, 1)
    assert file.logging is not None
    assert file.logging.info_file_path == tmp_path / "logs/info.log"
    assert file.logging.level == "info"


def test_1_5(tmp_path: Path) -> None:
    values = COMMON | {"receiver_client_ids": ["r"], "bindings": [BINDING], "sender": PACE}
    file = sender(tmp_path, values | {"logging": LOGGING})
    assert file.generation is Generation.V1_5
    assert (file.pace.max_inflight, file.pace.max_retries) == (100, 5)
    message = file.pace.message
    assert message.render(seq="7", sender_id="s", correlation_id="c") == "x7s"
    assert message.extra_fields == {"a": "x", "n": "1"}


def test_receivers(tmp_path: Path) -> None:
    path = write(tmp_path, OLDEST)
    file, _ = load_client_file(path, ReceiverFile)
    assert file.generation is Generation.V1_4_0
    more = {"directory": "elsewhere", "console": True}
    path = write(tmp_path, OLDEST | {"logging": LOGGING | more})
    file, unknown = load_client_file(path, ReceiverFile)
    assert file.generation is Generation.V1_4
    assert len(unknown) == 2
    assert file.logging is not None
    assert (file.logging.directory, file.logging.console) == (None, False)


def test_what_is_not_known_is_told_and_no_error(tmp_path: Path) -> None:
    tls = TLS | {"check_hostnam": True}
    values = OLDEST | {"sevrer_port": 1, "tls": tls, "bindings": [BINDING | {"colour": 1}]}
    path = write(tmp_path, values)
    _, unknown = load_client_file(path, SenderFile)
    nothing = f"{path}: there is nothing called"
    assert unknown == [
        f"{nothing} 'tls.check_hostnam'; did you mean 'tls.check_hostname'?; it is ignored",
        f"{nothing} 'sevrer_port'; did you mean 'server_port'?; it is ignored",
        f"{nothing} 'bindings.colour'; it is ignored",
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"server_port": 0}, "server_port = 0: "),
        ({"server_port": "none"}, 'server_port = "none": '),
        ({"exchange_name": "two words"}, 'exchange_name = "two words": '),
        ({"tls": 7}, "tls = 7: "),
        ({"tls": TLS | {"protocol": "SSLv3"}}, 'tls.protocol = "SSLv3": '),
        ({"bindings": [BINDING, {}]}, "bindings[1].queue_name is missing; "),
        ({"receiver_client_ids": []}, "receiver_client_ids = []: "),
        ({"receiver_client_ids": ["../x"]}, 'receiver_client_ids[0] = "../x": '),
        ({"sender": {"max_inflight": 0}}, "sender.max_inflight = 0: "),
        ({"sender": {"message": {"extra_fields": {"a": []}}}}, "sender.message.extra_fields.a = "),
        ({"logging": LOGGING | {"rotation": "weekly"}}, 'logging.rotation = "weekly": '),
        ({"one_x": {"dialect": "1.4"}}, 'one_x.dialect = "1.4": '),
    ],
)
def test_an_error_names_file_key_value_and_what_is_allowed(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = write(tmp_path, OLDEST | change)
    with pytest.raises(ConfigError) as caught:
        load_client_file(path, SenderFile)
    assert str(caught.value).startswith(f"{path}: {said}")
    assert "; allowed: " in str(caught.value)
    assert not str(caught.value).endswith("allowed: ")


def test_what_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path, COMMON)
    with pytest.raises(ConfigError) as caught:
        load_client_file(path, ReceiverFile)
    assert str(caught.value) == (
        f"{path}: queue_name is missing; allowed: one word of at most 255 characters (and 1 more)"
    )


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": NaN}{'])
def test_what_is_no_configuration(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_client_file(write(tmp_path, text), SenderFile)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_client_file(tmp_path / "none.json", SenderFile)
