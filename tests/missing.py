"""A machine without a package."""

import builtins


def without(monkeypatch, *packages):
    """As if these packages were not installed."""
    real = builtins.__import__

    def imported(name, *rest):
        if name.partition(".")[0] in packages:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", imported)
