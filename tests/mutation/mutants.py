"""Mutants of a source file: each is one small change of it.

Of Python, by its syntax tree: refusals, guards, comparisons, masks, filters, clears, assignments to state. Of C++, by
patterns of its text. What only people read (docstrings, notes, texts, annotations) is left alone.

Some mutants weaken a *line of defence*: a refusal or a check that is gone; a guard (an `if` that ends in return,
continue, break or raise) that never holds, lacks a part of its condition, or is off by one at its boundary; a mask, a
filter or a wipe that is gone; a bound (`min`, `max`) that is the other one; a tuple of a module or a set of types that
lacks an element, or has everything; a copy that is kept and is none.

This file is long because it is a list of changes, of two languages, and what finds their places.
"""

import ast
import copy
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

NOT_STATE = ("note", "debug", "info", "warning", "error", "log", "print", "__init__")
"""Calls whose loss nobody but a reader of the log would notice."""

SWAPPED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.BitXor: ast.BitOr,
}  # fmt: skip
CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "append": "appendleft", "popleft": "pop"}
LEAVES = (ast.Return, ast.Continue, ast.Break, ast.Raise)
DEFENCES = re.compile(
    r"_*(clear|pop|discard|remove|difference|intersection|wipe|forget|drop|reset|undo|release|check|refuse|fence|end|stop)"
)
"""Calls that throw something away or out: their names begin so."""

Build = Callable[[ast.AST], ast.AST]
Position = tuple[int, int]


class Everything(tuple[type, ...]):
    """Whatever is asked for is in it, and whatever there is is an instance of one of its types."""

    def __contains__(self, each: object) -> bool:
        return True


class Constant(NamedTuple):
    """A tuple of a module, and which of its elements is gone; None: it has everything."""

    name: str
    without: int | None

    def changed(self, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if self.without is None:
            return Everything((object,))
        return value[: self.without] + value[self.without + 1 :]


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
    defence: bool
    """That a line of defence is weakened."""
    statement: Position
    """Of Python: line and column of a statement without which the change makes no difference."""
    likely: Position
    """Of Python: one that is reached by those who most likely notice: what a guard does."""
    write: Callable[[], ast.Module]
    """Of Python: a module with the changed function alone, in its class, at the position that it has in the file."""
    constant: Constant | None = None
    """Or what is changed of a module."""

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
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)) if len(targets) == len(values):
            for i, each in enumerate(targets):
                if isinstance(each, ast.Attribute | ast.Subscript):
                    yield _without_pair(i)
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
        case ast.BinOp(op=ast.BitAnd()):
            yield lambda n: n.left  # type: ignore[attr-defined]
        case ast.BinOp(op=ast.BitOr()) if _is_union(node):
            yield lambda n: n.left  # type: ignore[attr-defined]
            yield lambda n: n.right  # type: ignore[attr-defined]
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            yield lambda n: _with(n, op=OPERATORS[type(n.op)]())  # type: ignore[attr-defined]
        case ast.Constant(value=bool()):
            yield lambda n: _with(n, value=not n.value)  # type: ignore[attr-defined]
        case ast.Constant(value=int()):
            yield lambda n: _with(n, value=n.value + 1)  # type: ignore[attr-defined]
        case ast.Call(args=[_], keywords=[]) if _is_copy(node):
            yield lambda n: n.args[0]  # type: ignore[attr-defined]
        case ast.Call(func=ast.Name(id=name)) if name in CALLS:
            yield lambda n: _with(n, func=ast.Name(CALLS[n.func.id], ast.Load()))  # type: ignore[attr-defined]


def _without_pair(at: int) -> Build:
    """`a, b = c, d` without a target and its value."""

    def build(node: ast.AST) -> ast.AST:
        assert isinstance(node, ast.Assign)
        targets, values = node.targets[0], node.value
        assert isinstance(targets, ast.Tuple) and isinstance(values, ast.Tuple)
        del targets.elts[at], values.elts[at]
        if len(targets.elts) == 1:
            node.targets, node.value = targets.elts, values.elts[0]
        return node

    return build


def _is_union(node: ast.BinOp) -> bool:
    """Of types: names that begin with a capital letter."""

    def is_type(each: ast.expr) -> bool:
        match each:
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return is_type(left) and is_type(right)
            case ast.Attribute(attr=name) | ast.Name(id=name):
                return name[:1].isupper() and not name.isupper()
        return False

    return is_type(node)


