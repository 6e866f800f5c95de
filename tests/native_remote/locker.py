# SPDX-License-Identifier: MIT OR Apache-2.0
# A process that locks: one expression a line, one answer a line.
import errno
import os
import signal
import struct
import sys
from fcntl import F_GETLK, F_SETLK, F_SETLKW, LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, fcntl, flock

F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW = 36, 37, 38
KINDS = {"read": 0, "write": 1, "none": 2}
files = {}


def interrupted(*_):
    raise OSError(errno.EINTR, "a signal")


signal.signal(signal.SIGALRM, interrupted)


def get_in(name, path, flags):
    files[name] = os.open(path, flags | os.O_CLOEXEC)


def leave(name):
    os.close(files.pop(name))


def again(name, other):
    files[other] = os.dup(files[name])


def lock(name, kind, start, length, command=F_SETLK):
    fcntl(files[name], command, struct.pack("hhqqi4x", KINDS[kind], 0, start, length, 0))


def way(name, kind, start, length, command=F_GETLK):
    wish = struct.pack("hhqqi4x", KINDS[kind], 0, start, length, 0)
    kind, _, start, length, pid = struct.unpack("hhqqi4x", fcntl(files[name], command, wish))
    return "none" if kind == 2 else f"{kind} {start} {length} {pid}"


def whole(name, how):
    flock(files[name], how)


def put(name, at, text):
    os.pwrite(files[name], text.encode(), at)


def count(name, rounds, file_lock):
    """Adds to a number in the file, each time under a lock."""
    for _ in range(rounds):
        whole(name, LOCK_EX) if file_lock else lock(name, "write", 0, 8, F_SETLKW)
        number = int(os.pread(files[name], 8, 0))
        os.pwrite(files[name], b"%08d" % (number + 1), 0)
        whole(name, LOCK_UN) if file_lock else lock(name, "none", 0, 8)


def in_child(what):
    """What a child says that was forked with all that is open here."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writes, answer(what).encode())
        os._exit(0)
    os.close(writes)
    said = os.read(reads, 1000).decode()
    os.close(reads)
    os.waitpid(child, 0)
    return said


def insert(path, who, rows):
    import sqlite3

    base = sqlite3.connect(path, timeout=60, isolation_level=None)
    for row in range(rows):
        base.execute("insert into t values (?, ?)", (who, row))
    base.close()


def query(path, text):
    import sqlite3

    base = sqlite3.connect(path, timeout=60, isolation_level=None)
    rows = base.execute(text).fetchall()
    base.close()
    return rows


def answer(line):
    try:
        value = eval(line)
        return "ok" if value is None else str(value)
    except OSError as error:
        return errno.errorcode[error.errno]


for line in sys.stdin:
    print(answer(line), flush=True)
