"""Registry: things of one kind, known by name and added by a decorator where they are written."""

from __future__ import annotations

from typing import Callable, Dict, TypeVar

T = TypeVar("T")


class Registry(Dict[str, T]):
    """A dict from name to thing, in the order of registration; `kind` is what a message calls one of them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: what stands below it is known as `name`. Raises ValueError when the name is taken."""

        def add(thing: T) -> T:
            if name in self:
                raise ValueError(f"{self.kind} {name!r}: expected a new name, found it registered already")
            self[name] = thing
            return thing

        return add