def _is_copy(node: ast.Call) -> bool:
    match node.func:
        case ast.Name(id="list" | "dict" | "set" | "replace") | ast.Attribute(attr="replace"):
            return isinstance(node.args[0], ast.Name | ast.Attribute | ast.Subscript)
    return False


def _is_kept(around: Sequence[ast.AST]) -> bool:
    """It goes into a field, so that it outlives the statement."""
    statement = next(each for each in reversed(around) if isinstance(each, ast.stmt))
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    flat = [each for t in targets for each in (t.elts if isinstance(t, ast.Tuple) else [t])]
    return any(isinstance(t, ast.Attribute | ast.Subscript) for t in flat) or any(
        isinstance(each, ast.keyword) for each in around
    )


def _is_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and any(isinstance(part[-1], LEAVES) for part in (node.body, node.orelse) if part)


def _is_alone(statement: ast.AST, parent: ast.AST | None) -> bool:
    """That a guard has only this to do: a guard that never holds is the same."""
    return isinstance(parent, ast.If) and parent.body == [statement] and not parent.orelse


def _is_empty(value: ast.expr | None) -> bool:
    match value:
        case ast.Constant(value=None):
            return True
        case ast.List(elts=[]) | ast.Tuple(elts=[]) | ast.Dict(keys=[]):
            return True
        case ast.Call(func=ast.Name(id="dict" | "set" | "list" | "deque"), args=[], keywords=[]):
            return True
    return False


