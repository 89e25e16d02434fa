import json
import struct

import pytest
from mainbox_harness import long_parts
from mainbox_harness.long_parts import FLOATS_AT_ONCE
from mainbox_harness.to_json import to_json

LONG_TEXT = "é\n" * 50_000


@pytest.mark.parametrize(
    "value",
    [
        [0.5] * FLOATS_AT_ONCE,
        [0.5] * (FLOATS_AT_ONCE + 1),
        [None, 0.5] * 1000,
        LONG_TEXT,
        {"a": [1.5] * 1000, "b": [LONG_TEXT, [2.5] * 1000], LONG_TEXT: {"c": LONG_TEXT}},
        "\ud83d\ude00" + LONG_TEXT,
    ],
)
def test_long_values_have_the_bytes_that_json_gives_them(value: object) -> None:
    expected = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    expected = expected.encode("utf-16", "surrogatepass").decode("utf-16")
    assert b"".join(to_json(value, 9, 10**7)).decode() == expected


def test_long_values_are_not_copied_into_one_piece() -> None:
    pieces = to_json([[0.5] * 20_000], 9, 10**7)
    assert max(map(len, pieces)) == FLOATS_AT_ONCE * len("0.5,")


def test_a_long_list_within_a_key_is_encoded_by_json() -> None:
    (text,) = to_json({(0.5,) * 1000: 1}, 9, 10**7)
    assert text == b'{"[%s]":1}' % b",".join([b"0.5"] * 1000)


def test_a_list_that_becomes_shorter_meanwhile_is_encoded_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [0.5] * (2 * FLOATS_AT_ONCE)

    def clear(form: str, *items: float) -> bytes:
        values.clear()
        return struct.pack(form, *items)

    monkeypatch.setattr(long_parts, "pack", clear)
    assert len(json.loads(b"".join(to_json(values, 9, 10**7)))) == 2 * FLOATS_AT_ONCE


def test_a_script_may_replace_functions_of_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.urandom", None)
    monkeypatch.setattr("struct.pack", None)
    monkeypatch.setattr("ctypes.string_at", None)
    assert json.loads(b"".join(to_json([0.5] * 1000, 9, 10**7))) == [0.5] * 1000
