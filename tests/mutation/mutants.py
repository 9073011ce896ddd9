"""Mutants of a source file: each is one line of defence weakened.

Of Python, by its syntax tree: refusals, guards, comparisons, masks, filters, clears, assignments to state. Of C++, by
patterns of its text. What only people read (docstrings, notes, texts, annotations) is left alone.
"""

import ast
import copy
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

NOT_STATE = ("note", "debug", "info", "warning", "error", "log", "print", "__init__")
"""Calls whose loss nobody but a reader of the log would notice."""

SWAPPED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.BitXor: ast.BitOr,
}  # fmt: skip
CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "append": "appendleft", "popleft": "pop"}
LEAVES = (ast.Return, ast.Continue, ast.Break, ast.Raise)

Build = Callable[[ast.AST], ast.AST]


class Mutant(NamedTuple):
    """One changed file."""

    path: str
    where: str
    """The function, with its class."""
    line: int
    change: str
    """What was changed, as text; with `where` and a number among equal ones it names the mutant for good."""
    key: str
    """Of the path, the function's content and the change: the same verdict holds while it is the same."""
    write: Callable[[], str]
    """The changed file."""

    @property
    def name(self) -> str:
        return f"{self.path} {self.where}: {self.change}"


def _text(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 120 else f"{text[:100]} ... {hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _compare(at: int, operator: type[ast.cmpop] | None, add: int = 0) -> Build:
    def build(node: ast.AST) -> ast.AST:
        assert isinstance(node, ast.Compare)
        if operator is not None:
            node.ops[at] = operator()
        if add:
            node.comparators[at] = ast.BinOp(node.comparators[at], ast.Add(), ast.Constant(add))
        return node

    return build


def _operands(kept: list[int]) -> Build:
    def build(node: ast.AST) -> ast.AST:
        assert isinstance(node, ast.BoolOp)
        node.values = [node.values[i] for i in kept]
        return node if len(node.values) > 1 else node.values[0]

    return build


def _changes(node: ast.AST) -> Iterator[Build]:
    """Each way to weaken this very node."""
    match node:
        case ast.Raise() | ast.Delete() | ast.Continue() | ast.Break():
            yield lambda n: ast.copy_location(ast.Pass(), n)
        case ast.Return(value=None):
            yield lambda n: ast.copy_location(ast.Pass(), n)
        case ast.Expr(value=ast.Call(func=called)):
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name not in NOT_STATE:
                yield lambda n: ast.copy_location(ast.Pass(), n)
        case ast.Assign(targets=targets) if any(isinstance(t, ast.Attribute | ast.Subscript) for t in targets):
            yield lambda n: ast.copy_location(ast.Pass(), n)
        case ast.AugAssign():
            yield lambda n: ast.copy_location(ast.Pass(), n)
        case ast.If() | ast.While():
            yield lambda n: _with(n, test=ast.Constant(False))
            if isinstance(node, ast.If) and not isinstance(node.body[-1], LEAVES):
                yield lambda n: _with(n, test=ast.Constant(True))
        case ast.IfExp():
            yield lambda n: n.body  # type: ignore[attr-defined]
            yield lambda n: n.orelse  # type: ignore[attr-defined]
        case ast.comprehension(ifs=ifs):
            for i in range(len(ifs)):
                yield lambda n, i=i: _with(n, ifs=[each for j, each in enumerate(n.ifs) if j != i])  # type: ignore[misc, attr-defined]
        case ast.BoolOp(op=operator, values=values):
            for i in range(len(values)):
                yield _operands([j for j in range(len(values)) if j != i])
            yield lambda n: _with(n, op=ast.Or() if isinstance(operator, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not() | ast.Invert()):
            yield lambda n: n.operand  # type: ignore[attr-defined]
        case ast.Compare(ops=operators, comparators=compared):
            for i, each in enumerate(operators):
                yield _compare(i, SWAPPED[type(each)])
                if isinstance(each, ast.Lt | ast.GtE | ast.Gt | ast.LtE) and isinstance(compared[i], ast.expr):
                    yield _compare(i, None, 1 if isinstance(each, ast.LtE | ast.Gt) else -1)
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            yield lambda n: _with(n, op=OPERATORS[type(n.op)]())  # type: ignore[attr-defined]
        case ast.Constant(value=bool()):
            yield lambda n: _with(n, value=not n.value)  # type: ignore[attr-defined]
        case ast.Constant(value=int()):
            yield lambda n: _with(n, value=n.value + 1)  # type: ignore[attr-defined]
        case ast.Call(func=ast.Name(id=name)) if name in CALLS:
            yield lambda n: _with(n, func=ast.Name(CALLS[n.func.id], ast.Load()))  # type: ignore[attr-defined]


def _with(node: ast.AST, **fields: object) -> ast.AST:
    for name, value in fields.items():
        setattr(node, name, value)
    return node


def _fields(node: ast.AST) -> Iterator[tuple[str, int | None, ast.AST]]:
    """Children that may be changed, and where they are."""
    match node:
        case ast.JoinedStr() | ast.Raise():
            return
        case ast.Call(func=ast.Attribute(attr=name)) if name in NOT_STATE:
            return
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            names = ["body"]
        case ast.AnnAssign():
            names = ["value"]
        case _:
            names = [name for name, _ in ast.iter_fields(node)]
    for name in names:
        child = getattr(node, name, None)
        if isinstance(child, ast.AST):
            yield name, None, child
        elif isinstance(child, list):
            for i, each in enumerate(child):
                if isinstance(each, ast.AST):
                    yield name, i, each


Path_ = tuple[tuple[str, int | None], ...]


def _nodes(node: ast.AST, path: Path_ = ()) -> Iterator[tuple[Path_, ast.AST]]:
    yield path, node
    for name, i, child in _fields(node):
        yield from _nodes(child, (*path, (name, i)))


def _replaced(root: ast.AST, path: Path_, build: Build) -> ast.AST:
    root = copy.deepcopy(root)
    if not path:
        return build(root)
    parent = root
    for name, i in path[:-1]:
        parent = getattr(parent, name) if i is None else getattr(parent, name)[i]
    name, i = path[-1]
    if i is None:
        setattr(parent, name, build(getattr(parent, name)))
    else:
        getattr(parent, name)[i] = build(getattr(parent, name)[i])
    return root


def _functions(tree: ast.AST, prefix: str = "", path: Path_ = ()) -> Iterator[tuple[str, Path_, ast.FunctionDef]]:
    for i, child in enumerate(getattr(tree, "body", [])):
        if isinstance(child, ast.FunctionDef):
            yield prefix + child.name, (*path, ("body", i)), child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.", (*path, ("body", i)))


def python_mutants(path: str, source: str) -> Iterator[Mutant]:
    """Each mutant of each function, in order."""
    tree = ast.parse(source)
    for where, at, function in _functions(tree):
        content = hashlib.sha256(ast.dump(function).encode()).hexdigest()
        seen: Counter[str] = Counter()
        for inner, node in _nodes(function):
            for build in _changes(node):
                changed = _replaced(node, (), build)
                shown = node.test if isinstance(node, ast.If | ast.While) else node
                into = changed.test if isinstance(changed, ast.If | ast.While) else changed
                change = f"{_text(shown)} -> {_text(into)}"
                if isinstance(node, ast.If | ast.While):
                    change = f"{type(node).__name__.lower()} {change}"
                seen[change] += 1
                if seen[change] > 1:
                    change += f" #{seen[change]}"
                key = hashlib.sha256(f"{path}\0{content}\0{change}".encode()).hexdigest()[:16]
                write = partial(_written, tree, (*at, *inner), build)
                yield Mutant(path, where, getattr(node, "lineno", function.lineno), change, key, write)


def _written(tree: ast.AST, path: Path_, build: Build) -> str:
    return ast.unparse(ast.fix_missing_locations(_replaced(tree, path, build)))


# ------------------------------------------------------------------ C++
CPP: list[tuple[str, re.Pattern[str], str]] = [
    ("no refusal", re.compile(r"\brefuse\((?:[^;\"]|\"(?:[^\"\\]|\\.)*\")*\);"), "(void)0;"),
    ("<= for <", re.compile(r"(?<=[\w)\]] )<(?= [\w(])"), "<="),
    ("< for <=", re.compile(r"(?<=[\w)\]] )<=(?= [\w(])"), "<"),
    (">= for >", re.compile(r"(?<=[\w)\]] )>(?= [\w(])"), ">="),
    ("> for >=", re.compile(r"(?<=[\w)\]] )>=(?= [\w(])"), ">"),
    ("!= for ==", re.compile(r" == "), " != "),
    ("== for !=", re.compile(r" != "), " == "),
    ("|| for &&", re.compile(r" && (?=[\w(!])"), " || "),
    ("&& for ||", re.compile(r" \|\| "), " && "),
    ("- 1 for + 1", re.compile(r"\+ 1\b"), "- 1"),
    ("+ 1 for - 1", re.compile(r"- 1\b"), "+ 1"),
    ("no mask", re.compile(r" & \(?[\w: ]+\)?(?=[;)\]])"), ""),
    ("no continue", re.compile(r"\bcontinue;"), ";"),
    ("no early return", re.compile(r"\breturn;"), ";"),
    ("not called", re.compile(
        r"(?m)^(\s+)(?:[\w.\->]+(?:\.|->))?(?:clear|wipe_\w+|shrink_to|set|set_limit|mark_\w+|decide|assign|memset|"
        r"std::memset|std::fill|finish|make_room|grow)\([^;{}]*\);"), r"\1(void)0;"),
    ("true for false", re.compile(r"\bfalse\b"), "true"),
    ("false for true", re.compile(r"\btrue\b"), "false"),
    ("no negation", re.compile(r"(?<=[( ])!(?=[\w(])"), ""),
    ("max for min", re.compile(r"\bstd::min\b"), "std::max"),
    ("min for max", re.compile(r"\bstd::max\b"), "std::min"),
    ("set for xor", re.compile(r" \^= "), " = "),
]  # fmt: skip
_CPP_FUNCTION = re.compile(r"(?m)^(?:    )?(?:template[^\n]*\n)?[\w:<>&*,\s\[\]]*?\b([\w:~]+)\([^;{}]*\)[^;{}]*\{")
_CPP_COMMENT = re.compile(r"//[^\n]*|\"(?:[^\"\\\n]|\\.)*\"|^#[^\n]*", re.M)


def cpp_mutants(path: str, source: str) -> Iterator[Mutant]:
    """Each match of each pattern, but for those in comments, texts and directives."""
    hidden = [match.span() for match in _CPP_COMMENT.finditer(source)]
    starts = [(match.start(), match[1]) for match in _CPP_FUNCTION.finditer(source)]
    seen: Counter[tuple[str, str]] = Counter()
    for what, pattern, into in CPP:
        for match in pattern.finditer(source):
            if any(first <= match.start() < last for first, last in hidden):
                continue
            begun = [each for each in starts if each[0] <= match.start()]
            where = begun[-1][1] if begun else "file"
            end = next((first for first, _ in starts if first > match.start()), len(source))
            content = source[begun[-1][0] if begun else 0 : end]
            line_start = source.rfind("\n", 0, match.start()) + 1
            line = " ".join(source[line_start : source.find("\n", match.start())].split())[:120]
            change = f"{what} in `{line}`"
            seen[where, change] += 1
            if seen[where, change] > 1:
                change += f" #{seen[where, change]}"
            key = hashlib.sha256(f"{path}\0{content}\0{change}".encode()).hexdigest()[:16]
            text = source[: match.start()] + match.expand(into) + source[match.end() :]
            yield Mutant(path, where, source.count("\n", 0, match.start()) + 1, change, key, partial(str, text))


def mutants(path: str, source: str) -> list[Mutant]:
    return list((python_mutants if path.endswith(".py") else cpp_mutants)(path, source))