def _is_defence(node: ast.AST, changed: ast.AST, around: Sequence[ast.AST]) -> bool:
    """Whether this change weakens a line of defence. `around`: the nodes that it is in, outermost first."""
    parent = around[-1] if around else None
    match node:
        case ast.Raise() | ast.Continue() | ast.Break() | ast.Return():
            return not _is_alone(node, parent)
        case ast.Delete():
            return True
        case ast.Expr(value=ast.Call(func=called)):
            return bool(DEFENCES.match(called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")))
        case ast.Assign(targets=[ast.Tuple()], value=ast.Tuple(elts=values)):
            return any(map(_is_empty, values)) and not (
                isinstance(around[0], ast.FunctionDef) and around[0].name == "__init__"
            )
        case ast.Assign(value=value):
            return _is_empty(value) and not (isinstance(around[0], ast.FunctionDef) and around[0].name == "__init__")
        case ast.AugAssign(op=ast.BitAnd() | ast.Sub()):
            return True
        case ast.If():
            # A guard whose leave is in the `else` holds always.
            return (
                _is_guard(node)
                and getattr(changed, "test", None) is not None
                and (
                    isinstance(node.body[-1], LEAVES) or changed.test.value is True  # type: ignore[attr-defined]
                )
            )
        case ast.comprehension():
            return True
        case ast.BinOp(op=ast.BitAnd()):
            return True
        case ast.BinOp(op=ast.BitOr()):
            return any(_in_condition(each, around[: i + 1]) for i, each in enumerate(around)) or _in_condition(
                node, around
            )
        case ast.Call(func=ast.Name(id="min" | "max")):
            return True
        case ast.Call(args=[_], keywords=[]):
            return _is_copy(node) and _is_kept(around)
        case ast.BoolOp():
            return _in_condition(node, around) and not (
                isinstance(changed, ast.BoolOp) and len(changed.values) == len(node.values)
            )
        case ast.Compare(ops=operators):
            orders = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
            assert isinstance(changed, ast.Compare)
            swapped = [old for old, new in zip(operators, changed.ops, strict=True) if type(old) is not type(new)]
            return _in_condition(node, around) and all(isinstance(each, orders) for each in swapped)
    return False


def _in_condition(node: ast.AST, around: Sequence[ast.AST]) -> bool:
    """In the condition of a guard."""
    inner = node
    for each in reversed(around):
        if isinstance(each, ast.stmt):
            return _is_guard(each) and each.test is inner  # type: ignore[attr-defined]
        inner = each
    return False


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


def _nodes(
    node: ast.AST, path: Path_ = (), around: tuple[ast.AST, ...] = ()
) -> Iterator[tuple[Path_, ast.AST, tuple[ast.AST, ...]]]:
    """Each node with its path and the nodes that it is in."""
    yield path, node, around
    for name, i, child in _fields(node):
        yield from _nodes(child, (*path, (name, i)), (*around, node))


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


def _functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    for child in getattr(tree, "body", []):
        if isinstance(child, ast.FunctionDef):
            yield prefix + child.name, child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")


def python_mutants(path: str, source: str) -> Iterator[Mutant]:
    """Each mutant of each function, in order."""
    tree = ast.parse(source)
    for where, function in _functions(tree):
        content = hashlib.sha256(ast.unparse(function).encode()).hexdigest()
        seen: Counter[str] = Counter()
        for inner, node, around in _nodes(function):
            within = next(each for each in (node, *reversed(around)) if isinstance(each, ast.stmt))
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
                write = partial(_written, where, function, inner, build)
                line = getattr(node, "lineno", within.lineno)
                defence = _is_defence(node, changed, around)
                yield Mutant(path, where, line, change, key, defence, *_reached_by(node, changed, within), write)


def constant_mutants(path: str, source: str) -> Iterator[Mutant]:
    """Of each tuple of a module that is named in capital letters: without an element, and one that has everything."""
    tree = ast.parse(source)
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Tuple(elts=[_, _, *_] as elements)):
                if not name.isupper() or not all(isinstance(e, ast.Name | ast.Attribute) for e in elements):
                    continue
            case _:
                continue
        used = [
            statement
            for _, function in _functions(tree)
            for statement in ast.walk(function)
            if isinstance(statement, ast.stmt) and not isinstance(statement, ast.FunctionDef)
            and any(isinstance(each, ast.Name) and each.id == name for each in _own(statement))
        ]  # fmt: skip
        if not used:
            continue
        at = used[0].lineno, used[0].col_offset
        content = hashlib.sha256(ast.unparse(node).encode()).hexdigest()
        for i, change in enumerate([f"without {ast.unparse(each)}" for each in elements] + ["with everything"]):
            key = hashlib.sha256(f"{path}\0{content}\0{name} {change}".encode()).hexdigest()[:16]
            constant = Constant(name, i if i < len(elements) else None)
            yield Mutant(path, name, node.lineno, change, key, True, at, at, _not_written, constant)


def _own(statement: ast.stmt) -> Iterator[ast.AST]:
    """The nodes of a statement without those of statements in it."""
    for child in ast.iter_child_nodes(statement):
        if not isinstance(child, ast.stmt):
            yield from ast.walk(child)


def _reached_by(node: ast.AST, changed: ast.AST, within: ast.stmt) -> tuple[Position, Position]:
    """`Mutant.statement` and `Mutant.likely` of a change in or of a statement."""
    own = within.lineno, within.col_offset
    if not isinstance(within, ast.If) or not _is_guard(within):
        return own, own
    body = within.body[0].lineno, within.body[0].col_offset
    never_holds = node is within and isinstance(changed.test, ast.Constant) and changed.test.value is False  # type: ignore[attr-defined]
    holds_less = node is within.test and isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or)
    fewer = not isinstance(changed, ast.BoolOp) or isinstance(changed.op, ast.Or)
    return (body if never_holds or (holds_less and fewer) else own), body


def _written(where: str, function: ast.FunctionDef, path: Path_, build: Build) -> ast.Module:
    changed = _replaced(function, path, build)
    for name in reversed(where.split(".")[:-1]):
        changed = ast.ClassDef(name, [], [], [changed], [])
    return ast.fix_missing_locations(ast.Module([changed], []))


def marked(source: str, first: int) -> tuple[ast.Module, dict[Position, int]]:
    """The file with a mark before each statement of its functions, `__reached__[i] = 1`, and i by statement."""
    tree = ast.parse(source)
    numbers: dict[Position, int] = {}
    for _, function in _functions(tree):
        for node in list(ast.walk(function)):
            for field in ("body", "orelse", "finalbody"):
                statements = getattr(node, field, None)
                if isinstance(statements, list):
                    setattr(node, field, list(_marks(statements, numbers, first)))
    return ast.fix_missing_locations(tree), numbers


