"""Changes of a Python file, one place at a time: comparisons, signs, constants, terms, factors, arguments."""

import ast
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

SWAPS: dict[type[ast.AST], tuple[str, ...]] = {
    **{ast.Lt: ("<=", ">="), ast.LtE: ("<", ">"), ast.Gt: (">=", "<="), ast.GtE: (">", "<")},
    **{ast.Eq: ("!=",), ast.NotEq: ("==",), ast.Is: ("is not",), ast.IsNot: ("is",)},
    **{ast.In: ("not in",), ast.NotIn: ("in",), ast.And: ("or",), ast.Or: ("and",)},
    **{ast.Add: ("-",), ast.Sub: ("+",), ast.Mult: ("/",), ast.Div: ("*",), ast.Pow: ("*",)},
    **{ast.FloorDiv: ("/",), ast.Mod: ("//",)},
}
NAMES = {
    **{"min": "max", "max": "min", "any": "all", "all": "any", "argmax": "argmin", "argmin": "argmax"},
    **{"minimum": "maximum", "maximum": "minimum", "floor": "ceil", "ceil": "floor"},
    **{"sum": "mean", "mean": "sum", "zeros": "ones", "ones": "zeros", "zeros_like": "ones_like"},
}
SYMMETRIC = ("min", "max", "minimum", "maximum", "hypot", "isclose", "equal")
CHECKS = ("strict",)
DROPPED = ("abs", "sqrt", "sorted", "reversed")
#: Checks of arguments, and what is said, are no numerics.
SKIPPED_CALLS = ("check_", "warn", "deprecated", "TypeVar", "field")


@dataclass(frozen=True)
class Mutant:
    """One change of a file.

    Attributes
    ----------
    file : str
    key : str
        Names the change by its function and text; stays what it is when lines move.
    line : int
    start, end : int
        The bytes of the file that are replaced.
    old, new : str
    lines : tuple of int
        Lines whose tests are run; empty for what is executed on import.
    names : tuple of str
        For what is executed on import: the names that it gives a value.
    """

    file: str
    key: str
    line: int
    start: int
    end: int
    old: str
    new: str
    lines: tuple[int, ...]
    names: tuple[str, ...]

    def of(self, source: str) -> bytes:
        """Return the file with the change."""
        whole = source.encode()
        return whole[: self.start] + self.new.encode() + whole[self.end :]


def mutants(file: str, source: str) -> Iterator[Mutant]:
    """Return every change of a file that is still a program."""
    rows = [0]
    for row in source.encode().splitlines(keepends=True):
        rows.append(rows[-1] + len(row))
    seen: Counter[str] = Counter()
    for node, place in _walk(ast.parse(source), _Place()):
        for target, new in _changes(node, source):
            start = rows[target.lineno - 1] + target.col_offset
            end = rows[target.end_lineno - 1] + target.end_col_offset
            old = source.encode()[start:end].decode()
            key = f"{file}:{place.scope}: {' '.join(old.split())} → {' '.join(new.split())}"
            seen[key] += 1
            key = key if seen[key] == 1 else f"{key} ({seen[key]})"
            lines, names = _executed(target, place)
            mutant = Mutant(file, key, target.lineno, start, end, old, new, lines, names)
            try:
                compile(mutant.of(source), file, "exec")
            except (SyntaxError, SyntaxWarning):
                continue
            yield mutant


@dataclass(frozen=True)
class _Place:
    """Where a node is: names of functions and classes around it, the innermost function and statement."""

    scope: str = ""
    function: ast.FunctionDef | None = None
    statement: ast.stmt | None = None


def _walk(node: ast.AST, place: _Place) -> Iterator[tuple[ast.AST, _Place]]:
    """Return every node whose changes count, with its place; no annotation, decorator, message or check."""
    if isinstance(node, ast.stmt):
        place = replace(place, statement=node)
    match node:
        case ast.Raise() | ast.JoinedStr() | ast.Expr(value=ast.Constant()):
            return
        case ast.BinOp() if any(isinstance(each, ast.JoinedStr) for each in ast.walk(node)):
            return
        case ast.Call() if _name(node.func).startswith(SKIPPED_CALLS):
            return
        case ast.Expr(value=ast.Call() as call) if _name(call.func).startswith(SKIPPED_CALLS):
            return
        case ast.AnnAssign():
            inner: list[ast.AST] = [node.value] if node.value else []
        case ast.FunctionDef() | ast.ClassDef():
            inner = list(node.body)
            if isinstance(node, ast.FunctionDef):
                inner = [*node.args.defaults, *filter(None, node.args.kw_defaults), *inner]
            function = node if isinstance(node, ast.FunctionDef) else place.function
            place = replace(place, scope=f"{place.scope}.{node.name}".strip("."), function=function)
        case _:
            inner = list(ast.iter_child_nodes(node))
    yield node, place
    for each in inner:
        yield from _walk(each, place)


