"""Payloads: random, different, and recognised when they come back damaged."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.client.payloads import (
    MAX_DATAGRAM,
    MAX_PAYLOADS,
    MIN_DATAGRAM,
    POOL,
    DatagramPayloads,
    contents,
    differences,
)
from echod.client.values import LARGEST


@pytest.mark.parametrize("size", [8, 64, 1000, MAX_DATAGRAM])
def test_contents(size: int) -> None:
    """Payloads have the requested size, and all differ."""
    messages = contents(size)
    assert len(messages) == MAX_PAYLOADS
    assert {len(each) for each in messages} == {size}
    assert len(set(messages)) == MAX_PAYLOADS


def test_contents_of_another_run() -> None:
    """No payload occurs in another run."""
    assert not set(contents(64)) & set(contents(64))


@pytest.mark.parametrize("size", [POOL // 8, POOL, POOL + 1])
def test_large_contents(size: int) -> None:
    """To save memory, fewer payloads of a large size are made, but at least two, which differ."""
    messages = contents(size)
    assert len(messages) == len(set(messages)) == max(2, POOL // size)
    assert {len(each) for each in messages} == {size}


def test_largest_contents() -> None:
    """The largest payloads that the command line accepts can be generated."""
    assert [len(each) for each in contents(LARGEST)] == [LARGEST, LARGEST]


def test_empty_contents() -> None:
    """The shortest datagram has nothing between its tokens."""
    assert set(contents(0)) == {b""}


def naive(left: bytes, right: bytes) -> int:
    size = max(len(left), len(right))
    return sum(left[at : at + 1] != right[at : at + 1] for at in range(size))


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_differences(left: bytes, right: bytes) -> None:
    """Each byte that differs counts once, and so does each byte that only one side has."""
    assert differences(left, right) == differences(right, left) == naive(left, right)
    assert differences(left, left) == 0


@given(st.binary(max_size=200), st.data())
def test_few_differences(message: bytes, data: st.DataObject) -> None:
    """Few differences, and those among zeros at the start, are counted exactly, too."""
    damaged = bytearray(bytes(3) + message)
    for at in data.draw(st.sets(st.integers(0, len(damaged) - 1), max_size=5)):
        damaged[at] ^= data.draw(st.integers(1, 255))
    right = bytes(3) + message
    assert differences(bytes(damaged), right) == naive(damaged, right)


SIZES = (MIN_DATAGRAM, MIN_DATAGRAM + 1, 64, 1400, MAX_DATAGRAM)


@pytest.mark.parametrize("size", SIZES)
def test_find(size: int) -> None:
    """A datagram is found by its number, however far the last number is from it."""
    datagrams = DatagramPayloads(size)
    built = [datagrams.build(number) for number in range(3 * MAX_PAYLOADS)]
    assert {len(each) for each in built} == {size}
    assert len(set(built)) == len(built)
    for number, each in enumerate(built):
        for near in (number, number + 1, len(built), number + 100_000):
            assert datagrams.find(each, near) == (number, 0)


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
@pytest.mark.parametrize("near", [6, 1_000_000])
def test_one_byte_damaged(near: int, flip: int) -> None:
    """A datagram with one wrong byte, wherever it is, is found with one byte wrong."""
    datagrams = DatagramPayloads(100)
    right = datagrams.build(5)
    for at in range(len(right)):
        wrong = bytearray(right)
        wrong[at] ^= flip
        assert datagrams.find(bytes(wrong), near) == (5, 1), at


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_one_byte_of_the_shortest_damaged(flip: int) -> None:
    """In the shortest datagram, one wrong byte in a token may be attributed to the other token.

    No byte between the tokens decides which of the two is wrong.
    """
    datagrams = DatagramPayloads(MIN_DATAGRAM)
    right = datagrams.build(5)
    for at in range(len(right)):
        wrong = bytearray(right)
        wrong[at] ^= flip
        found = datagrams.find(bytes(wrong), 6)
        assert found is not None
        assert found[1] == 1, at
        if at % 8 < 4 or found[0] == 5:
            assert found == (5, 1), at


@given(st.integers(0, 1 << 40), st.data())
def test_bytes_damaged(number: int, data: st.DataObject) -> None:
    """Any number of wrong bytes is counted exactly while one token is intact."""
    datagrams = DatagramPayloads(64)
    right = datagrams.build(number)
    first = data.draw(st.sampled_from([0, 8]))
    places = st.sets(st.integers(first, first + 64 - 8 - 1), min_size=1)
    wrong = bytearray(right)
    places_damaged = data.draw(places)
    for at in places_damaged:
        wrong[at] ^= data.draw(st.integers(1, 255))
    assert datagrams.find(bytes(wrong), number + 1) == (number, len(places_damaged))


def test_both_tokens_damaged() -> None:
    """Without an intact token, a datagram is found if more than half of its bytes are right."""
    datagrams = DatagramPayloads(64)
    wrong = bytearray(datagrams.build(5))
    wrong[0] ^= 1
    wrong[-8] ^= 1
    assert datagrams.find(bytes(wrong), 6) == (5, 2)
    for at in range(8, 48):
        wrong[at] ^= 1
    assert datagrams.find(bytes(wrong), 6) is None


@pytest.mark.parametrize("size", [MIN_DATAGRAM, 17, 64])
def test_truncated(size: int) -> None:
    """Missing bytes count as wrong; without a complete token, the datagram is not found."""
    datagrams = DatagramPayloads(size)
    right = datagrams.build(5)
    for left in range(size):
        found = datagrams.find(right[:left], 6)
        assert found == ((5, size - left) if left >= 8 else None), left


def test_start_cut_off() -> None:
    """Without its start, a datagram is found by its last token; shifted bytes are wrong."""
    datagrams = DatagramPayloads(64)
    right = datagrams.build(5)
    for left in range(8, 64):
        found = datagrams.find(right[-left:], 6)
        assert found == (5, naive(right, right[-left:])), left


@given(st.binary(min_size=1, max_size=200))
def test_extended(more: bytes) -> None:
    """Additional bytes count as wrong, and so do the bytes that they shift."""
    datagrams = DatagramPayloads(64)
    right = datagrams.build(5)
    assert datagrams.find(right + more, 6) == (5, len(more))
    found = datagrams.find(more + right, 6)
    assert found == (5, naive(right, more + right))


@given(st.binary(max_size=100))
def test_not_sent(data: bytes) -> None:
    """A datagram that was never sent is not found, nor is an empty one."""
    assert DatagramPayloads(64).find(data, 6) is None


def test_another_socket() -> None:
    """A datagram of another socket or of an earlier run is not found."""
    datagrams, other = DatagramPayloads(64), DatagramPayloads(64)
    for number in range(100):
        assert datagrams.find(other.build(number), 6) is None


def test_middle_damaged() -> None:
    """With intact tokens a datagram is found, though all other bytes are wrong."""
    datagrams = DatagramPayloads(64)
    right = datagrams.build(5)
    wrong = bytearray(right)
    wrong[8:56] = bytes(each ^ 0x55 for each in right[8:56])
    assert datagrams.find(bytes(wrong), 6) == (5, 48)


@given(st.integers(-1000, 1000), st.integers(-1000, 1000), st.integers(1, 3))
def test_more_than_32_bits(offset: int, distance: int, times: int) -> None:
    """Above 32 bits, the number nearest to ``near`` is found."""
    datagrams = DatagramPayloads(64)
    number = times * (1 << 32) + offset
    assert datagrams.find(datagrams.build(number), number + distance) == (number, 0)


def test_not_below_zero() -> None:
    """A number below zero is not found."""
    datagrams = DatagramPayloads(64)
    assert datagrams.find(datagrams.build((1 << 32) - 1), 5) is None


def test_tokens_of_two_datagrams() -> None:
    """With the tokens of two datagrams, the one with fewer wrong bytes is found."""
    datagrams = DatagramPayloads(200)
    source = random.Random(7)
    for _ in range(50):
        one, other = source.sample(range(MAX_PAYLOADS), 2)
        cut = source.choice([30, 170])
        mixed = datagrams.build(one)[:cut] + datagrams.build(other)[cut:]
        expected = one if cut > 100 else other
        assert datagrams.find(mixed, MAX_PAYLOADS) == (
            expected,
            naive(mixed, datagrams.build(expected)),
        )
