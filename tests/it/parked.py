"""Writes into the file that is named through a mapping, and leaves its handle in a socket that nobody
reads: the file is not let go of when this process ends."""
import mmap, os, socket, sys

handle = os.open(sys.argv[1], os.O_RDWR)
mapping = mmap.mmap(handle, 0)
one, other = socket.socketpair()
socket.send_fds(one, [b"x"], [handle, one.fileno(), other.fileno()])
mapping[0:1] = b"X"
os._exit(0)
