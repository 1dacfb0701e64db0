"""The mutants themselves: which mistakes are made, which lines are left alone, and that a seed draws the same again."""

from pathlib import Path

import pytest
from tests.mutation.__main__ import candidates, difference, draw
from tests.mutation.executed import PACKAGE, SOURCES, Executed
from tests.mutation.mutants import Mutant, mutants_of


def changed(source: str) -> list[tuple[str, str]]:
    return [(mutant.operator, mutant.changed.strip()) for mutant in mutants_of(source, "module.py")]


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("x = a < b", [("compare flipped", "x = (a <= b)")]),
        ("x = a is not None", [("compare flipped", "x = (a is None)")]),
        ("x = 3", [("constant changed", "x = 4")]),
        ("x = 0.0", [("constant changed", "x = 1.0")]),
        ("x = True", [("constant changed", "x = False")]),
        ("x = y if z else t", [("condition negated", "x = y if (not (z)) else t")]),
        ("x = a and b", [("and/or exchanged", "x = (a or b)")]),
        ("x = not a", [("negation dropped", "x = (a)")]),
        ("x = f(a, b, c=d)", [("arguments swapped", "x = f(b, a, c=d)")]),
        ("x = f(*a, b)", []),
        ("self.x = y", [("statement deleted", "pass")]),
        ("f(x)", [("statement deleted", "pass")]),
        ("x += y", [("statement deleted", "pass")]),
        ("x = y", []),
        ("def f():\n    return x", [("return altered", "return None")]),
        ("def f():\n    return None", []),
        ("é, x = 'é', 1", [("constant changed", "é, x = 'é', 2")]),
    ],
)
def test_the_mistakes_that_are_made(source, wanted):
    assert changed(source) == wanted


@pytest.mark.parametrize(
    "source",
    [
        '"""Words, 1 < 2."""',
        'def f():\n    "Words."',
        "x = 'text'",
        "x: Literal[1]",
        "def f(x: Literal[1]) -> Literal[2]: ...",
        "@cache(maxsize=3)\ndef f(): ...",
        "assert x == 1",
        "raise ValueError(1 < 2)",
        "import x",
        "x = f'{1 + 2}'",
        "if TYPE_CHECKING:\n    x = 1",
        "f(\n    a\n)",
    ],
)
def test_what_is_left_alone(source):
    assert changed(source) == []


@pytest.mark.parametrize("file", sorted((PACKAGE / "web").glob("*.py")), ids=lambda file: file.name)
def test_every_mutant_compiles_and_changes_its_line_alone(file: Path):
    source = file.read_text(encoding="utf-8")
    for mutant in mutants_of(source, str(file.relative_to(SOURCES))):
        mutated = mutant.applied(source)
        compile(mutated, file.name, "exec")
        pairs = list(zip(source.splitlines(), mutated.splitlines(), strict=True))
        assert [i for i, (line, other) in enumerate(pairs, 1) if line != other] == [mutant.line]
        assert f"+{mutant.changed}" in difference(mutant).splitlines()


def test_a_seed_draws_the_same_and_no_line_twice():
    executed = Executed({"nerve_kernels/web/limits.py": {line: [] for line in range(1, 400)}}, {})
    mutants = candidates(executed)
    first = draw(mutants, 20, seed=7)
    assert first == draw(list(reversed(mutants)), 20, seed=7)
    assert first != draw(mutants, 20, seed=8)
    assert len({mutant.line for mutant in first}) == 20


def test_only_lines_that_tests_execute_are_drawn():
    everything = mutants_of((PACKAGE / "web" / "limits.py").read_text(encoding="utf-8"), "nerve_kernels/web/limits.py")
    line = everything[0].line
    assert candidates(Executed({"nerve_kernels/web/limits.py": {line: ["a test"]}}, {})) == [
        mutant for mutant in everything if mutant.line == line
    ]


def test_a_file_that_has_changed_since_is_noticed():
    with pytest.raises(AssertionError, match="has changed"):
        Mutant("module.py", 1, "constant changed", "x = 1", "x = 2").applied("x = 3\n")