def _marks(statements: list[ast.stmt], numbers: dict[Position, int], first: int) -> Iterator[ast.stmt]:
    for each in statements:
        at = each.lineno, each.col_offset
        number = numbers.setdefault(at, first + len(numbers))
        mark = ast.parse(f"__reached__[{number}] = 1").body[0]
        if not isinstance(each, ast.Nonlocal | ast.Global):
            for node in ast.walk(mark):
                ast.copy_location(node, each)
            yield mark
        yield each


# ------------------------------------------------------------------ C++
# All mutants of C++ are built into one module, and one at a time is switched on: `switch.hpp` has what the changed text
# calls. Each pattern is of a text (the whole match, or its group 1) and what stands there instead; {id} is the switch.
CPP: list[tuple[str, re.Pattern[str], str]] = [
    ("no refusal", re.compile(r"\brefuse\((?:[^;\"]|\"(?:[^\"\\]|\\.)*\")*\);"), "{{ if (!ECREC_ON({id})) {text} }}"),
    ("not called", re.compile(
        r"(?m)^\s+((?:[\w.\->]+(?:\.|->))?(?:clear|pop_back|erase|reset|wipe_\w+|check_\w+|shrink_to|set|set_limit|mark_\w+|"
        r"decide|assign|memset|std::memset|std::fill|finish|make_room|grow)\([^;{}]*\);)"),
        "{{ if (!ECREC_ON({id})) {text} }}"),
    *((f"{into} for {operator}", re.compile(rf"(?<=[\w)\]] ){operator}(?= [\w(])"),
       f"{operator} ::ecrec_mutation::Boundary<{{id}}>{{{{}}}} {operator}")
      for operator, into in (("<", "<="), ("<=", "<"), (">", ">="), (">=", ">"))),
    ("no mask", re.compile(r" & (\(?[\w: ]+\)?)(?=[;)\]])"), "::ecrec_mutation::mask<{id}>({text})"),
    ("max for min", re.compile(r"\bstd::min\b(?=\()"), "::ecrec_mutation::smaller<{id}>"),
    ("min for max", re.compile(r"\bstd::max\b(?=\()"), "::ecrec_mutation::larger<{id}>"),
    ("true for false", re.compile(r"\bfalse\b(?= *[;,)])"), "ECREC_ON({id})"),
    ("false for true", re.compile(r"\btrue\b(?= *[;,)])"), "(!ECREC_ON({id}))"),
]  # fmt: skip
_CPP_DEFENCES = ("no refusal", "not called", "no mask", "max for min", "min for max")
_CPP_FUNCTION = re.compile(r"(?m)^(?:    )?(?:template[^\n]*\n)?[\w:<>&*,\s\[\]]*?\b([\w:~]+)\([^;{}]*\)[^;{}]*\{")
_CPP_COMMENT = re.compile(r"//[^\n]*|\"(?:[^\"\\\n]|\\.)*\"|^#[^\n]*|\bconstexpr [^;{]*;|\bstatic_assert[^;]*;", re.M)
_CPP_IF = re.compile(r"\bif \(")
_CPP_LEAVES = re.compile(
    r"(?: \[\[(?:un)?likely\]\])?"
    r"(?: (?:return|continue|break|throw|refuse)\b|\s*\{[^{}]*\b(?:return\b[^;]*|continue|break);\s*\})"
)


class Edit(NamedTuple):
    """Text of a file that is changed when its switch is on."""

    first: int
    last: int
    what: str
    into: str
    """With {id} and {text}."""
    defence: bool


def _closing(source: str, at: int, hidden: Sequence[tuple[int, int]]) -> int:
    """Where the parenthesis that opens at `at` is closed."""
    depth = 0
    while True:
        skipped = next((last for first, last in hidden if first <= at < last), None)
        if skipped is not None:
            at = skipped
            continue
        depth += {"(": 1, ")": -1}.get(source[at], 0)
        if depth == 0:
            return at
        at += 1


def _operands_of(source: str, first: int, last: int) -> tuple[str, list[tuple[int, int]]]:
    """The operator of a condition, `&&` or `||`, and where its operands are: of the outermost level alone."""
    for operator in ("||", "&&"):
        depth, begins, found = 0, first, []
        for at in range(first, last):
            depth += {"(": 1, ")": -1, "[": 1, "]": -1, "{": 1, "}": -1}.get(source[at], 0)
            if depth == 0 and source.startswith(f" {operator} ", at):
                found.append((begins, at))
                begins = at + 4
        if found:
            return operator, [*found, (begins, last)]
    return "", []


