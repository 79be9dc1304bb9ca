"""Words and grammar: any bytes are a command or a sentence; what is shown is what is understood."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciphermq.errors import ProxyError
from ciphermq.proxy.control.commands import RULES, help_text, understand
from ciphermq.proxy.control.grammar import KINDS
from ciphermq.proxy.control.words import Line, check, parse, quote

_SAMPLES = {
    "port": "5672",
    "number": "0",
    "bytes": "1000",
    "verbosity": "5",
    "id": "1",
    "seconds": "0.5",
    "address": "::1",
    "host": "rmq1.example.org",
}
_known = sorted({word for one in RULES for word in one.usage.text.replace("|", " ").split()})


def _spoken(text: str) -> list[str]:
    """A usage line as somebody would say it, with everything optional."""
    words = []
    for token in text.replace("[", "").replace("]", "").split():
        word = token.removesuffix("...")
        words.append(word.split("|")[-1] if word.isupper() else _SAMPLES.get(word, f"my-{word}"))
        if token.endswith("..."):
            words.append(words[-1])
    return words


@given(st.binary())
def test_any_bytes_are_words(line: bytes) -> None:
    parsed = parse(line)
    assert parsed == parse(line)
    assert all(isinstance(word, str) for word in parsed.words)


@given(st.lists(st.one_of(st.sampled_from(_known), st.text(), st.binary().map(str)), max_size=8))
def test_any_words_are_a_command_or_a_sentence(words: list[str]) -> None:
    with contextlib.suppress(ProxyError):
        found, call = understand(tuple(words))
        assert found in RULES
        assert call.keywords[0] == words[0].upper()


@given(st.binary().map(lambda line: parse(b"MAP FARM " + line + b" f").words))
def test_names_that_are_no_text_are_refused(words: tuple[str, ...]) -> None:
    try:
        _, call = understand(words)
    except ProxyError:
        return
    name = call["vhost"]
    assert name.isprintable()
    assert name.encode().decode() == name


@given(st.lists(st.text(), min_size=1))
def test_quoted_names_are_the_same_words_again(names: list[str]) -> None:
    line = " ".join(map(quote, names)).encode(errors="surrogatepass")
    if line.decode(errors="surrogateescape") == " ".join(map(quote, names)):
        assert parse(b"x " + line).words == ("x", *names)


@pytest.mark.parametrize(
    ("line", "parsed"),
    [
        (b"", Line(())),
        (b"  BACKEND\tPRINT \r", Line(("BACKEND", "PRINT"))),
        (b'MAP FARM "a b" f', Line(("MAP", "FARM", "a b", "f"))),
        (b'MAP FARM "a \\" \\\\ b" f', Line(("MAP", "FARM", 'a " \\ b', "f"))),
        (b'a"b c"', Line(('a"b', 'c"'))),
        (b'"a b', Line(('"a', "b"))),
        (b'"" x', Line(("", "x"))),
        (b"--json CONN", Line(("CONN",), json=True)),
        (b"--status --json CONN", Line(("CONN",), json=True, status=True)),
        (b"CONN --json", Line(("CONN", "--json"))),
    ],
)
def test_a_line_is_parted_into_words(line: bytes, parsed: Line) -> None:
    assert parse(line) == parsed


def test_control_characters_and_other_bytes_than_utf8_are_named() -> None:
    for word in ("a\x1b[2J", "a\udcff", "a\u202eb"):
        with pytest.raises(ProxyError, match="A word may not contain control characters") as error:
            check((word,))
        assert str(error.value).endswith(": " + ascii(word).strip("'"))


@pytest.mark.parametrize("text", [one.usage.text for one in RULES])
def test_every_usage_line_is_understood_as_itself_in_any_case(text: str) -> None:
    words = _spoken(text)
    for spoken in (words, [word.lower() for word in words], [word.title() for word in words]):
        found, call = understand(tuple(spoken))
        assert found.usage.text == text
        assert all(call.get(name) is not None for name in found.usage.arguments())


@pytest.mark.parametrize("text", [one.usage.text for one in RULES])
def test_every_command_refuses_a_word_too_many_and_one_too_few(text: str) -> None:
    words = _spoken(text)
    if "..." not in text:
        with pytest.raises(ProxyError, match="What can be said"):
            understand((*words, "more"))
    if "[" not in text and len(words) > 1:
        with pytest.raises(ProxyError, match="is not all"):
            understand(tuple(words[:-2] if "..." in text else words[:-1]))


def test_options_come_in_any_order_each_once() -> None:
    base = ("BACKEND", "ADD", "a", "d", "h", "1")
    for options in (("TLS", "SEND-PROXY"), ("send-proxy", "tls")):
        assert set(understand((*base, *options))[1].keywords[2:]) == {"TLS", "SEND-PROXY"}
    with pytest.raises(ProxyError, match="came 'TLS'"):
        understand((*base, "TLS", "TLS"))
    _, call = understand(("LISTEN", "STOP", "ADDRESS", "::1", "7"))
    assert (call["port"], call["address"]) == (7, "::1")
    _, call = understand(("LISTEN", "STOP"))
    assert (call.get("port"), call.get("address")) == (None, None)


def test_an_option_without_its_argument_is_not_understood() -> None:
    with pytest.raises(ProxyError, match="After 'LISTEN START 1' came 'ADDRESS'"):
        understand(("LISTEN", "START", "1", "ADDRESS"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("LISTEN START 0", "Port must be 1 to 65535, not '0'."),
        ("LISTEN START 65536", "Port must be 1 to 65535, not '65536'."),
        ("LISTEN START ١", "Port must be 1 to 65535, not '١'."),
        ("LISTEN START -1", "Port must be 1 to 65535, not '-1'."),
        (f"LISTEN START {'9' * 5000}", f"Port must be 1 to 65535, not '{'9' * 5000}'."),
        ("LISTEN START 1 ADDRESS here", "Address must be an IPv4 or IPv6 address, not 'here'."),
        ("LOG FILE 6", "Verbosity must be 0 to 5, not '6'."),
        ("SESSION 0 PAUSE", "Id must be 1 to 9007199254740991, not '0'."),
        ("SESSION x PAUSE", "Id must be 1 to 9007199254740991, not 'x'."),
        ("LIMIT DATA_RATE DEFAULT 0", "Bytes must be 1 to 9007199254740991, not '0'."),
        ("TIMEOUT SET open 0", "Seconds must be above 0 and at most 86400, not '0'."),
        ("TIMEOUT SET open 86401", "Seconds must be above 0 and at most 86400, not '86401'."),
        ("TIMEOUT SET open nan", "Seconds must be above 0 and at most 86400, not 'nan'."),
        ("BACKEND ADD a d h/x 1", "Host must be a host's name or address, not 'h/x'."),
        (f"MAP UNMAP {'v' * 256}", "Vhost must have 1 to 255 bytes."),
        ('MAP UNMAP ""', "Vhost must have 1 to 255 bytes."),
        ('TLS INGRESS KEY_FILE ""', "File must not be empty."),
    ],
)
def test_an_argument_that_can_not_be_is_named(words: str, sentence: str) -> None:
    with pytest.raises(ProxyError) as error:
        understand(parse(words.encode()).words)
    assert str(error.value) == sentence


def test_hosts_may_be_of_ipv6() -> None:
    for spoken in ("[2001:db8::1]", "2001:db8::1"):
        assert understand(("BACKEND", "ADD", "a", "d", spoken, "1"))[1]["host"] == "2001:db8::1"


def test_help_has_one_line_for_each_command_and_each_line_says_what_it_does() -> None:
    lines = help_text().splitlines()
    assert len(lines) == len(RULES) == len(set(lines))
    for line in lines:
        usage, dash, about = line.partition(" - ")
        assert usage.split()[0].isupper()
        assert dash
        assert about


def test_every_argument_with_a_meaning_of_its_own_is_used() -> None:
    used = {name for one in RULES for name in one.usage.arguments()}
    assert set(KINDS) <= used
