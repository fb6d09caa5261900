"""ICC profiles (version 2.1) made by hand, so that what a colour must become is known without a colour library."""

from __future__ import annotations

import struct

#: XYZ of sRGB's primaries, adapted to D50 (IEC 61966-2-1, Bradford).
SRGB_PRIMARIES = (
    (0.4360747, 0.2225045, 0.0139322),
    (0.3850649, 0.7168786, 0.0971045),
    (0.1430804, 0.0606169, 0.7141733),
)
D50 = (0.9642, 1.0, 0.8249)


def _fixed(*numbers: float) -> bytes:
    return struct.pack(f">{len(numbers)}i", *(round(number * 65536) for number in numbers))


def _xyz(numbers) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(*numbers)


def _gamma(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def _profile(kind: bytes, space: bytes, pcs: bytes, name: str, tags: dict[bytes, bytes]) -> bytes:
    text = name.encode() + b"\0"
    described = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(8 + 3 + 67)
    tags = {b"desc": described, b"cprt": b"text\0\0\0\0none\0", b"wtpt": _xyz(D50), **tags}
    offset, table, data = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for tag, content in tags.items():
        table += tag + struct.pack(">II", offset + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    header = struct.pack(">I4sI", offset + len(data), b"\0\0\0\0", 0x02100000) + kind + space + pcs
    header += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _fixed(*D50) + bytes(48)
    return header + table + data


def rgb_profile(primaries, gamma: float, name: str = "hand-made RGB") -> bytes:
    """Colours that are sum(channel ** gamma * primary) in XYZ."""
    tags = {tag: _xyz(primary) for tag, primary in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    tags |= {tag: _gamma(gamma) for tag in (b"rTRC", b"gTRC", b"bTRC")}
    return _profile(b"mntr", b"RGB ", b"XYZ ", name, tags)


def grey_profile(gamma: float) -> bytes:
    """Greys of luminance level ** gamma."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", "hand-made grey", {b"kTRC": _gamma(gamma)})


def cmyk_profile(cyan_lab: tuple[float, float, float]) -> bytes:
    """Paper is white, full cyan alone is `cyan_lab`, every other mixture of full inks is black."""

    def eight_bits(lab):
        return bytes([round(lab[0] * 2.55), round(lab[1] + 128), round(lab[2] + 128)])

    corners = [(0.0, 0.0, 0.0)] * 16  # the first ink changes slowest
    corners[0], corners[8] = (100.0, 0.0, 0.0), cyan_lab
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + bytes(range(256)) * 4
    table += b"".join(map(eight_bits, corners)) + bytes(range(256)) * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", "hand-made ink", {b"A2B0": table})
