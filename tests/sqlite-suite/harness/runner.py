"""Runs one test file, in a directory and a process of its own, as an ordinary user."""

import collections
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import time

from . import cases

# Where test processes are root, they become this user: tests of permissions fail for root.
ORDINARY = "nobody"


class Extension:
    """What is under test; the oracle may be absent."""

    def __init__(self, library, oracle):
        self.library = library
        self.oracle = oracle


class Run:
    """What one test file did."""

    def __init__(self, outcome, seconds, oracle):
        self.outcome = outcome
        self.seconds = seconds
        self.oracle = oracle


def identity():
    """Arguments for subprocess that make it an ordinary user."""
    if os.getuid() != 0:
        return {}
    user = pwd.getpwnam(ORDINARY)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def run_file(fixture, permutation, file, place, extension, seconds_max):
    """Runs `file`; with `extension` None, on plain SQLite. `place` is made anew, and removed if all went well."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    who = identity()
    if who:
        os.chown(place, who["user"], who["group"])
    environment = {"PATH": os.environ["PATH"], "HOME": str(place), "LANG": "C.UTF-8"}
    verdicts = place / "oracle.log"
    if extension:
        environment["SQLITE_SUITE_LIBRARY"] = str(extension.library)
        if extension.oracle:
            environment["SQLITE_SUITE_ORACLE"] = str(extension.oracle)
            environment["SQLITE_SUITE_ORACLE_LOG"] = str(verdicts)
    command = [str(fixture.program), str(fixture.tests / "permutations.test"), permutation, file]
    started = time.monotonic()
    with open(place.with_suffix(".out"), "wb") as out:
        process = subprocess.Popen(
            command,
            cwd=place,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **who,
        )
        ended = "ended"
        try:
            process.wait(seconds_max)
        except subprocess.TimeoutExpired:
            ended = "timeout"
        finally:
            # Children that tests leave behind are in the same session.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
    text = place.with_suffix(".out").read_text(encoding="utf-8", errors="replace")
    outcome = cases.Outcome(text, ended)
    oracle = []
    if extension and extension.oracle:
        replay_what_is_left(extension, place, environment, who)
        if verdicts.exists():
            oracle = verdicts.read_text(encoding="utf-8", errors="replace").splitlines()
    return Run(outcome, time.monotonic() - started, oracle)


def replay_what_is_left(extension, place, environment, who):
    """Builds the image of each database that the test left behind, from its whole log."""
    for log_dir in sorted(place.rglob("*-mycelite")):
        database = pathlib.Path(str(log_dir)[: -len("-mycelite")])
        if database.is_file():
            command = [str(extension.oracle), "--replay", str(database)]
            subprocess.run(command, env=environment, timeout=600, check=False, **who)


def tally(oracle):
    """How often the oracle gave each answer."""
    return collections.Counter(line.split(" ", 1)[0] for line in oracle)
