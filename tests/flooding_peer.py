"""A listed peer that answers with a message that never ends: `python flooding_peer.py PORT`.

Speaks ZMTP by itself, since ZeroMQ would not send such a message bit by bit. Prints `up`, then the bytes that went into
each connection before it was closed.
"""

from __future__ import annotations

import socket
import struct
import sys

_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_READY = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"ROUTER"
_MORE_TO_COME = b"\x03" + struct.pack(">Q", 512 << 10) + bytes(512 << 10)


def main(port: int) -> None:
    with socket.create_server(("127.0.0.1", port)) as listener:
        print("up", flush=True)
        while True:
            connection, _ = listener.accept()
            sent_bytes = 0
            with connection:
                try:
                    connection.sendall(_GREETING)
                    connection.sendall(b"\x04" + bytes([len(_READY)]) + _READY)
                    received = b""
                    while b"READY" not in received:
                        more = connection.recv(4096)
                        if not more:
                            raise ConnectionResetError
                        received += more
                    while True:
                        connection.sendall(_MORE_TO_COME)
                        sent_bytes += len(_MORE_TO_COME)
                except OSError:
                    print(sent_bytes, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
