#!/usr/bin/python3
"""Mycelite with Python's sqlite3: write a database, watch its replica, read it while it follows, compare the two.

    examples/python/replicate.py [DIRECTORY]      where cargo put libmycelite.so and mycelite [target/release]
    examples/python/replicate.py PROGRAM LIBRARY  or each by its path

Needs a Python whose sqlite3 can load extensions: Debian's /usr/bin/python3 can, one built by pyenv usually cannot.
"""

import filecmp
import json
import os
import pathlib
import sqlite3
import subprocess
import sys
import tempfile
import time


def locate():
    """The program and the library."""
    program = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "target/release")
    library = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else program / "libmycelite.so"
    if program.is_dir():
        program = program / "mycelite"
    for file in (program, library):
        if not file.is_file():
            sys.exit(f"replicate.py: no {file}: run cargo build --release first")
    if not hasattr(sqlite3.Connection, "enable_load_extension"):
        sys.exit(f"replicate.py: {sys.executable} cannot load SQLite extensions: use Debian's /usr/bin/python3")
    return program.resolve(), library.resolve()


def start_server(program, home):
    """A replica server on a free port; its first line says where it listens."""
    server = subprocess.Popen(
        [program, "serve", "--data", home / "replicas", "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return server, server.stdout.readline().removeprefix("listening on ").strip()


def load_extension(library):
    """Once per process: afterwards every connection can use the writer VFS."""
    door = sqlite3.connect(":memory:")
    door.enable_load_extension(True)
    door.load_extension(str(library))
    door.close()


def write(home, url):
    """The application: nothing here is special but the URI."""
    uri = f"file:{home}/notes.db?vfs=mycelite_writer&replica={url}"
    with sqlite3.connect(uri, uri=True) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE note(id INTEGER PRIMARY KEY, text TEXT, written REAL)")
    for number in range(100):
        with connection:
            connection.execute("INSERT INTO note(text, written) VALUES (?, ?)", (f"note {number}", time.time()))
    status = json.loads(connection.execute("SELECT mycelite_status()").fetchone()[0])
    print(f"written: transaction {status['pos']['txid']}, log of {status['log_bytes']} bytes, state {status['state']}")
    return connection


def watch(connection, replica):
    """Waits until the replica shows every note; it is read by plain SQLite, past the extension."""
    want = connection.execute("SELECT count(*) FROM note").fetchone()[0]
    reader, seen = None, 0
    deadline = time.monotonic() + 20
    while seen < want:
        if time.monotonic() > deadline:
            sys.exit(f"replicate.py: the replica shows {seen} of {want} notes")
        time.sleep(0.01)
        if reader is None and replica.exists() and replica.stat().st_size:
            reader = sqlite3.connect(f"file:{replica}?vfs=unix", uri=True)
        if reader and reader.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'note'").fetchone()[0]:
            seen = reader.execute("SELECT count(*) FROM note").fetchone()[0]
    print(f"replica: all {seen} notes are there")
    reader.close()


def main():
    """The whole story, in a temporary directory."""
    program, library = locate()
    with tempfile.TemporaryDirectory() as directory:
        home = pathlib.Path(directory)
        server, address = start_server(program, home)
        try:
            load_extension(library)
            connection = write(home, f"{address}/notes")
            replica = home / "replicas" / "notes.db"
            watch(connection, replica)
            for url, state, acked in connection.execute("SELECT url, state, acked_txid FROM mycelite_replicas"):
                print(f"{url}: {state}, holds transaction {acked}")
            # Closing folds the WAL into the file, and the server does the same once it is idle.
            connection.close()
            subprocess.run([program, "verify", home / "notes.db", "--deep"], check=True)
            subprocess.run([program, "push", home / "notes.db", "--to", f"{address}/notes"], check=True)
        finally:
            server.terminate()
            server.wait()
        if not filecmp.cmp(home / "notes.db", replica, shallow=False):
            sys.exit("replicate.py: the replica differs")
        print("identical: notes.db and replicas/notes.db,", os.path.getsize(replica), "bytes")


if __name__ == "__main__":
    main()
