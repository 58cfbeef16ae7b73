"""Sealing and wrapping: only the right key opens, only at the right place."""

from __future__ import annotations

import base64
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.audit import keyring
from serve.audit.chain import ORIGIN, Link
from serve.audit.keyring import AlteredError, DataKey, Keyring, WrongKeyError, parse


@given(st.binary(max_size=200), st.binary(max_size=50))
def test_what_was_sealed_opens_at_its_place(plain: bytes, place: bytes) -> None:
    key = DataKey.new()
    assert key.open(key.seal(plain, place), place) == plain


@given(st.binary(max_size=100), st.binary(max_size=20), st.binary(max_size=20))
def test_it_opens_nowhere_else(plain: bytes, place: bytes, other: bytes) -> None:
    key = DataKey.new()
    if place != other:
        with pytest.raises(AlteredError):
            key.open(key.seal(plain, place), other)


@given(st.binary(max_size=100), st.data())
def test_no_bit_of_it_can_change(plain: bytes, data: st.DataObject) -> None:
    key = DataKey.new()
    sealed = bytearray(key.seal(plain, b"place"))
    at = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[at // 8] ^= 1 << at % 8
    with pytest.raises(AlteredError):
        key.open(bytes(sealed), b"place")


@given(st.binary(max_size=27))
def test_what_is_too_short_to_be_sealed_does_not_open(sealed: bytes) -> None:
    with pytest.raises(AlteredError):
        DataKey.new().open(sealed, b"")


def test_sealing_twice_gives_two_ciphertexts() -> None:
    key = DataKey.new()
    assert key.seal(b"same", b"place") != key.seal(b"same", b"place")


def test_the_first_key_wraps_and_every_key_unwraps() -> None:
    old, new = os.urandom(32), os.urandom(32)
    key = DataKey.new()
    wrapped = Keyring([old]).wrap(key, b"place")
    ring = Keyring([new, old])
    assert ring.unwrap(wrapped, b"place") == key
    again = ring.wrap(key, b"place")
    assert Keyring([new]).unwrap(again, b"place") == key
    with pytest.raises(WrongKeyError):
        Keyring([old]).unwrap(again, b"place")


def test_a_key_that_is_not_in_the_ring_is_named_and_never_shown() -> None:
    ring, other = Keyring([os.urandom(32)]), Keyring([os.urandom(32)])
    with pytest.raises(WrongKeyError) as caught:
        other.unwrap(ring.wrap(DataKey.new(), b""), b"")
    assert ring.ids[0] in str(caught.value)
    assert other.ids[0] in str(caught.value)


def test_a_wrapped_key_is_bound_to_its_place() -> None:
    ring = Keyring([os.urandom(32)])
    with pytest.raises(AlteredError):
        ring.unwrap(ring.wrap(DataKey.new(), b"here"), b"there")


def test_keys_are_not_in_their_own_repr() -> None:
    key = DataKey(b"\xabsecret" + bytes(25))
    assert "secret" not in repr(key)


@pytest.mark.parametrize("text", ["", " \n", "short", base64.b64encode(b"x" * 31).decode(), "@@@@"])
def test_what_is_no_key_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="key") as caught:
        parse(text)
    assert not text.strip() or text not in str(caught.value)


def test_keys_come_one_a_line_or_with_commas() -> None:
    first, second = keyring.new_key(), keyring.new_key()
    assert parse(f"{first}\n{second}\n").ids == parse(f"{first}, {second}").ids


places = st.builds(
    Link,
    writer=st.sampled_from(["a" * 32, "b" * 32]),
    seq=st.integers(1, 30),
    at=st.integers(0, 30),
    kind=st.sampled_from(["request", "answer"]),
    audit_id=st.sampled_from(["0" * 36, "1" * 36]),
    previous=st.sampled_from([ORIGIN, b"\1" * 32]),
)


@given(places, places)
def test_no_two_places_are_the_same(one: Link, other: Link) -> None:
    assert (one == other) == (one.place == other.place)
    assert (one == other) == (one.hash(b"d" * 32) == other.hash(b"d" * 32))
