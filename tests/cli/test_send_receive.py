"""Lines in, lines out, in this process over a real broker: forms, files, ends and refusals."""

from __future__ import annotations

import json
import os
import re
import socket
import sqlite3
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

from ciphermq.cli.main import run
from cli.live import broker, deployment, receive, send
from cli.stored import run_json
from support.broker import Broker
from support.deployment import make_deployment

Capture = pytest.CaptureFixture[str]

__all__ = ["broker", "deployment"]

WILD = b"one\n\ntwo\r\n\xff\xfe\x00\x1b[2J\ra\n" + b"x" * 300_000 + b"\nno end"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "in"
    path.write_bytes(WILD)
    return path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "in"
    path.write_text("one\n\nthree\n4\n5\n6\n")
    return path


# --- what comes out -------------------------------------------------------------------------------


@pytest.mark.usefixtures("broker")
class TestForms:
    """The same messages in every form."""

    def test_raw_is_the_file_again(self, file: Path, capfdbinary: pytest.CaptureFixture[bytes]):
        assert send("bob", file) == 0
        capfdbinary.readouterr()
        assert receive("--raw") == 0
        assert capfdbinary.readouterr().out == WILD

    def test_text_is_a_line_a_message(self, tmp_path: Path, capsys: Capture) -> None:
        (tmp_path / "in").write_bytes("é\r\n\nlast".encode())
        assert send("bob", tmp_path / "in") == 0
        capsys.readouterr()
        assert receive() == 0
        assert capsys.readouterr().out == "é\n\nlast\n"

    def test_json_has_all_that_is_known(self, file: Path, capsys: Capture) -> None:
        words = ["--header", "a=1=2", "-H", "b=", "--content-type", "text/x"]
        assert send("bob", file, *words) == 0
        capsys.readouterr()
        assert receive("--json") == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert len(rows) == 6
        assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
        first = rows[0]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("sent"))
        del first["id"]
        assert first == {
            "sender": "alice",
            "verified": True,
            "queue": "bob",
            "redeliveries": 0,
            "content_type": "text/x",
            "headers": {"a": "1=2", "b": ""},
            "payload": "one\n",
        }
        assert rows[3]["payload_base64"] == "//4AG1sySg1hCg=="

    def test_a_file_of_json_lines(self, file: Path, tmp_path: Path, capsys: Capture) -> None:
        assert send("bob", file) == 0
        status, said = run_json(
            capsys, "receive", "--to", tmp_path / "out", "--wait", "0.3", "-i", "bob"
        )
        assert (status, said) == (0, {"received": 6, "duplicates_dropped": None})
        rows = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
        assert [row.get("payload") for row in rows[:3]] == ["one\n", "\n", "two\r\n"]
        assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o600

    def test_the_whole_as_one_message(self, file: Path, capsys: Capture) -> None:
        assert send("bob", file, "--whole") == 0
        capsys.readouterr()
        assert receive("--json") == 0
        assert len(capsys.readouterr().out.splitlines()) == 1

    def test_an_empty_file_has_no_lines_and_one_whole(self, tmp_path: Path, capsys: Capture):
        (tmp_path / "in").touch()
        send_it = ["send", "bob", tmp_path / "in", "-i", "alice"]
        assert run_json(capsys, *send_it)[1]["confirmed"] == 0
        assert run_json(capsys, *send_it, "--whole")[1]["confirmed"] == 1

    def test_a_terminal_can_not_be_steered(self) -> None:
        from ciphermq.cli.rendering import Form, renderer

        class Batch:
            payloads = (b"a\tb\x1b[2J\xff\n", b"two\nlines\r\n")

        shown = renderer(Form.TEXT, terminal=True)(Batch())  # type: ignore[arg-type]
        assert shown == b"a\tb\\x1b[2J\\xff\ntwo\nlines\n"

    def test_several_receivers_each_get_it(self, file: Path, capsys: Capture) -> None:
        assert run(["keys", "renew", "-i", "admin"]) == 0
        assert send("bob, admin", file) == 0
        capsys.readouterr()
        assert receive("--json") == 0
        assert run(["receive", "--json", "--wait", "0.3", "-i", "admin"]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [row["queue"] for row in rows] == ["bob"] * 6 + ["admin"] * 6


# --- when it ends ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("broker")
class TestEnds:
    """Counts, waits, signals."""

    def test_a_count_takes_no_more(self, plain: Path, capsys: Capture) -> None:
        assert send("bob", plain) == 0
        capsys.readouterr()
        assert run(["receive", "--count", "2", "-i", "bob"]) == 0
        assert capsys.readouterr().out == "one\n\n"
        assert run_json(capsys, "queues", "list", "bob")[1][0]["messages_ready"] == 4

    def test_a_count_that_is_not_reached(self, plain: Path, capsys: Capture) -> None:
        assert send("bob", plain) == 0
        capsys.readouterr()
        assert receive("--count", "7") == 1
        assert "6 of 7 messages came: no other came within 0.3 s" in capsys.readouterr().err

    def test_a_queue_of_somebody_else(self, capsys: Capture) -> None:
        status, said = run_json(capsys, "receive", "bob", "--wait", "5", "-i", "alice")
        assert (status, said["error"]) == (3, "access-refused")

    @pytest.mark.parametrize("more", [(), ("--exec", "cat")])
    def test_what_is_not_for_the_receiver_is_told_of(
        self, plain: Path, capsys: Capture, more: tuple[str, ...]
    ) -> None:
        assert run(["queues", "declare", "work", "-i", "bob"]) == 0
        assert run(["keys", "renew", "-i", "alice"]) == 0
        assert send("alice", plain, "--queue", "work") == 0
        capsys.readouterr()
        assert receive("work", *more) == 0
        assert capsys.readouterr().err == (
            "ciphermq: warning: 6 of the messages in 'work' can't be opened as genuine; "
            "`ciphermq dead list work` says why\n"
        )

    def test_a_broker_that_says_nothing(self, capsys: Capture) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"cmq://127.0.0.1:{silent.getsockname()[1]}"
            status, said = run_json(
                capsys, "receive", "-i", "bob", "--url", url, "--timeout", "0.2"
            )
        assert (status, said["error"]) == (4, "tls-failed")
        assert "within 0.2 s" in said["message"]

    def test_a_queue_that_is_not_there(self, capsys: Capture) -> None:
        status, said = run_json(capsys, "receive", "nowhere", "--wait", "5", "-i", "admin")
        assert (status, said["error"]) == (3, "not-found")


# --- commands -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("broker")
class TestExec:
    """`receive --exec`."""

    def test_it_gets_payload_and_environment(self, tmp_path: Path, monkeypatch, capsys: Capture):
        (tmp_path / "in").write_bytes(b"pay $(load)\n")
        monkeypatch.setenv("CIPHERMQ_PASSPHRASE", "hush")
        monkeypatch.setenv("CIPHERMQ_IDENTITY_PASSPHRASE", "hush")
        assert send("bob", tmp_path / "in", "-H", "x-$(id)=`v`", "--content-type", "t/x") == 0
        out = tmp_path / "out"
        command = f"cat > {out}; env | grep ^CIPHERMQ_ | sort >> {out}"
        assert receive("--exec", command) == 0
        lines = out.read_text().splitlines()
        assert lines[0] == "pay $(load)"
        variables = dict(line.split("=", 1) for line in lines[1:])
        assert variables["CIPHERMQ_SENDER"] == "alice"
        assert variables["CIPHERMQ_QUEUE"] == "bob"
        assert variables["CIPHERMQ_CONTENT_TYPE"] == "t/x"
        assert variables["CIPHERMQ_REDELIVERIES"] == "0"
        assert variables["CIPHERMQ_HEADER_X___ID_"] == "`v`"
        assert variables["CIPHERMQ_MESSAGE_ID"]
        assert "hush" not in variables.values()
        assert "1 message received" in capsys.readouterr().out

    def test_a_command_that_reads_nothing(self, tmp_path: Path, capsys: Capture) -> None:
        (tmp_path / "in").write_bytes(b"x" * 500_000)
        assert send("bob", tmp_path / "in") == 0
        status, said = run_json(capsys, "receive", "--exec", "true", "-n", "1", "-i", "bob")
        assert (status, said["received"]) == (0, 1)
        assert run_json(capsys, "queues", "list", "bob")[1][0]["messages_ready"] == 0

    def test_another_status_gives_the_message_back(self, tmp_path: Path, capsys: Capture) -> None:
        (tmp_path / "in").write_bytes(b"late\ngood\n")
        assert send("bob", tmp_path / "in") == 0
        out = tmp_path / "out"
        command = f"read x; echo $x $CIPHERMQ_REDELIVERIES >> {out}; test $x$CIPHERMQ_REDELIVERIES"
        capsys.readouterr()
        assert run(["receive", "--exec", f"{command} != late0", "--count", "2", "-i", "bob"]) == 0
        assert out.read_text().splitlines() == ["late 0", "good 0", "late 1"]
        out, err = capsys.readouterr()
        assert out == "2 messages received\n"
        assert len(re.findall(r"ended with status 1; the message comes again", err)) == 1

    def test_what_no_command_has_done_was_not_received(self, plain: Path, capsys: Capture) -> None:
        assert send("bob", plain) == 0
        capsys.readouterr()
        assert receive("--exec", "test $CIPHERMQ_REDELIVERIES = 7", "-n", "1") == 1
        out, err = capsys.readouterr()
        assert out == "0 messages received\n"
        assert "0 of 1 messages came: no other came within 0.3 s" in err
        assert run_json(capsys, "queues", "list", "bob")[1][0]["messages_ready"] == 6

    def test_no_command_runs_beyond_the_count(self, plain: Path, tmp_path: Path, capsys: Capture):
        assert send("bob", plain) == 0
        command = f"cat >> {tmp_path / 'out'}"
        assert receive("--exec", command, "-n", "2", "--prefetch", "100") == 0
        assert (tmp_path / "out").read_text() == "one\n\n"
        assert run_json(capsys, "queues", "list", "bob")[1][0]["messages_ready"] == 4

    def test_the_inbox_keeps_what_is_done_from_the_command(self, tmp_path: Path) -> None:
        (tmp_path / "in").write_bytes(b"one\ntwo\n")
        assert send("bob", tmp_path / "in") == 0
        out = tmp_path / "out"
        words = ["--exec", f"cat >> {out}", "--inbox", tmp_path / "inbox"]
        assert receive(*words) == receive(*words) == 0
        assert out.read_text() == "one\ntwo\n"


# --- usage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["receive", "--raw", "--json"], "--raw and --json"),
        (["receive", "--exec", "x", "--raw"], "--exec"),
        (["receive", "--exec", "x", "--to", "f"], "--exec"),
        (["receive", "--inbox", "{in}", "--to", "{in}"], "given twice"),
        (["send", "bob", "{in}", "--outbox", "{in}"], "given twice"),
        (["send", "bob", "f", "-H", "nonsense"], "NAME=VALUE"),
        (["send", "bob", "f", "-H", "a=1", "-H", "a=2"], "twice"),
        (["send", "dead.bob", "{in}", "-i", "alice"], "can't be a client id"),
        (["send", ",", "{in}", "-i", "alice"], "receivers"),
        (["send", "bob", "{in}", "--queue", "q", "--exchange", "e", "-i", "alice"], "not to both"),
    ],
)
@pytest.mark.usefixtures("broker")
def test_what_makes_no_sense(file: Path, capsys: Capture, words: list[str], why: str) -> None:
    status, said = run_json(capsys, *(word.replace("{in}", str(file)) for word in words))
    assert (status, said["error"]) == (2, "usage")
    assert why in said["message"]


