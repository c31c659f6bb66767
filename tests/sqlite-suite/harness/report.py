"""What a whole run found: differences first, the worst on top, then a table by family."""

import collections
import fnmatch

from . import cases, runner

# Differences of one file that are printed.
LINES_MAX = 12
# What the oracle may say that asks for a reason, the worst first.
VERDICTS = ("wrong", "error", "behind")
COLUMNS = ("files", "cases", "failed", "failed plain", "equal", "unseen", "behind", "wrong", "error", "unexplained")


class Comparison:
    """One test file with and without the extension; `plain` is None where it was not asked."""

    def __init__(self, file, plain, ours):
        self.file = file
        self.plain = plain
        self.ours = ours
        self.verdicts = runner.tally(ours.oracle)
        self.found = cases.differences(plain.outcome, ours.outcome) if plain else {}
        if ours.outcome.cases == 0 and plain is None:
            self.found["(cases)"] = "none was run"
        for answer in VERDICTS:
            if self.verdicts[answer]:
                self.found[f"log:{answer}"] = f"{self.verdicts[answer]} times"

    @property
    def failed(self):
        return sum(self.ours.outcome.failed.values())

    @property
    def failed_plain(self):
        return sum(self.plain.outcome.failed.values()) if self.plain else 0


def weight(case):
    """The lower, the worse."""
    order = ["log:wrong", "(end)", "log:error", "", "log:behind", "(cases)"]
    return order.index(case) if case in order else order.index("")


def show(done, explained, seconds, version, families):
    """Prints what was found; the number of differences without a reason."""
    open_lines, explained_lines, unexplained = [], [], collections.Counter()
    for one in sorted(done, key=lambda one: one.file):
        mine = []
        for case, what in one.found.items():
            reason = explained.reason(one.file, case)
            if reason is None:
                mine.append((weight(case), one.file, case, what))
            else:
                explained_lines.append(f"explained {one.file} {case}: {what} ({reason})")
        mine.sort()
        unexplained[one.file] = len(mine)
        if len(mine) > LINES_MAX:
            more = (mine[LINES_MAX][0], one.file, "", f"{len(mine) - LINES_MAX} more")
            mine = mine[:LINES_MAX] + [more]
        open_lines += mine
    for line in explained_lines:
        print(line)
    for _, file, case, what in sorted(open_lines):
        print(f"DIFFERS   {file} {case}: {what}")
    for line in explained.unused([one.file for one in done]):
        print(f"note: differences.txt {line}: not seen")
    table(done, families, unexplained)
    total = sum(unexplained.values())
    print(f"SQLite {version}, {seconds:.0f} s; differences: {len(explained_lines)} explained, {total} not")
    return total


def family_of(file, families):
    """The first family that has a pattern for `file`."""
    for name, patterns in families:
        if any(fnmatch.fnmatchcase(file, f"{pattern}.test") for pattern in patterns):
            return name
    return "other"


def table(done, families, unexplained):
    """Prints one line for each family."""
    rows = {name: collections.Counter() for name in [name for name, _ in families] + ["other", "all"]}
    for one in done:
        row = collections.Counter(one.verdicts)
        row.update(
            {
                "files": 1,
                "cases": one.ours.outcome.cases,
                "failed": one.failed,
                "failed plain": one.failed_plain,
                "unexplained": unexplained[one.file],
            }
        )
        rows[family_of(one.file, families)].update(row)
        rows["all"].update(row)
    print(f"{'family':12}" + "".join(f"{name:>13}" for name in COLUMNS))
    for name, row in rows.items():
        if row["files"]:
            print(f"{name:12}" + "".join(f"{row[column]:>13}" for column in COLUMNS))
