"""Changes of single operators and constants, found in the syntax tree."""

import ast
from collections.abc import Iterator
from itertools import pairwise

from tests.mutants.mutant import ROOT, Mutant

# The heart: what decides an answer or a score.
HEART = (
    "calce_jax/models/*.py",
    "calce_jax/models/keyframes/*.py",
    "calce_jax/text/prompt.py",
    "calce_jax/text/prompt_windows.py",
    "calce_jax/moments/windows.py",
    "calce_jax/moments/metrics/*.py",
    "calce_jax/training/*.py",
    "calce_jax/inference/predict_step.py",
    "calce_jax/inference/prediction.py",
    "calce_jax/input_pipeline/rows.py",
)
OPERATORS = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.And: (" and ", " or "),
    ast.Or: (" or ", " and "),
}


def heart_files() -> list[str]:
    """Return the files of the heart, from the checkout."""
    return sorted({str(path.relative_to(ROOT)) for pattern in HEART for path in ROOT.glob(pattern)})


def mutants_of(path: str) -> Iterator[Mutant]:
    """Yield every change of a file: operators, comparisons, numbers, truth values, `not`, `~`, min and max."""
    source = (ROOT / path).read_text()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def at(node: ast.expr, end: bool = False) -> int:
        line, column = (node.end_lineno, node.end_col_offset) if end else (node.lineno, node.col_offset)
        text = source[starts[line - 1] : starts[line]].encode()[:column].decode()
        return starts[line - 1] + len(text)

    def between(left: ast.expr, right: ast.expr, operator: ast.AST) -> Iterator[Mutant]:
        if type(operator) in OPERATORS:
            old, new = OPERATORS[type(operator)]
            offset = source.find(old, at(left, end=True), at(right))
            if offset >= 0:
                yield Mutant(path, old, new, offset=offset)

    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.BinOp(left, operator, right):
                yield from between(left, right, operator)
            case ast.Compare(left, operators, rights):
                for operand, operator, right in zip([left, *rights], operators, rights, strict=False):
                    yield from between(operand, right, operator)
            case ast.BoolOp(operator, values):
                for left, right in pairwise(values):
                    yield from between(left, right, operator)
            case ast.UnaryOp(ast.Not() | ast.Invert()):
                old = source[at(node) : at(node, end=True)]
                yield Mutant(path, old, old.removeprefix("not").removeprefix("~").strip(), offset=at(node))
            case ast.Constant(bool() as value):
                yield Mutant(path, str(value), str(not value), offset=at(node))
            case ast.Constant(int() | float() as value):
                old = source[at(node) : at(node, end=True)]
                yield Mutant(
                    path, old, f"({value} + 1)" if isinstance(value, int) else f"({value} * 1.5)", offset=at(node)
                )
            case ast.Attribute(value, ("minimum" | "maximum") as name):
                new = "maximum" if name == "minimum" else "minimum"
                yield Mutant(path, name, new, offset=at(node, end=True) - len(name))