@pytest.mark.parametrize("name", ["missing", "."])
@pytest.mark.usefixtures("broker")
def test_an_input_that_can_not_be_read(tmp_path: Path, capsys: Capture, name: str) -> None:
    status, said = run_json(capsys, "send", "bob", tmp_path / name, "-i", "alice")
    assert (status, said["error"]) == (2, "usage")
    assert str(tmp_path / name) in said["message"]


# --- a broker that is away ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["send", "bob", "{in}", "-i", "alice"], ["receive", "-i", "bob"], ["queues"]]
)
@pytest.mark.usefixtures("deployment")
def test_nobody_listens(file: Path, capsys: Capture, words: list[str]) -> None:
    unpatient = [] if words == ["queues"] else ["--wait-for-broker", "0"]
    given = [word.replace("{in}", str(file)) for word in words]
    status, said = run_json(capsys, *given, *unpatient)
    assert (status, said["error"]) == (4, "connect-failed")


@pytest.mark.parametrize(
    ("words", "limit"),
    [
        (["send", "bob", "{in}", "-i", "alice", "--confirm-timeout", "0.3"], "0.3"),
        (["send", "bob", "{in}", "-i", "alice", "--wait-for-broker", "0.2"], "0.2"),
        (["receive", "-i", "bob", "--idle-timeout", "0.3"], "0.3"),
        (["receive", "-i", "bob", "--wait-for-broker", "0.2"], "0.2"),
    ],
)
@pytest.mark.usefixtures("deployment")
def test_a_broker_that_stays_away_is_told_of_at_once_and_at_the_end(
    file: Path, capsys: Capture, words: list[str], limit: str
) -> None:
    assert run([word.replace("{in}", str(file)) for word in words]) == 4
    why = "nothing listens at 127.0.0.1:1: is the server running?"
    assert capsys.readouterr().err.splitlines() == [
        f"ciphermq: waiting for the broker, {limit} s at most: {why}",
        f"ciphermq: {why}",
    ]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"cmq://{'.'.join(['nowhere' * 8] * 6)}", (4, "host-unknown")),  # longer than a name is
        ("http://localhost", (2, "usage")),
        ("cmq://two..dots", (2, "usage")),
    ],
)
@pytest.mark.usefixtures("deployment")
def test_a_wrong_address_is_not_waited_for(
    file: Path, capsys: Capture, url: str, expected: tuple[int, str]
) -> None:
    for words in (["send", "bob", file, "-i", "alice"], ["receive", "-i", "bob"]):
        status, said = run_json(capsys, *words, "--url", url)
        assert (status, said["error"]) == expected


