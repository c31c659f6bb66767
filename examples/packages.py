#!/usr/bin/python3
"""Real data for Mycelite: this machine's Debian package index as a SQLite database.

Every package with all its fields goes into related tables with indexes and a full-text index. The rows and their ids
depend on the package index alone, so two loads of the same index hold the same data, however they were cut into commits.

    packages.py --db packages.db                                        plain SQLite
    packages.py --db packages.db --extension target/release/libmycelite.so --journal-mode wal
    packages.py --db packages.db --extension ... --replica http://127.0.0.1:7878/packages
    packages.py --sql --commit-every 500 | sqlite3 packages.db          the same rows as plain SQL

A load that was killed goes on where its last commit stands when it is started again. `--part 1/2` and `--part 2/2` let
two processes load one database at once. The last line says what was done:

    source=apt-cache packages=63666 rows=709337 commits=132 seconds=21.3
"""

import argparse
import glob
import gzip
import lzma
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
import urllib.parse

SCHEMA = [
    "CREATE TABLE maintainer(id INTEGER PRIMARY KEY, name TEXT NOT NULL, email TEXT NOT NULL, UNIQUE(name, email))",
    "CREATE TABLE section(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    "CREATE TABLE package(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    """CREATE TABLE version(
        id INTEGER PRIMARY KEY,
        package_id INTEGER NOT NULL REFERENCES package(id),
        version TEXT NOT NULL,
        architecture TEXT NOT NULL,
        section_id INTEGER REFERENCES section(id),
        maintainer_id INTEGER REFERENCES maintainer(id),
        priority TEXT,
        source TEXT,
        installed_kib INTEGER,
        bytes INTEGER,
        filename TEXT,
        sha256 BLOB,
        UNIQUE(package_id, version, architecture))""",
    "CREATE TABLE description(id INTEGER PRIMARY KEY REFERENCES version(id), name TEXT, summary TEXT, tags TEXT)",
    """CREATE TABLE dependency(
        version_id INTEGER NOT NULL REFERENCES version(id),
        kind TEXT NOT NULL,
        position INTEGER NOT NULL,
        alternative INTEGER NOT NULL,
        name TEXT NOT NULL,
        operator TEXT,
        bound TEXT,
        PRIMARY KEY(version_id, kind, position, alternative)) WITHOUT ROWID""",
    "CREATE TABLE tag(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    """CREATE TABLE version_tag(
        version_id INTEGER NOT NULL REFERENCES version(id),
        tag_id INTEGER NOT NULL REFERENCES tag(id),
        PRIMARY KEY(version_id, tag_id)) WITHOUT ROWID""",
    """CREATE TABLE field(
        version_id INTEGER NOT NULL REFERENCES version(id),
        name TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY(version_id, name)) WITHOUT ROWID""",
    "CREATE INDEX version_maintainer ON version(maintainer_id)",
    "CREATE VIRTUAL TABLE package_text USING fts5(name, summary, tags, content='description', content_rowid='id')",
]

# Each is one commit after the load: large transactions beside the many small ones.
FINISH = [
    "CREATE INDEX dependency_name ON dependency(name, kind)",
    "CREATE INDEX version_section ON version(section_id, bytes)",
    "CREATE INDEX version_tag_tag ON version_tag(tag_id)",
]
FINISH_TEXT = "INSERT INTO package_text(package_text) VALUES('optimize')"

DEPENDENCIES = [
    "Pre-Depends", "Depends", "Recommends", "Suggests", "Enhances", "Breaks", "Conflicts", "Replaces", "Provides",
]
OWN_COLUMN = {
    "Package", "Version", "Architecture", "Section", "Maintainer", "Priority", "Source", "Installed-Size", "Size",
    "Filename", "SHA256", "Description", "Tag", *DEPENDENCIES,
}
DEPENDENCY = re.compile(r"^\s*([^\s(\[<:]+)(?::\S+)?\s*(?:\(\s*(<<|<=|=|>=|>>|<|>)\s*([^)]*?)\s*\))?")


def fail(message):
    """Ends the program with one line on stderr."""
    print(f"packages.py: error: {message}", file=sys.stderr)
    sys.exit(2)


# ---- where the index comes from ----------------------------------------------------------------------------------


def apt_cache():
    """The index of all packages that apt knows; nothing where there is no apt or `apt-get update` never ran."""
    if not shutil.which("apt-cache"):
        return
    with subprocess.Popen(["apt-cache", "dumpavail"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            yield from stanzas(process.stdout)
        finally:
            process.kill()


def apt_lists():
    """The lists that apt downloaded, where apt-cache itself is missing."""
    for path in sorted(glob.glob("/var/lib/apt/lists/*_Packages*")):
        opener = {".gz": gzip.open, ".xz": lzma.open}.get(os.path.splitext(path)[1], open)
        if path.endswith(("_Packages", ".gz", ".xz")):
            with opener(path, "rb") as lines:
                yield from stanzas(lines)


def status(path="/var/lib/dpkg/status"):
    """The packages installed here, or any file in the same format."""
    if os.path.exists(path):
        with open(path, "rb") as lines:
            yield from stanzas(lines)


def open_index(wanted):
    """The name of the source and an iterator over its stanzas."""
    sources = {"apt-cache": apt_cache, "apt-lists": apt_lists, "dpkg": status}
    if wanted not in sources and wanted != "auto":
        if not os.path.isfile(wanted):
            fail(f"{wanted}: no such file (--index takes auto, {', '.join(sources)}, or a file of package stanzas)")
        return wanted, status(wanted)
    for name in sources if wanted == "auto" else [wanted]:
        index = sources[name]()
        first = next(index, None)
        if first is not None:
            return name, chain_first(first, index)
    return fail("no Debian package index on this machine (run apt-get update, or give a file of stanzas with --index)")


def chain_first(first, rest):
    """`first`, then `rest`."""
    yield first
    yield from rest


def stanzas(lines):
    """Each paragraph of a Debian control file as a dictionary of its fields."""
    fields, name = {}, None
    for raw in lines:
        line = raw.decode("utf-8", "replace").rstrip("\n")
        if not line:
            if "Package" in fields and "Version" in fields:
                yield fields
            fields, name = {}, None
        elif line[0] in " \t":
            if name:
                fields[name] += "\n" + line.strip()
        else:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
    if "Package" in fields and "Version" in fields:
        yield fields


# ---- from stanzas to rows ----------------------------------------------------------------------------------------


class Ids:
    """Numbers names in the order of their first appearance."""

    def __init__(self):
        self.known = {}

    def get(self, key):
        """The number of `key`, and whether it is new."""
        if key in self.known:
            return self.known[key], False
        self.known[key] = len(self.known) + 1
        return self.known[key], True


class Rows:
    """Turns stanzas into rows: `(version id, [(statement, parameters), ...])`, one package after the other."""

    def __init__(self, part, parts):
        self.part, self.parts = part, parts
        self.packages, self.sections, self.maintainers, self.tags = Ids(), Ids(), Ids(), Ids()
        self.seen = set()

    def each(self, index, limit):
        """All packages of this part among the first `limit`."""
        for fields in index:
            key = (fields["Package"], fields["Version"], fields.get("Architecture", ""))
            if key in self.seen:
                continue
            if limit and len(self.seen) == limit:
                return
            self.seen.add(key)
            rows = list(self.rows(len(self.seen), fields))
            if len(self.seen) % self.parts == self.part:
                yield len(self.seen), rows

    def named(self, table, ids, *key):
        """The id of a row that several versions share. With parts, any part may have to write it."""
        number, new = ids.get(key)
        # Ids are the same in every part, so a row that another process wrote first is the same row.
        if new or self.parts > 1:
            marks = ", ".join("?" * (len(key) + 1))
            self.shared.append((f"INSERT OR IGNORE INTO {table} VALUES({marks})", (number, *key)))
        return number

    def rows(self, version_id, fields):
        """The rows of one version."""
        self.shared = []
        maintainer = re.match(r"^\s*(.*?)\s*(?:<([^>]*)>)?\s*$", fields.get("Maintainer", "")).groups("")
        tags = [tag.strip() for tag in fields.get("Tag", "").replace("\n", " ").split(",") if tag.strip()]
        tag_ids = sorted({self.named("tag", self.tags, tag) for tag in tags})
        version = (
            version_id,
            self.named("package", self.packages, fields["Package"]),
            fields["Version"],
            fields.get("Architecture", ""),
            self.named("section", self.sections, fields["Section"]) if "Section" in fields else None,
            self.named("maintainer", self.maintainers, *maintainer),
            fields.get("Priority"),
            fields.get("Source"),
            integer(fields.get("Installed-Size")),
            integer(fields.get("Size")),
            fields.get("Filename"),
            digest(fields.get("SHA256")),
        )
        yield from self.shared
        yield f"INSERT INTO version VALUES({', '.join('?' * 12)})", version
        text = (version_id, fields["Package"], fields.get("Description", ""), " ".join(tags))
        yield "INSERT INTO description VALUES(?, ?, ?, ?)", text
        yield "INSERT INTO package_text(rowid, name, summary, tags) VALUES(?, ?, ?, ?)", text
        for tag_id in tag_ids:
            yield "INSERT INTO version_tag VALUES(?, ?)", (version_id, tag_id)
        for kind in DEPENDENCIES:
            yield from dependencies(version_id, kind, fields.get(kind, ""))
        for name, value in fields.items():
            if name not in OWN_COLUMN:
                yield "INSERT INTO field VALUES(?, ?, ?)", (version_id, name, value)


def dependencies(version_id, kind, text):
    """One row for each alternative of each relation in `a (>= 1) | b, c`."""
    for position, relation in enumerate(text.split(",")):
        for alternative, one in enumerate(relation.split("|")):
            found = DEPENDENCY.match(one)
            if found:
                row = (version_id, kind, position, alternative, *found.groups())
                yield "INSERT INTO dependency VALUES(?, ?, ?, ?, ?, ?, ?)", row


def integer(text):
    """A field that should be a number."""
    return int(text) if text and text.isdigit() else None


def digest(text):
    """A hexadecimal field as bytes."""
    return bytes.fromhex(text) if text and re.fullmatch(r"([0-9a-f]{2})+", text) else None


# ---- where the rows go -------------------------------------------------------------------------------------------


class Database:
    """Writes through Python's sqlite3, with the extension or without."""

    def __init__(self, options):
        self.commits, self.rows, self.echo = 0, 0, options.echo
        if options.extension:
            load_extension(options.extension)
        self.connection = connect(options)
        before = self.one("PRAGMA journal_mode")
        after = self.one(f"PRAGMA journal_mode = {options.journal_mode}") if options.journal_mode else before
        # Entering or leaving WAL mode is itself a commit: it changes the database's header.
        if (before == "wal") != (after == "wal"):
            self.count()
        if options.journal_mode and after != options.journal_mode:
            fail(f"{options.db}: the journal mode is {after} and could not be made {options.journal_mode}")
        if options.synchronous:
            self.one(f"PRAGMA synchronous = {options.synchronous}")

    def one(self, sql):
        """The first value of a query."""
        row = self.connection.execute(sql).fetchone()
        return row[0] if row else None

    def count(self):
        """Counts a commit that is done."""
        self.commits += 1
        if self.echo:
            print(f"commit {self.commits}", flush=True)

    def present(self):
        """Creates the schema unless it is there; the ids of the versions that are."""
        self.begin()
        if self.one("SELECT count(*) FROM sqlite_schema WHERE name = 'package_text'"):
            self.connection.execute("ROLLBACK")
        else:
            for statement in SCHEMA:
                self.connection.execute(statement)
            self.commit()
        return {row[0] for row in self.connection.execute("SELECT id FROM version")}

    def begin(self):
        self.connection.execute("BEGIN IMMEDIATE")

    def run(self, statement, parameters=()):
        self.rows += max(self.connection.execute(statement, parameters).rowcount, 0)

    def commit(self):
        self.connection.execute("COMMIT")
        self.count()

    def finish(self):
        """The closing transactions, those that were not done before."""
        indexes = {row[0] for row in self.connection.execute("SELECT name FROM sqlite_schema WHERE type = 'index'")}
        missing = [statement for statement in FINISH if statement.split()[2] not in indexes]
        for statement in missing + [FINISH_TEXT] * bool(missing):
            self.begin()
            self.connection.execute(statement)
            self.commit()

    def close(self):
        self.connection.close()


class Sql:
    """Writes plain SQL for the sqlite3 shell to stdout."""

    def __init__(self, options):
        self.commits, self.rows = 0, 0
        if options.journal_mode:
            print(f"PRAGMA journal_mode = {options.journal_mode};")
            self.commits += options.journal_mode == "wal"
        if options.synchronous:
            print(f"PRAGMA synchronous = {options.synchronous};")

    def present(self):
        self.begin()
        for statement in SCHEMA:
            print(statement + ";")
        self.commit()
        return set()

    def begin(self):
        print("BEGIN IMMEDIATE;")

    def run(self, statement, parameters=()):
        pieces = statement.split("?")
        values = [literal(parameter) for parameter in parameters] + [""]
        print("".join(piece + value for piece, value in zip(pieces, values)) + ";")
        self.rows += 1

    def commit(self):
        print("COMMIT;")
        self.commits += 1

    def finish(self):
        for statement in FINISH + [FINISH_TEXT]:
            self.begin()
            print(statement + ";")
            self.commit()

    def close(self):
        sys.stdout.flush()


def literal(value):
    """A value as SQL text."""
    if value is None:
        return "NULL"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    return "'" + value.replace("\0", "").replace("'", "''") + "'"


def load_extension(path):
    """Loads the extension for the whole process: its VFS becomes the default of every later connection."""
    if not hasattr(sqlite3.Connection, "enable_load_extension"):
        fail(
            f"{sys.executable} was built without loadable SQLite extensions "
            "(use another Python, on Debian /usr/bin/python3 can)"
        )
    door = sqlite3.connect(":memory:")
    door.enable_load_extension(True)
    try:
        door.load_extension(os.path.abspath(path))
    except sqlite3.Error as error:
        fail(f"{path}: the extension does not load: {error} (build it with cargo build --release)")
    door.close()


def connect(options):
    """Opens the database; each transaction is begun and ended by us."""
    parameters = {}
    if options.extension:
        parameters["vfs"] = "mycelite_writer"
    if options.replica:
        parameters["replica"] = options.replica
    uri = "file:" + urllib.parse.quote(os.path.abspath(options.db))
    if parameters:
        uri += "?" + urllib.parse.urlencode(parameters)
    try:
        return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=options.busy_timeout)
    except sqlite3.Error as error:
        return fail(f"{options.db}: {error}")


# ---- the command line --------------------------------------------------------------------------------------------


def arguments():
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--db", help="the database file to write")
    parser.add_argument("--sql", action="store_true", help="write SQL to stdout instead; the summary goes to stderr")
    parser.add_argument("--extension", metavar="PATH", help="load libmycelite from here and write through it")
    parser.add_argument("--replica", metavar="URL", help="replicate to this URL (with --extension)")
    parser.add_argument("--journal-mode", choices=["delete", "truncate", "persist", "memory", "off", "wal"])
    parser.add_argument("--synchronous", choices=["off", "normal", "full", "extra"])
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="only the first N packages")
    parser.add_argument("--commit-every", type=int, default=500, metavar="N", help="packages in one transaction [500]")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="every N-th package only, beginning with the K-th")
    parser.add_argument("--index", default="auto", metavar="SOURCE", help="auto, apt-cache, apt-lists, dpkg or a file")
    parser.add_argument("--busy-timeout", type=float, default=60, metavar="SECONDS", help="wait for other writers [60]")
    parser.add_argument("--echo", action="store_true", help="print each commit when it is done")
    options = parser.parse_args()
    if bool(options.db) == options.sql:
        parser.error("give either --db FILE or --sql")
    if options.sql and (options.extension or options.replica or options.echo):
        parser.error("--extension, --replica and --echo belong to --db: the shell that reads the SQL loads the extension")
    if options.replica and not options.extension:
        parser.error("--replica needs --extension")
    part = re.fullmatch(r"(\d+)/(\d+)", options.part)
    if not part or not 1 <= int(part[1]) <= int(part[2]):
        parser.error("--part is K/N with K from 1 to N")
    if options.limit < 0 or options.commit_every < 1:
        parser.error("--limit and --commit-every count packages")
    return options, int(part[1]) % int(part[2]), int(part[2])


