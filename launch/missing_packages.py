"""Print the packages of a lock file that realcustom_jax needs and a machine lacks, as NAME==VERSION.

python launch/missing_packages.py LOCK INSTALLED PYTHON_VERSION
"""

import importlib.metadata
import re
import sys
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement


def normal(name: str) -> str:
    """A package's name as pip compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names_of(path: str) -> dict[str, str]:
    """{name: version} of the lines NAME==VERSION of a file."""
    lines = (line.split("#")[0].split(";")[0].strip() for line in Path(path).read_text().splitlines())
    return {normal(name): version for name, _, version in (line.partition("==") for line in lines) if version}


def needed(root: str, environment: dict[str, str]) -> set[str]:
    """Names of all packages that `root` needs, directly or not."""
    found: set[str] = set()
    waiting = [(root, frozenset[str]())]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, extras = entry = waiting.pop()
        if entry in seen:
            continue
        seen.add(entry)
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform or version
        for line in lines:
            requirement = Requirement(line)
            marked = requirement.marker
            if marked and not any(marked.evaluate({**environment, "extra": e}) for e in (*extras, "")):
                continue
            found.add(normal(requirement.name))
            waiting.append((requirement.name, frozenset(requirement.extras)))
    return found


def main(lock: str, installed: str, version: str) -> None:
    locked, there = names_of(lock), names_of(installed)
    if "jax" not in there:
        sys.exit(
            f"error: {installed} has no line jax==VERSION: it is what pip list --format=freeze prints there"
        )
    environment = {**default_environment(), "python_version": version, "python_full_version": f"{version}.0"}
    wanted = needed("realcustom_jax", environment) - there.keys()
    unknown = sorted(wanted - locked.keys())
    if unknown:
        print(f"not in {lock}, and left out: {', '.join(unknown)}", file=sys.stderr)
    print("\n".join(f"{name}=={locked[name]}" for name in sorted(wanted & locked.keys())))


if __name__ == "__main__":
    main(*sys.argv[1:])