@pytest.mark.usefixtures("broker")
def test_a_broker_of_another_authority_is_not_waited_for(
    tmp_path: Path, file: Path, capsys: Capture
) -> None:
    stranger = make_deployment(tmp_path / "other", ["alice"])
    for words in (["send", "bob", file], ["receive"]):
        status, said = run_json(capsys, *words, "-i", stranger.identity("alice"))
        assert (status, said["error"]) == (4, "tls-failed")


# --- a broker that takes nothing ------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("--outbox", "{outbox}")])
@pytest.mark.usefixtures("broker")
def test_a_queue_that_stays_full_is_the_reason(
    plain: Path, tmp_path: Path, capsys: Capture, more: tuple[str, ...]
) -> None:
    assert run(["queues", "declare", "small", "--max-messages", "1", "-i", "bob"]) == 0
    words = [word.replace("{outbox}", str(tmp_path / "outbox")) for word in more]
    status, said = run_json(
        capsys,
        "send",
        "bob",
        plain,
        "--queue",
        "small",
        "--confirm-timeout",
        "0.72",
        *words,
        "-i",
        "alice",
    )
    assert (status, said["error"]) == (3, "queue-full")
    assert re.search(r"within 0\.72 s.*refuses it for now: .*'small' is full", said["message"])


@pytest.mark.usefixtures("broker")
def test_a_receiver_nobody_knows(file: Path, capsys: Capture) -> None:
    status, said = run_json(capsys, "send", "carol", file, "-i", "alice")
    assert (status, said["error"]) == (5, "unknown-receiver")


