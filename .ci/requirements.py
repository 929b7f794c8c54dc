"""Print what recald and its tests need on Python 3.10, but for torch and what builds engines for a GPU."""

from pip._vendor import tomli  # Python 3.10 has no tomllib
from pip._vendor.packaging.requirements import Requirement

EXTRAS = ("demo", "signature", "dev")
LEFT_OUT = {"recald", "torch", "mypy", "ruff"}

with open("pyproject.toml", "rb") as file:
    project = tomli.load(file)["project"]
for line in [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]:
    requirement = Requirement(line)
    if requirement.name not in LEFT_OUT and (requirement.marker is None or requirement.marker.evaluate()):
        print(f"{requirement.name}{requirement.specifier}")
