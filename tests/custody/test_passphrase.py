"""Boxes that a passphrase opens."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciphermq.custody import armour, passphrase
from ciphermq.custody.passphrase import CHEAP, STRONG
from ciphermq.errors import PassphraseError

BOX = passphrase.seal(b"right", b"the secret", b"label", CHEAP)


def open_box(box: bytes, phrase: bytes = b"right", label: bytes = b"label") -> bytes:
    return passphrase.open_box(phrase, box, label, "the box")


@given(st.binary(min_size=1), st.binary(), st.binary())
def test_a_box_gives_back_what_was_put_in(phrase: bytes, secret: bytes, label: bytes) -> None:
    box = passphrase.seal(phrase, secret, label, CHEAP)
    assert open_box(box, phrase, label) == secret


def test_the_secret_is_not_to_be_seen() -> None:
    assert b"the secret" not in BOX


def test_two_boxes_of_the_same_differ() -> None:
    assert passphrase.seal(b"right", b"the secret", b"label", CHEAP) != BOX


@pytest.mark.parametrize(("phrase", "label"), [(b"wrong", b"label"), (b"right", b"lobel")])
def test_the_wrong_passphrase_and_the_wrong_purpose(phrase: bytes, label: bytes) -> None:
    with pytest.raises(PassphraseError, match="does not open the box"):
        open_box(BOX, phrase, label)


@given(st.integers(0, len(BOX) - 1), st.integers(1, 255))
def test_any_changed_byte_is_noticed(at: int, flip: int) -> None:
    # The byte that says how hard to work is changed only as far as a test has time for.
    if at == 5:
        flip &= 0x07
    changed = bytearray(BOX)
    changed[at] ^= flip or 1
    with pytest.raises(PassphraseError):
        open_box(bytes(changed))


@given(st.integers(0, len(BOX) - 1))
def test_any_cut_is_noticed(length: int) -> None:
    with pytest.raises(PassphraseError):
        open_box(BOX[:length])


@pytest.mark.parametrize(
    "cost", [(31, 8, 1), (20, 64, 1), (4, 0, 1), (4, 8, 0), (4, 8, 17), (0, 8, 1), (255, 255, 1)]
)
def test_a_box_can_t_ask_for_all_of_the_machine(cost: tuple[int, int, int]) -> None:
    greedy = BOX[:5] + struct.pack("BBB", *cost) + BOX[8:]
    with pytest.raises(PassphraseError, match="beyond reason"):
        open_box(greedy)


@pytest.mark.parametrize("cost", [(17, 1, 1), (16, 1, 16), (20, 1, 1)])
def test_a_box_whose_cost_scrypt_does_not_have(cost: tuple[int, int, int]) -> None:
    odd = BOX[:5] + struct.pack("BBB", *cost) + BOX[8:]
    with pytest.raises(PassphraseError, match="can't be done here"):
        open_box(odd)


def test_the_strong_cost_is_within_reason() -> None:
    assert open_box(passphrase.seal(b"x", b"s", b"l", STRONG), b"x", b"l") == b"s"


def test_no_box_is_locked_with_nothing() -> None:
    with pytest.raises(PassphraseError, match="empty"):
        passphrase.seal(b"", b"secret", b"label", CHEAP)
    with pytest.raises(PassphraseError, match="empty"):
        passphrase.to_bytes("")
    with pytest.raises(PassphraseError, match="empty"):
        open_box(BOX, b"")


def test_a_passphrase_is_the_same_from_every_keyboard() -> None:
    assert passphrase.to_bytes("caf\u00e9") == passphrase.to_bytes("cafe\u0301")


# --- armour ---------------------------------------------------------------------------------------


@given(st.binary(max_size=500))
def test_armour_comes_off_again(data: bytes) -> None:
    text = armour.armour("SOME THING", data)
    assert armour.label_of(text) == "SOME THING"
    assert armour.strip_armour("SOME THING", text) == data
    assert armour.strip_armour("SOME THING", b"\n" + text.replace(b"\n", b"\r\n")) == data
    assert max(map(len, text.splitlines())) <= 64


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"hello",
        armour.armour("OTHER", b"x"),
        armour.armour("THING", b"x" * 90)[:-10],
        armour.armour("THING", b"x") + b"more",
        b"before" + armour.armour("THING", b"x"),
        armour.armour("THING", b"x" * 9).replace(b"e", b"!", 1).replace(b"h", b"!"),
    ],
)
def test_what_is_not_whole_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="THING"):
        armour.strip_armour("THING", text)


def test_what_is_not_armoured_has_no_label() -> None:
    assert armour.label_of(b"hello") is None
    assert armour.label_of(b"") is None
    assert armour.label_of(b"-----BEGIN \xff-----\n") == "\ufffd"
