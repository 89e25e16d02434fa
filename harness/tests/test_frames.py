import socket
import threading
import tracemalloc
from collections.abc import Iterator

import pytest
from mainbox_harness.frames import READ_BYTES, Channel, ChannelClosed


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def test_a_frame_is_received_as_it_was_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = (Channel(end.fileno()) for end in pair)
    left.send(b"V", b"[1,2]")
    left.send(b"R")
    assert right.receive() == (b"V", b"[1,2]")
    assert right.receive() == (b"R", b"")


def test_frames_that_came_together_are_received_one_by_one(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    channel = Channel(right.fileno())
    text = b"".join(b"S%b%b" % (length.to_bytes(4, "little"), b"x" * length) for length in (0, 3, READ_BYTES, 7))
    left.sendall(text[:4])
    left.sendall(text[4:])
    assert [len(channel.receive()[1]) for _ in range(4)] == [0, 3, READ_BYTES, 7]


def test_the_parts_of_a_payload_are_joined(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    Channel(left.fileno()).send(b"D", b"\x01\x00", b"", b"a", b"content")
    assert right.recv(100) == b"D\x0a\x00\x00\x00\x01\x00acontent"


def test_a_frame_larger_than_the_socket_buffer_arrives_whole(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = (Channel(end.fileno()) for end in pair)
    payload = bytes(range(256)) * 8192
    sender = threading.Thread(target=left.send, args=(b"I", payload[:1000], payload[1000:]))
    sender.start()
    received = right.receive()
    sender.join()
    assert received == (b"I", payload)


def test_a_long_payload_is_held_once(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = (Channel(end.fileno()) for end in pair)
    payload = bytes(4_000_000)
    sender = threading.Thread(target=left.send, args=(b"I", payload))
    tracemalloc.start()
    sender.start()
    received = right.receive()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    sender.join()
    assert received == (b"I", payload)
    assert peak < 5_000_000


def test_a_closed_channel_is_noticed(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    left.close()
    with pytest.raises(ChannelClosed):
        Channel(right.fileno()).receive()


def test_a_channel_that_closes_within_a_frame_is_noticed(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    left.send(b"V\x05\x00\x00\x00ab")
    left.close()
    with pytest.raises(ChannelClosed):
        Channel(right.fileno()).receive()