def _executed(node: ast.AST, place: _Place) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the lines that run a node; for what runs on import, the names that it gives a value."""
    function, statement = place.function, place.statement
    if function is None:
        named = (each for each in ast.walk(statement) if isinstance(each, ast.Name))
        return (), tuple(each.id for each in named if isinstance(each.ctx, ast.Store))
    if node.lineno < function.body[0].lineno:  # a default: whatever runs the function
        return tuple(range(function.body[0].lineno, function.end_lineno + 1)), ()
    return tuple(sorted({statement.lineno, *range(node.lineno, node.end_lineno + 1)})), ()


def _changes(node: ast.AST, source: str) -> Iterator[tuple[ast.AST, str]]:
    """Return the changes of one node: what is replaced, and by which text."""

    def text(part: ast.AST | None) -> str:
        return (ast.get_source_segment(source, part) or "") if part else ""

    match node:
        case ast.Expr(value=ast.Call()):
            yield node, "pass"
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            yield from ((node, f"{text(left)} {new} {text(right)}") for new in SWAPS[type(op)])
        case ast.BinOp(left=left, op=op, right=right):
            yield from ((node, f"(({text(left)}) {new} ({text(right)}))") for new in SWAPS.get(type(op), ()))
            if isinstance(op, ast.Add | ast.Sub | ast.Mult | ast.Div | ast.Pow):
                yield node, f"({text(left)})"
            if isinstance(op, ast.Add | ast.Mult):
                yield node, f"({text(right)})"
        case ast.AugAssign(target=target, op=op, value=value):
            yield from ((node, f"{text(target)} {new}= {text(value)}") for new in SWAPS.get(type(op), ()))
        case ast.BoolOp(op=op, values=values):
            texts = [f"({text(value)})" for value in values]
            joint = " and " if isinstance(op, ast.And) else " or "
            yield node, f" {SWAPS[type(op)][0]} ".join(texts)
            yield from ((node, f"({joint.join(texts[:i] + texts[i + 1 :])})") for i in range(len(texts)))
        case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand):
            yield node, f"({text(operand)})"
        case ast.IfExp(body=body, orelse=orelse):
            yield from ((node, f"({text(each)})") for each in (body, orelse))
        case ast.If(test=ast.Name() | ast.Attribute() | ast.Call() as test):
            yield test, f"not ({text(test)})"
        case ast.Constant(value=bool(value)):
            yield node, str(not value)
        case ast.Constant(value=int(value)):
            yield node, str(value + 1)
        case ast.Constant(value=float(value)):
            yield from ((node, repr(new)) for new in ((2 * value, value / 2) if value else (1.0,)))
        case ast.Slice():
            bounds = [text(bound) for bound in (node.lower, node.upper, node.step)]
            for i in (i for i, bound in enumerate(bounds) if bound):
                yield node, ":".join([*bounds[:i], "", *bounds[i + 1 :]])
        case ast.Call():
            yield from _changes_of_a_call(node, text)


def _changes_of_a_call(node: ast.Call, text: Callable[[ast.AST], str]) -> Iterator[tuple[ast.AST, str]]:
    """Call something else, in another order, or with an argument less."""
    name, function = _name(node.func), text(node.func)
    if name in NAMES:
        yield node.func, function.removesuffix(name) + NAMES[name]
    if name in DROPPED and node.args:
        yield node, f"({text(node.args[0])})"
    starred = any(isinstance(each, ast.Starred) for each in node.args[:2])
    if len(node.args) >= 2 and not starred and name not in SYMMETRIC:
        first, second, *rest = map(text, (*node.args, *node.keywords))
        yield node, f"{function}({', '.join([second, first, *rest])})"
    makes = isinstance(node.func, ast.Name) and name[:1].isupper()  # its fields are named for the reader
    for dropped in node.keywords if not makes and all(each.arg for each in node.keywords) else ():
        if dropped.arg in CHECKS:
            continue
        kept = (*node.args, *(each for each in node.keywords if each is not dropped))
        yield node, f"{function}({', '.join(map(text, kept))})"


def _name(function: ast.expr) -> str:
    """Last part of what is called."""
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
