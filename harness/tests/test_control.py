import os
import socket
import threading

from mainbox_harness.control import send


def test_a_report_larger_than_the_socket_buffer_arrives_whole() -> None:
    ours, theirs = socket.socketpair()
    sender = threading.Thread(target=send, args=(theirs.fileno(), {"text": "x" * 1_000_000}))
    sender.start()
    length = int.from_bytes(ours.recv(4), "little")
    assert ours.recv(length, socket.MSG_WAITALL) == b'{"text": "%s"}' % (b"x" * 1_000_000)
    sender.join()
    ours.close()
    theirs.close()


def test_a_zygote_whose_supervisor_is_gone_ends() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    if (child := os.fork()) == 0:
        send(theirs.fileno(), {})
        os._exit(9)
    assert os.waitpid(child, 0) == (child, 0)
    theirs.close()
