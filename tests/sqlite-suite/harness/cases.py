"""What a run of one test file gave, case by case, and how two such runs differ."""

import collections
import fnmatch
import re

# Threads of a test print dots before the name of a case.
OK = re.compile(r"([^\s.][^\n]*?)\.\.\.(?:[^\n]*?) Ok$", re.M)
FAILED = re.compile(r"^!Failures on these tests: (.*)$", re.M)
EXPECTED = re.compile(r"^! (\S+) expected: ", re.M)
ERROR = re.compile(r"^(\S+)\.\.\.\s*\nError: ", re.M)
TOTAL = re.compile(r"^(\d+) errors? out of (\d+) tests", re.M)
LEAK = re.compile(r"^(Unfreed memory: .*)$", re.M)


class Outcome:
    """The cases that one test file ran."""

    def __init__(self, text, ended):
        self.ended = ended
        self.passed = collections.Counter(match.group(1).strip() for match in OK.finditer(text))
        self.failed = collections.Counter()
        for line in FAILED.findall(text):
            self.failed.update(line.split())
        if not self.failed:
            self.failed.update(EXPECTED.findall(text) + ERROR.findall(text))
        if LEAK.search(text):
            self.failed["unfreed-memory"] += 1
        total = TOTAL.search(text)
        self.cases = int(total.group(2)) if total else sum(self.passed.values()) + sum(self.failed.values())
        if total is None and ended == "ended":
            self.ended = "died"

    @property
    def is_clean(self):
        return self.ended == "ended" and not self.failed


def differences(plain, ours):
    """Names of the cases whose result differs, each with what differs."""
    found = {}
    if plain.ended != ours.ended:
        found["(end)"] = f"{plain.ended} without us, {ours.ended} with us"
    for case in sorted(set(plain.failed) | set(ours.failed)):
        if plain.failed[case] != ours.failed[case]:
            found[case] = f"failed {plain.failed[case]} times without us, {ours.failed[case]} with us"
    if "(end)" in found or ours.ended != "ended":
        # What would have followed says nothing.
        return found
    only_plain, only_ours = plain.passed - ours.passed, ours.passed - plain.passed
    for case in found:
        del only_plain[case], only_ours[case]
    if only_plain or only_ours:
        example = min(list(only_plain) + list(only_ours))
        found["(cases)"] = (
            f"{sum(only_plain.values())} passed only without us, {sum(only_ours.values())} only with us, such as {example}"
        )
    return found


class Explained:
    """The checked-in list of differences with their reasons: `FILE CASE REASON`, patterns allowed in the first two."""

    def __init__(self, path):
        self.entries = []
        self.used = set()
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if line.strip() and not line.startswith("#"):
                file, case, reason = line.split(None, 2)
                self.entries.append((number, file, case, reason))

    def reason(self, file, case):
        """Why `case` of `file` may differ, or None."""
        for number, file_pattern, case_pattern, reason in self.entries:
            if fnmatch.fnmatchcase(file, f"{file_pattern}.test") and fnmatch.fnmatchcase(case, case_pattern):
                self.used.add(number)
                return reason
        return None

    def unused(self, files):
        """Entries for the `files` that were run, of which nothing was seen."""
        return [
            f"line {number}: {file} {case}"
            for number, file, case, _ in self.entries
            if number not in self.used and any(fnmatch.fnmatchcase(name, f"{file}.test") for name in files)
        ]
