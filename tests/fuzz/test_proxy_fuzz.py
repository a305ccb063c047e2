"""core.proxy against damaged headers: nothing but a header, a wait for more or a ProxyError comes out, in one way only."""

from __future__ import annotations

import random
import struct
import unittest
from ipaddress import ip_address

from twisted_mta.core.proxy import MAX_BINARY, ProxyError, ProxyHeader, parse

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
SEEDS = (
    b"PROXY TCP4 192.0.2.1 198.51.100.1 40000 25\r\nEHLO",
    b"PROXY TCP6 2001:db8::1 ::ffff:192.0.2.1 40000 25\r\nEHLO",
    b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\nEHLO",
    SIGNATURE + struct.pack("!BBH", 0x21, 0x11, 15) + bytes(range(12)) + b"\x04\x00\x00EHLO",
    SIGNATURE + struct.pack("!BBH", 0x21, 0x21, 36) + bytes(range(36)) + b"EHLO",
    SIGNATURE + struct.pack("!BBH", 0x20, 0x00, 0) + b"EHLO",
)


def damage(chance: random.Random, data: bytes) -> bytes:
    """Some octets changed, put in, taken out or repeated."""
    octets = bytearray(data)
    for _ in range(chance.randint(0, 4)):
        place = chance.randrange(len(octets) + 1)
        match chance.randrange(4):
            case 0:
                octets[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                octets[place:place] = chance.choice(
                    (b" ", b"\r", b"\n", b"0", b"9", b"%", b":", b".", b"\0", b"\xff")
                )
            case 2:
                del octets[place : place + chance.randint(1, 8)]
            case _:
                octets[place:place] = octets[place : place + chance.randint(1, 40)]
    return bytes(octets)


def outcome(data: bytes) -> tuple[ProxyHeader, int] | type[ProxyError] | None:
    try:
        return parse(data)
    except ProxyError:
        return ProxyError


def run(seed: int, count: int) -> dict[str, int]:
    """Try `count` inputs; how many ended in which way."""
    chance = random.Random(seed)
    tally = {"header": 0, "more": 0, "refused": 0}
    for number in range(count):
        data = damage(chance, chance.choice(SEEDS))
        found = outcome(data)
        cut = chance.randrange(len(data) + 1)
        before = outcome(data[:cut])
        where = f"seed {seed}, input {number}: {data!r} cut at {cut}"
        assert before is None or before == found, where
        if found is None:
            tally["more"] += 1
            assert outcome(data + bytes(MAX_BINARY + 16)) is not None, f"{where}: would wait for ever"
        elif isinstance(found, tuple):
            tally["header"] += 1
            header, length = found
            assert 0 < length <= len(data), where
            assert header.address == "" or str(ip_address(header.address)) == header.address, where
            assert 0 <= header.port <= 65535, where
        else:
            tally["refused"] += 1
    return tally


class ProxyFuzzTests(unittest.TestCase):
    def test_damaged_headers(self) -> None:
        tally = run(seed=1, count=20_000)
        self.assertGreater(min(tally.values()), 500, tally)
