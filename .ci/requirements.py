"""Print what recald and its tests need on Python 3.10, but for torch and what builds engines for a GPU."""

from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement

EXTRAS = ("", "demo", "signature", "dev")
LEFT_OUT = {"recald", "torch", "mypy", "ruff"}

for line in requires("recald") or []:
    requirement = Requirement(line)
    places = ({"extra": extra, "python_version": "3.10", "python_full_version": "3.10.0"} for extra in EXTRAS)
    needed = requirement.marker is None or any(requirement.marker.evaluate(place) for place in places)
    if needed and requirement.name not in LEFT_OUT:
        print(f"{requirement.name}{requirement.specifier}")
