"""Whether what a page exports says what it is, what it refuses and where it comes from.

The names that count are those that a reader can import: public functions and classes of exported cells, and public
methods and properties of these classes.
"""

import ast
import re
from typing import NamedTuple

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
REFUSAL = re.compile(r"\w+error\b|\brais|\brefus", re.I)
SHAPE = re.compile(r"`\(\w.*?\)`")
ARRAY = re.compile(r"\b(ndarray|Tensor)\b")
PLACE = re.compile(r"\b(19|20)\d\d\b|poster|page ")  # of a score: a paper, or ours


class Entry(NamedTuple):
    "A function or class that a reader can import: its name, syntax tree and docstring."

    name: str
    node: ast.AST
    words: str


def entries(tree):
    "What the top of a cell exports, methods after their class."
    for node in tree.body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and node.name[0] != "_":
            words = ast.get_docstring(node) or ""
            yield Entry(node.name, node, words)
            if isinstance(node, ast.ClassDef):
                yield from methods(node, words)


def methods(node, words):
    "The methods that a reader calls; special ones are described by the docstring of their class."
    for inner in node.body:
        if isinstance(inner, FUNCTIONS):
            name, own = f"{node.name}.{inner.name}", ast.get_docstring(inner) or ""
            if inner.name[0] != "_":
                yield Entry(name, inner, own)
            elif inner.name.startswith("__"):
                yield Entry(name, inner, own or words)


def inside(node):
    "The nodes of a function that are part of no function in it, nor of a `try` whose errors it catches."
    caught = node.body if isinstance(node, ast.Try) and node.handlers else []
    for inner in ast.iter_child_nodes(node):
        if inner not in caught and not isinstance(inner, (*FUNCTIONS, ast.Lambda)):
            yield inner
            yield from inside(inner)


def refuses(function):
    "Whether a function raises an error itself, or lets a function called `check_…` do it."
    for node in inside(function):
        if isinstance(node, ast.Raise) and node.exc is not None:
            return True
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Name) and called.id.lstrip("_").startswith("check_"):
            return True
    return False


def bare_arrays(function, words, source):
    "Arrays among the arguments of which neither a comment nor the docstring's shapes say what they are."
    given, lines = function.args, source.splitlines()
    return [
        a.arg
        for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)
        if a.annotation and ARRAY.search(ast.unparse(a.annotation))
        if "#" not in lines[a.end_lineno - 1] and not SHAPE.search(words)
    ]


def without_place(function):
    "Whether a function is registered as a score and doesn't say which paper it is from."
    for call in function.decorator_list:
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "register_score":
            given = {word.arg: ast.unparse(word.value) for word in call.keywords}
            said = given.get("reference", "''")
            return said == "''" or "kind" not in given and not PLACE.search(said)
    return False


def missing_words(entry, source):
    "What the docstring of an entry doesn't say."
    if not entry.words:
        return ["has no docstring"]
    if isinstance(entry.node, ast.ClassDef):
        return []
    found = []
    if refuses(entry.node) and not REFUSAL.search(entry.words):
        found.append("raises errors and doesn't say which")
    if arrays := bare_arrays(entry.node, entry.words, source):
        found.append(f"doesn't say what {', '.join(arrays)} must look like")
    if without_place(entry.node):
        found.append(
            "is a score whose reference names no paper with its year (`page my score` for an idea of one's own)"
        )
    return found


def undocumented(cells):
    "Each public name of exported cells says what it is, what it raises, its arrays' shapes, its score's paper."
    return "\n".join(
        f"{cell.place}: {entry.name} {words}"
        for cell in cells
        for entry in entries(cell.tree)
        for words in missing_words(entry, cell.source)
    )