@pytest.mark.usefixtures("broker")
def test_a_line_too_long_says_what_was_sent(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "in").write_bytes(b"fine\n" * 3000 + b"x" * 1_100_000)
    assert send("bob", tmp_path / "in") == 2
    said = capsys.readouterr().err
    assert "line 3001 has more than" in said
    assert re.search(r"\d+ messages confirmed", said)


# --- pipes ----------------------------------------------------------------------------------------


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def written_to(fifo: Path, write: Callable[[int], None]) -> threading.Thread:
    """A writer in a thread: opening waits for the reader."""

    def work() -> None:
        descriptor = os.open(fifo, os.O_WRONLY)
        try:
            write(descriptor)
        except BrokenPipeError:
            pass
        finally:
            os.close(descriptor)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_pipe_s_line_goes_when_it_is_written(broker: Broker, fifo: Path, capsys: Capture) -> None:
    arrived = threading.Event()

    def write(descriptor: int) -> None:
        os.write(descriptor, b"first\nhal")
        while not (info := broker.engine.queue("bob")) or not info.messages_ready:
            arrived.wait(0.01)
        os.write(descriptor, b"f\nlast")

    writer = written_to(fifo, write)
    assert send("bob", fifo) == 0
    writer.join()
    capsys.readouterr()
    assert receive() == 0
    assert capsys.readouterr().out == "first\nhalf\nlast\n"