def _cpp_edits(source: str) -> list[Edit]:
    hidden = [match.span() for match in _CPP_COMMENT.finditer(source)]

    def seen(at: int) -> bool:
        return not any(first <= at < last for first, last in hidden)

    edits, guards = [], []
    for match in _CPP_IF.finditer(source):
        if seen(match.start()):
            first, last = match.end(), _closing(source, match.end() - 1, hidden)
            leaves = _CPP_LEAVES.match(source, last + 1)
            if not leaves or ";" in source[first:last]:
                continue
            guards.append((first, last))
            if "refuse" not in leaves[0]:
                edits.append(Edit(first, last, "guard never holds", "!ECREC_ON({id}) && ({text})", True))
            operator, operands = _operands_of(source, first, last)
            for begin, end in operands:
                into = "(ECREC_ON({id}) || ({text}))" if operator == "&&" else "(!ECREC_ON({id}) && ({text}))"
                edits.append(Edit(begin, end, f"condition without `{' '.join(source[begin:end].split())}`", into, True))
    for what, pattern, into in CPP:
        for match in pattern.finditer(source):
            first, last = match.span(1 if pattern.groups else 0)
            if seen(first):
                defence = what in _CPP_DEFENCES or (any(begin <= first < end for begin, end in guards) and "=" in what)
                edits.append(Edit(first, last, what, into, defence))
    return edits


def cpp_mutants(path: str, source: str) -> list[Mutant]:
    """Each match of each pattern, but for those in comments, texts, constants and directives."""
    return [mutant for mutant, _ in _cpp_found(path, source)]


def _cpp_found(path: str, source: str) -> Iterator[tuple[Mutant, Edit]]:
    starts = [(match.start(), match[1]) for match in _CPP_FUNCTION.finditer(source)]
    seen: Counter[tuple[str, str]] = Counter()
    for edit in _cpp_edits(source):
        begun = [each for each in starts if each[0] <= edit.first]
        where = begun[-1][1] if begun else "file"
        end = next((first for first, _ in starts if first > edit.first), len(source))
        content = source[begun[-1][0] if begun else 0 : end]
        line_start = source.rfind("\n", 0, edit.first) + 1
        line = " ".join(source[line_start : source.find("\n", edit.first)].split())[:120]
        change = f"{edit.what} in `{line}`"
        seen[where, change] += 1
        if seen[where, change] > 1:
            change += f" #{seen[where, change]}"
        key = hashlib.sha256(f"{path}\0{content}\0{change}".encode()).hexdigest()[:16]
        number = source.count("\n", 0, edit.first) + 1
        at = number, edit.first - line_start
        yield Mutant(path, where, number, change, key, edit.defence, at, at, _not_written), edit


def _not_written() -> ast.Module:
    raise TypeError("it is no changed function: a switch of C++ (cpp_switched), or a constant")


def cpp_switched(path: str, source: str, switches: dict[str, int]) -> str:
    """The file with all mutants whose keys are named, each off until its switch is on."""
    pieces: list[tuple[int, int, int, str]] = []
    """(position, opening?, order, text): what closes stands before what opens, the inner one within the outer one."""
    replaced: set[tuple[int, int]] = set()
    for mutant, edit in _cpp_found(path, source):
        if mutant.key in switches:
            into = edit.into.replace("{id}", str(switches[mutant.key])).replace("{{", "{").replace("}}", "}")
            before, keeps, after = into.partition("{text}")
            if not keeps:
                replaced.add((edit.first, edit.last))
            pieces.append((edit.first, 1, edit.first - edit.last, before))
            pieces.append((edit.last, 0, edit.last - edit.first, after))
    text, at = [], 0
    for position, _, _, piece in sorted(pieces):
        if (at, position) not in replaced:
            text.append(source[at:position])
        text.append(piece)
        at = position
    return "".join(text) + source[at:]


def mutants(path: str, source: str) -> list[Mutant]:
    if path.endswith(".py"):
        return [*python_mutants(path, source), *constant_mutants(path, source)]
    return cpp_mutants(path, source)
