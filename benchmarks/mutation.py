"""Change the numerics in one place at a time, and look whether the tests notice.

    python benchmarks/mutation.py --work DIR [--fraction 0.1] [--files gradflow/spectrum …] [--minutes 60]

DIR keeps a copy of the tree, which tests reach which line (``reach.json``), and a line per mutant that was tried
(``results.jsonl``). A later call goes on where the last one ended. Needs ``pip install coverage``.
"""

import argparse
import ast
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from mutants import Mutant, mutants

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("flows", "integrators", "spectrum", "loss", "driver", "observe", "record", "analysis")
NOTES = Path(__file__).with_name("mutation_survivors.json")
#: Seconds that a mutant may take beyond three times those of its tests.
GRACE = 60.0

SLOW_TO_IMPORT = ("torch", "torchdiffeq", "scipy.integrate", "netCDF4", "xarray", "pytest")
SURVIVED = ("survived", "not reached")
PUBLISHED = (
    "Each row of the second table is a change of one place in gradflow that no test noticed, with the reason why it "
    "changes no number, or none that matters; those of the third were missed by a first run, and are caught by a test "
    "that was written for them, or that was left out for its length. A mutant is killed by a failing test, a failing "
    "import or a run out of time. It gets some seconds of tests that reach its line, those first that are short and "
    "reach little outside its file; tests marked slow are left out. Mutants are drawn by a hash of their text: the "
    "next run draws the same. The rows of loss and of integrators/exprb.py, krylov.py and unseen.py were measured at "
    "commit af665b0, on 6 % of the mutants of files that are new and 4 % of the others, and on those that were "
    "missed before; the other rows are older, without what is no longer in the code."
)


def drawn(mutant: Mutant, fraction: float) -> bool:
    """Whether a mutant is in the sample: by its name alone, so that a larger sample contains a smaller one."""
    return int(hashlib.sha256(mutant.key.encode()).hexdigest()[:8], 16) < fraction * 16**8


def copy_tree(to: Path) -> None:
    """Copy what git knows of the tree, and what it would."""
    shutil.rmtree(to, ignore_errors=True)
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listing, cwd=ROOT, text=True).split("\0"):
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, to / name)


def in_a_child(tree: Path, log: Path, timeout: float, work: Callable[[], int]) -> int | None:
    """Run something in a fork of this process, which has imported what is slow to import; None: out of time."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = 70
        try:
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def pytest_main(*arguments: str, plugins: tuple[object, ...] = ()) -> int:
    """Run pytest here."""
    return int(
        import_module("pytest").main(
            ["-q", "-p", "no:cacheprovider", "--tb=short", *arguments], list(plugins)
        )
    )


class Reach:
    """Pytest plugin: which test reaches which line, and how long each takes."""

    def __init__(self, out: Path) -> None:
        self.out, self.seconds, self.failed = out, defaultdict(float), []
        self.coverage = import_module("coverage").Coverage(data_file=None, include=["gradflow/*"])
        self.coverage.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Book what runs from here on to this test."""
        self.coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Add up set-up, call and teardown."""
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Write what was found."""
        self.coverage.stop()
        data, tests = self.coverage.get_data(), list(self.seconds)
        number = {test: i for i, test in enumerate(tests)}
        lines = {}
        for file in data.measured_files():
            by_line = data.contexts_by_lineno(file)
            lines[str(Path(file).relative_to(Path.cwd()))] = {
                line: sorted(number[c] for c in contexts if c in number) for line, contexts in by_line.items()
            }
        found = {
            "tests": [[t, round(self.seconds[t], 3)] for t in tests],
            "failed": self.failed,
            "lines": lines,
        }
        self.out.write_text(json.dumps(found))