@pytest.mark.usefixtures("broker")
def test_a_pipe_s_lines_go_in_bulk(fifo: Path, capsys: Capture) -> None:
    """Counted and not timed: to send each line by itself takes 30 calls for a line."""
    count, calls = 20_000, 0

    def write(descriptor: int) -> None:
        os.write(descriptor, b"a line\n" * count)

    writer = written_to(fifo, write)

    def called(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    former = sys.getprofile()
    sys.setprofile(called)
    try:
        status = send("bob", fifo)
    finally:
        sys.setprofile(former)
    writer.join()
    assert status == 0
    assert f"{count} messages confirmed" in capsys.readouterr().out
    assert calls < 10 * count


@pytest.mark.usefixtures("broker")
def test_a_refusal_is_told_before_the_pipe_ends(fifo: Path, capsys: Capture) -> None:
    told = threading.Event()

    def write(descriptor: int) -> None:
        os.write(descriptor, b"line\n")
        told.wait(60)

    writer = written_to(fifo, write)
    status, said = run_json(capsys, "send", "carol", fifo, "-i", "alice")
    told.set()
    writer.join()
    assert (status, said["error"]) == (5, "unknown-receiver")


# --- outbox and inbox -----------------------------------------------------------------------------


@pytest.mark.usefixtures("broker")
class TestExactlyOnce:
    """`send --outbox` and `receive --inbox --to`, when nothing is killed."""

    def test_the_same_command_again_sends_nothing(
        self, file: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        words = ["send", "bob", file, "--outbox", tmp_path / "outbox", "-i", "alice"]
        assert run_json(capsys, *words)[1]["confirmed"] == 6
        status, said = run_json(capsys, *words)
        assert (status, said["messages"], said["confirmed"]) == (0, 6, 0)
        with file.open("ab") as grown:
            grown.write(b" of line\nmore\n")
        assert run_json(capsys, *words)[1]["confirmed"] == 2
        assert receive("--raw", "--to", tmp_path / "out", "--inbox", tmp_path / "inbox") == 0
        assert (tmp_path / "out").read_bytes() == WILD + b" of line\nmore\n"
        assert (
            run(["send", "bob", str(file), "--outbox", str(tmp_path / "outbox"), "-i", "alice"])
            == 0
        )
        assert "sent before, of this input: 8" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (b"ONE" + WILD[3:] + b"more", "bytes are others"),
            (WILD[:-1] + b"D" + b"more", "bytes are others"),
            (WILD[:-1], "it ends before byte"),
        ],
    )
    def test_another_input_is_not_taken_for_the_same(
        self, file: Path, tmp_path: Path, capsys: Capture, content: bytes, why: str
    ) -> None:
        words = ["send", "bob", file, "--outbox", tmp_path / "outbox", "-i", "alice"]
        assert run_json(capsys, *words)[0] == 0
        file.write_bytes(content)
        status, said = run_json(capsys, *words)
        assert (status, said["error"]) == (6, "store")
        assert why in said["message"]
        assert "another --outbox" in said["message"]

    def test_a_whole_file_is_one_message_once(
        self, file: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        words = ["send", "bob", file, "--whole", "--outbox", tmp_path / "outbox", "-i", "alice"]
        assert run_json(capsys, *words)[1]["confirmed"] == 1
        assert run_json(capsys, *words)[1]["confirmed"] == 0
        with file.open("ab") as grown:
            grown.write(b"more")
        status, said = run_json(capsys, *words)
        assert (status, "another message" in said["message"]) == (6, True)

    def test_an_outbox_keeps_headers_and_takes_several_inputs(
        self, file: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        other = tmp_path / "other"
        other.write_text("x\n")
        for each in (file, other):
            words = [each, "--outbox", tmp_path / "outbox", "-H", f"from={each.name}"]
            assert send("bob", *words) == 0
        capsys.readouterr()
        assert receive("--json") == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [row["headers"]["from"] for row in rows] == ["in"] * 6 + ["other"]

    def test_a_pipe_through_an_outbox(self, fifo: Path, tmp_path: Path, capsys: Capture) -> None:
        words = ["send", "bob", fifo, "--outbox", tmp_path / "outbox", "-i", "alice"]
        for content, confirmed in ((b"a\nb\n", 2), (b"a\nb\nc\n", 1)):
            writer = written_to(fifo, lambda fd, data=content: os.write(fd, data) and None)
            status, said = run_json(capsys, *words)
            writer.join()
            assert (status, said["confirmed"]) == (0, confirmed)

    def test_what_can_not_be_sent_stays_in_the_outbox(
        self, file: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        words = ["send", "carol", file, "--outbox", tmp_path / "outbox", "-i", "alice"]
        status, said = run_json(capsys, *words)
        assert (status, said["error"]) == (5, "unknown-receiver")
        with sqlite3.connect(tmp_path / "outbox") as database:
            query = "SELECT sum(count) FROM ciphermq_outbox_waiting"
            assert database.execute(query).fetchone() == (6,)

    def test_bytes_beyond_the_known_length_are_cut_off(self, file: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.write_bytes(b"mine before\n")
        words = ["--raw", "--to", out, "--inbox", tmp_path / "inbox"]
        assert send("bob", file) == receive(*words) == 0
        assert out.read_bytes() == b"mine before\n" + WILD
        with out.open("ab") as torn:
            torn.write(b"what a killed run left")
        assert send("bob", file) == receive(*words) == 0
        assert out.read_bytes() == b"mine before\n" + WILD + WILD

    def test_a_file_that_lost_something_is_not_gone_on_with(
        self, file: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        words = ["--raw", "--to", tmp_path / "out", "--inbox", tmp_path / "inbox"]
        assert send("bob", file) == receive(*words) == 0
        (tmp_path / "out").write_bytes(WILD[:-1])
        assert receive(*words) == 6
        assert "were received into it" in capsys.readouterr().err
        assert (tmp_path / "out").read_bytes() == WILD[:-1]

    def test_one_file_has_one_writer(self, tmp_path: Path, capsys: Capture) -> None:
        import fcntl

        with (tmp_path / "out").open("wb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            for words in ([], ["--inbox", tmp_path / "inbox"]):
                assert receive("--to", tmp_path / "out", *words) == 6
                assert "another `ciphermq receive`" in capsys.readouterr().err

    def test_two_files_of_one_inbox(self, file: Path, tmp_path: Path) -> None:
        inbox = ["--inbox", tmp_path / "inbox", "--raw", "--to"]
        assert send("bob", file) == receive(*inbox, tmp_path / "a") == 0
        assert send("bob", file) == receive(*inbox, tmp_path / "b") == 0
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == WILD

    def test_a_full_disk_loses_nothing(self, file: Path, tmp_path: Path, capsys: Capture) -> None:
        assert send("bob", file) == 0
        assert receive("--raw", "--to", "/dev/full") in (1, 6)
        assert "/dev/full" in capsys.readouterr().err
        assert run_json(capsys, "queues", "list", "bob")[1][0]["messages_ready"] == 6
