"""A registry: what a decorator adds is found by name, unchanged and in order, and no name is taken twice."""

from __future__ import annotations

import pytest

from sparse_ops.registry import Registry


def test_what_is_registered_is_found_by_name():
    rules: Registry[object] = Registry("rule")

    @rules.register("second")
    def double(x: int) -> int:
        return 2 * x

    @rules.register("first")
    def triple(x: int) -> int:
        return 3 * x

    assert list(rules) == ["second", "first"]
    assert (rules["second"], rules["first"]) == (double, triple)
    assert (double(5), triple(5)) == (10, 15)


def test_a_name_is_registered_once():
    rules: Registry[int] = Registry("rule")
    rules.register("one")(1)
    with pytest.raises(ValueError, match="rule 'one': expected a new name, found it registered already"):
        rules.register("one")(2)
    assert rules["one"] == 1