def load(sink, rows, limit, index, commit_every):
    """All packages that are not there yet; returns how many."""
    done, packages, in_transaction = sink.present(), 0, 0
    for version_id, statements in rows.each(index, limit):
        if version_id in done:
            continue
        if not in_transaction:
            sink.begin()
        for statement, parameters in statements:
            sink.run(statement, parameters)
        packages += 1
        in_transaction += 1
        if in_transaction == commit_every:
            sink.commit()
            in_transaction = 0
    if in_transaction:
        sink.commit()
    return packages


def main():
    """Loads what the command line asks for."""
    options, part, parts = arguments()
    started = time.monotonic()
    source, index = open_index(options.index)
    sink = Sql(options) if options.sql else Database(options)
    packages = load(sink, Rows(part, parts), options.limit, index, options.commit_every)
    # One part does the closing work, for all of what it can see.
    if part == 1 % parts:
        sink.finish()
    sink.close()
    seconds = time.monotonic() - started
    print(
        f"source={source} packages={packages} rows={sink.rows} commits={sink.commits} seconds={seconds:.1f}",
        file=sys.stderr if options.sql else sys.stdout,
    )


if __name__ == "__main__":
    try:
        main()
    except sqlite3.Error as failure:
        fail(failure)
    except BrokenPipeError:
        sys.exit(1)
