import os
import socket
import threading
from collections.abc import Iterator

import pytest
from mainbox_harness.control import Control, SupervisorGone


@pytest.fixture
def pair() -> Iterator[tuple[Control, Control]]:
    left, right = socket.socketpair()
    ends = Control(left.detach()), Control(right.detach())
    yield ends
    for end in ends:
        end.socket.close()


def test_messages_arrive_in_order_with_their_descriptors(pair: tuple[Control, Control]) -> None:
    left, right = pair
    read, write = os.pipe()
    socket.send_fds(left.socket, [b"\x02\0\0\0{}"], [write])
    left.send({"order": "reap", "worker": 7})
    message, descriptors = right.receive()
    assert (message, len(descriptors)) == ({}, 1)
    os.write(descriptors[0], b"it is the same pipe")
    assert os.read(read, 100) == b"it is the same pipe"
    assert right.receive() == ({"order": "reap", "worker": 7}, [])
    for descriptor in (read, write, *descriptors):
        os.close(descriptor)


def test_a_message_larger_than_the_socket_buffer_arrives_whole(pair: tuple[Control, Control]) -> None:
    left, right = pair
    message = {"text": "x" * 1_000_000}
    sender = threading.Thread(target=left.send, args=(message,))
    sender.start()
    received, _ = right.receive()
    sender.join()
    assert received == message


def test_the_end_of_the_supervisor_is_noticed_between_and_within_messages(pair: tuple[Control, Control]) -> None:
    left, right = pair
    left.socket.sendall(b"\x05\0\0\0[1")
    left.socket.close()
    for _ in range(2):
        with pytest.raises(SupervisorGone):
            right.receive()
    with pytest.raises(SupervisorGone):
        right.send({})
