"""SQLite's testfixture, from Debian's source package."""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import re
import shutil
import subprocess

HERE = pathlib.Path(__file__).resolve().parent.parent
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
TOOLS = ["apt-get", "cc", "make", "tclsh", "tar", "xz"]
# Tests are short: what optimising costs at build time it does not give back.
CFLAGS = "-O1 -g0"


class Unavailable(Exception):
    """The testfixture cannot be had on this machine; the text says what is missing."""


class Fixture:
    """A built testfixture and the tests that belong to it."""

    def __init__(self, program, source):
        self.program = program
        self.source = source
        self.version = (source / "VERSION").read_text().strip()

    @property
    def tests(self):
        return self.source / "test"


def codename():
    """The Debian release of this machine."""
    found = re.search(r"^VERSION_CODENAME=(\S+)", pathlib.Path("/etc/os-release").read_text(), re.M)
    return found.group(1).strip('"') if found else "bookworm"


def run(command, cwd, log):
    """Runs `command`; its output goes to the file `log`, whose end is shown when it fails."""
    with open(log, "w", encoding="utf-8") as out:
        done = subprocess.run(command, cwd=cwd, stdout=out, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        tail = pathlib.Path(log).read_text(encoding="utf-8", errors="replace")[-2000:]
        raise Unavailable(f"{' '.join(command[:2])} failed (see {log}):\n{tail}")


def download(release, work):
    """Debian's tar file of SQLite's source, by way of lists and sources of our own: the machine's stay as they are."""
    have = sorted(work.glob("sqlite3_*.orig.tar.xz"))
    if have:
        return have[-1]
    apt = work / "apt"
    (apt / "lists").mkdir(parents=True, exist_ok=True)
    (apt / "cache/archives/partial").mkdir(parents=True, exist_ok=True)
    sources = apt / "source.sources"
    sources.write_text(
        "Types: deb-src\nURIs: http://deb.debian.org/debian\n"
        f"Suites: {release}\nComponents: main\nSigned-By: {KEYRING}\n"
    )
    options = [
        f"Dir::Etc::sourcelist={sources}",
        "Dir::Etc::sourceparts=-",
        f"Dir::State::lists={apt}/lists",
        f"Dir::Cache={apt}/cache",
        "APT::Sandbox::User=root",
        "Acquire::Retries=2",
        "Acquire::http::Timeout=30",
    ]
    flags = [word for option in options for word in ("-o", option)]
    run(["apt-get", *flags, "update"], work, work / "apt-update.log")
    run(["apt-get", *flags, "source", "--download-only", "sqlite3"], work, work / "apt-source.log")
    have = sorted(work.glob("sqlite3_*.orig.tar.xz"))
    if not have:
        raise Unavailable("apt-get source brought no sqlite3_*.orig.tar.xz")
    return have[-1]


def unpack(tarball, work):
    """The source tree in `tarball`, unpacked once."""
    root = work / "source"
    if not root.exists():
        half = work / "source.half"
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir()
        run(["tar", "-xf", str(tarball), "-C", str(half)], work, work / "tar.log")
        half.rename(root)
    return next(path for path in root.iterdir() if (path / "VERSION").exists())


@contextlib.contextmanager
def alone(work):
    """One run at a time makes what the directory `work` keeps."""
    with open(work / "lock", "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(release, work, jobs, may_build):
    """The testfixture with our hook in it; built once for each version of the hook."""
    with alone(work):
        return build_alone(release, work, jobs, may_build)


def build_alone(release, work, jobs, may_build):
    hook = HERE / "fixture.c"
    tree = "build-" + hashlib.sha256(hook.read_bytes() + CFLAGS.encode()).hexdigest()[:12]
    program = work / tree / "testfixture"
    if program.exists():
        return Fixture(program, next(p for p in (work / "source").iterdir() if (p / "VERSION").exists()))
    if not may_build:
        raise Unavailable("none has been built; tests/sqlite-suite/run --build-only makes one")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise Unavailable(f"not installed: {' '.join(missing)}")
    source = unpack(download(release, work), work)
    half = work / (tree + ".half")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir()
    run(
        [str(source / "configure"), "--enable-all", "--enable-session", f"CFLAGS={CFLAGS}"],
        half,
        work / "configure.log",
    )
    # The header that the hook needs is made from the tree.
    run(["make", "sqlite3.h"], half, work / "make-header.log")
    hook_object = half / "mycelite_suite.o"
    run(["cc", "-c", *CFLAGS.split(), f"-I{half}", str(hook), "-o", str(hook_object)], half, work / "hook.log")
    run(
        [
            "make",
            f"-j{jobs}",
            "testfixture",
            "OPTS=-DSQLITE_EXTRA_INIT=mycelite_suite_init",
            # The one reaches trees made with autoconf (to 3.48), the other those made with autosetup.
            f"LIBS={hook_object}",
            f"LDFLAGS.configure={hook_object}",
        ],
        half,
        work / "make.log",
    )
    os.rename(half, work / tree)
    return Fixture(program, source)