class Only:
    """Pytest plugin: run these tests alone, in this order."""

    def __init__(self, tests: list[str]) -> None:
        self.order = {test: i for i, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Take them from all that was collected."""
        items[:] = sorted(
            (each for each in items if each.nodeid in self.order), key=lambda each: self.order[each.nodeid]
        )


def reach(work: Path, suite: list[str]) -> dict:
    """Return which tests reach which line, as DIR has it; run the whole suite if it doesn't, or the tests given."""
    out, new = work / "reach.json", work / "new.json"
    found = json.loads(out.read_text()) if out.exists() else {"tests": [], "failed": [], "lines": {}}
    if suite or not out.exists():
        print("running tests once, to see what they reach", flush=True)
        options = ("-m", "not slow", *suite)
        in_a_child(
            work / "tree", work / "reach.log", 7200, lambda: pytest_main(*options, plugins=(Reach(new),))
        )
        measured = json.loads(new.read_text())
        found = _added(found, measured)
        found["first"] = [test for test, _ in measured["tests"]] if suite else []
        out.write_text(json.dumps(found))
    if found["failed"]:
        print(f"left out, for they fail without a change: {', '.join(found['failed'])}")
    return found


def _added(old: dict, new: dict) -> dict:
    """Add what some tests reach to what was known, which it replaces."""
    again = {test for test, _ in new["tests"]}
    kept = [i for i, (test, _) in enumerate(old["tests"]) if test not in again]
    number = {i: n for n, i in enumerate(kept)}
    lines: dict[str, dict[str, list[int]]] = {}
    for found, of in ((old, number), (new, {i: i + len(kept) for i in range(len(new["tests"]))})):
        for file, by_line in found["lines"].items():
            for line, numbers in by_line.items():
                place = lines.setdefault(file, {}).setdefault(str(line), [])
                place += [of[i] for i in numbers if i in of]
    failed = [test for test in old["failed"] if test not in again] + new["failed"]
    return {"tests": [old["tests"][i] for i in kept] + new["tests"], "failed": failed, "lines": lines}


def tests_of(mutant: Mutant, found: dict, most: float) -> list[str]:
    """Choose the tests to run: of those that reach it the fast ones that are about its file, for so many seconds."""
    by_line = found["lines"].get(mutant.file, {})
    if mutant.lines:
        numbers = {i for line in mutant.lines for i in by_line.get(str(line), ())}
    else:  # a constant: what reaches a line that mentions it, or anything in its file
        numbers = {i for name in mutant.names for i in found["mentions"].get(name, ())}
        numbers &= {i for reached in by_line.values() for i in reached}
        numbers = numbers or {i for reached in by_line.values() for i in reached}
        numbers |= {i for i, (test, _) in enumerate(found["tests"]) if test in found.get("first", ())}
    failed, first = set(found["failed"]), set(found.get("first", ()))
    own = Counter(i for reached in by_line.values() for i in reached)

    def price(i: int) -> tuple[bool, float]:  # for the part of what it reaches that is in this file
        test, seconds = found["tests"][i]
        return test not in first, (seconds + 0.01) * found["reached"][i] / (own[i] or 1)

    total, chosen = 0.0, []
    for test, seconds in (found["tests"][i] for i in sorted(numbers, key=price)):
        if test in failed:
            continue
        total += seconds + 0.01
        if total > most and chosen:
            break
        chosen.append((test, seconds))
    return [test for test, _ in chosen]


def mentions(found: dict) -> dict[str, list[int]]:
    """Return the tests that reach a line inside a function which mentions a name."""
    by_name: dict[str, set[int]] = defaultdict(set)
    for file, by_line in found["lines"].items():
        for function in ast.walk(ast.parse((ROOT / file).read_text())):
            if isinstance(function, ast.FunctionDef):
                for node in (each for statement in function.body for each in ast.walk(statement)):
                    name = getattr(node, "id", None) or getattr(node, "attr", None)
                    if name:
                        by_name[name] |= set(by_line.get(str(node.lineno), ()))
    return {name: sorted(numbers) for name, numbers in by_name.items()}


def try_out(mutant: Mutant, found: dict, work: Path, most: float) -> dict[str, object]:
    """Run so many seconds of tests on a mutant."""
    tests = tests_of(mutant, found, most)
    row = {"key": mutant.key, "file": mutant.file, "line": mutant.line, "old": mutant.old, "new": mutant.new}
    if not tests:
        return {**row, "verdict": "not reached", "tests": 0, "seconds": 0.0}
    tree = work / "tree"
    target, source = tree / mutant.file, (ROOT / mutant.file).read_text()
    seconds = dict(map(tuple, found["tests"]))
    timeout = GRACE + 3 * sum(seconds[test] for test in tests)
    modules = dict.fromkeys(test.split("::")[0] for test in tests)
    started = time.monotonic()
    try:
        _write(target, mutant.of(source))
        code = in_a_child(
            tree, work / "mutant.log", timeout, lambda: pytest_main("-x", *modules, plugins=(Only(tests),))
        )
    finally:
        _write(target, source.encode())
    verdict = {None: "timeout", 0: "survived", 1: "killed", 2: "killed on import"}.get(code, f"error {code}")
    killer = ""
    if verdict == "killed":
        log = (work / "mutant.log").read_text(errors="replace").splitlines()
        killer = next((x.split(" ")[1] for x in reversed(log) if x.startswith(("FAILED ", "ERROR "))), "")
    took = round(time.monotonic() - started, 1)
    return {**row, "verdict": verdict, "tests": len(tests), "seconds": took, "killer": killer}


def _write(target: Path, content: bytes) -> None:
    """Write a file, and forget what Python compiled of it: a change within a second would go unnoticed."""
    target.write_bytes(content)
    for compiled in (target.parent / "__pycache__").glob(f"{target.stem}.*.pyc"):
        compiled.unlink()


def files(given: list[str]) -> list[str]:
    """Return the files of the parts that have numerics, or those given."""
    roots = [ROOT / each for each in given] or [ROOT / "gradflow" / part for part in PARTS]
    every = [p for root in roots for p in ([root] if root.suffix == ".py" else sorted(root.rglob("*.py")))]
    return [str(p.relative_to(ROOT)) for p in every if p.name != "__init__.py" and "plot" not in p.name]


def publish_all(rows: list[dict], work: Path, directory: str) -> None:
    """Write the tables; mutants of text that has changed since are left out."""
    from common import publish

    now = {m.key: m.line for file in files([]) for m in mutants(file, (ROOT / file).read_text())}
    notes = json.loads(NOTES.read_text()) if NOTES.exists() else {}
    last = {row["key"]: row for row in rows if row["key"] in now}
    missed = {row["key"] for row in rows if row["verdict"] in SURVIVED}
    by_file: dict[str, Counter[str]] = defaultdict(Counter)
    survivors, caught = [], []
    for key, row in sorted(last.items(), key=lambda each: (each[1]["file"], now[each[0]])):
        alive = row["verdict"] in SURVIVED
        by_file[row["file"]]["alive" if alive else "killed"] += 1
        by_file[row["file"]]["explained"] += alive and key in notes
        place = {"where": f"{row['file'].removeprefix('gradflow/')}:{now[key]}"}
        change = {"original": _code(row["old"]), "mutant": _code(row["new"])}
        if alive:
            survivors.append({**place, **change, "why": notes.get(key, row["verdict"])})
        elif key in missed:
            caught.append({**place, **change, "test": _code(row["killer"].split("/")[-1].split("[")[0])})
    total = sum(by_file.values(), Counter())
    table = [
        {"file": file, "mutants": n["killed"] + n["alive"], "killed": n["killed"], "survived": n["alive"]}
        | {"of these explained": n["explained"]}
        for file, n in [*by_file.items(), ("all", total)]
    ]
    sections = {
        "Mutants by file": table,
        "Survivors": survivors,
        "Missed at first": caught,
    }
    tests = json.loads((work / "reach.json").read_text())["tests"]
    tests = [test for test, _ in tests if (ROOT / test.split("::")[0]).exists()]
    modules = sorted(
        {test.split("::")[0].removeprefix("tests/") for test in tests if test.startswith("tests/")}
    )
    known = f" The tests were {len(tests)}: the examples in docstrings, and those of {', '.join(modules)}."
    publish("mutation", directory, "Mutants of the numerics", sections, PUBLISHED + known)


def _code(text: str) -> str:
    """Return code as a cell of a table."""
    line = " ".join(text.split())
    return f"`{line if len(line) <= 90 else line[:88] + ' …'}`".replace("|", "\\|")


def main() -> None:
    """Try the mutants that have not been tried yet, then publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--fraction", type=float, default=0.1, help="part of all mutants that is tried")
    parser.add_argument("--files", nargs="*", default=[], help="files or folders; default: all with numerics")
    parser.add_argument(
        "--tests", nargs="*", default=[], help="tests to measure anew and to try first; default: all, once"
    )
    parser.add_argument(
        "--seconds", type=float, default=20, help="of tests for a mutant, as they took in DIR"
    )
    parser.add_argument("--match", default="", help="try those alone, all of them, whose name contains this")
    parser.add_argument(
        "--again", nargs="*", default=[], help="verdicts that are tried again, such as survived"
    )
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no mutant after so long")
    parser.add_argument("--publish", help="folder of the tables; publish what was tried, try nothing")
    options = parser.parse_args()
    work = options.work.resolve()
    results = work / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    if options.publish:
        return publish_all(rows, work, options.publish)
    tried = {row["key"]: row for row in rows}
    os.environ["OMP_NUM_THREADS"] = "1"
    for package in SLOW_TO_IMPORT:  # once, for all the children
        import_module(package)
    copy_tree(work / "tree")
    found = reach(work, options.tests)
    found["mentions"] = mentions(found)
    reached = (i for by_line in found["lines"].values() for numbers in by_line.values() for i in numbers)
    found["reached"] = Counter(reached)
    notes = json.loads(NOTES.read_text()) if NOTES.exists() else {}
    until = time.monotonic() + 60 * options.minutes
    for file in files(options.files):
        for mutant in mutants(file, (ROOT / file).read_text()):
            wanted = options.match in mutant.key if options.match else drawn(mutant, options.fraction)
            before = tried.get(mutant.key)
            wanted |= before is not None
            again = before is None or (before["verdict"] in options.again and mutant.key not in notes)
            if not wanted or not again or time.monotonic() > until:
                continue
            row = try_out(mutant, found, work, options.seconds)
            with results.open("a") as out:
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
            print(f"{row['verdict']:16} {row['seconds']:5.1f} s  {mutant.line}:{mutant.key}", flush=True)


if __name__ == "__main__":
    main()
