"""Check a tag against the version wherever it stands, and write the notes of the release to build/notes.md.

`python .ci/release.py v0.2.0` ends with a message where they don't agree.
"""

import re
import sys

from shell import ROOT

# Where the version stands, and how; the changelog's newest entry comes first.
VERSIONS = {
    "settings.ini": r"^version = (\S+)$",
    "topotransfer/__init__.py": r'^__version__ = "(\S+)"$',
    "CITATION.cff": r"^version: (\S+)$",
    "CHANGELOG.md": r"^## (\S+)",
}


def read(root=ROOT):
    "The files that name the version, by their path."
    return {name: (root / name).read_text(encoding="utf-8") for name in VERSIONS}


def disagreement(files):
    "Error or '': every file must name the version of settings.ini."
    named = {}
    for name, pattern in VERSIONS.items():
        found = re.search(pattern, files[name], re.M)
        named[name] = found[1] if found else "none"
    version = named["settings.ini"]
    return "\n".join(
        f"{name} must name version {version}, as settings.ini; found {other}"
        for name, other in named.items()
        if other != version
    )


def notes(tag, files):
    "The changelog's entry for a tag; `ValueError` where the tag or a file disagrees, or the entry is unreleased."
    if error := disagreement(files):
        raise ValueError(error)
    version = re.search(VERSIONS["settings.ini"], files["settings.ini"], re.M)[1]
    if tag != f"v{version}":
        raise ValueError(f"the tag must be v{version}, as in settings.ini; found {tag}")
    entry = rf"^## {re.escape(version)}([^\n]*)\n(.*?)(?=^## |\Z)"
    heading, text = re.search(entry, files["CHANGELOG.md"], re.M | re.S).groups()
    if "unreleased" in heading:
        raise ValueError(f"CHANGELOG.md still calls {version} unreleased")
    return text.strip()


def main(tag):
    try:
        text = notes(tag, read())
    except ValueError as error:
        sys.exit(str(error))
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "notes.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
