"""Check a tag against version and changelog and write the notes of the release to build/notes.md.

`python .ci/release.py v0.2.0` ends with a message where they don't agree.
"""

import re
import sys

from shell import ROOT


def notes(tag, settings, changelog):
    "The changelog's entry for a tag; `ValueError` where tag, version and changelog disagree."
    version = re.search(r"^version = (\S+)$", settings, re.M)[1]
    if tag != f"v{version}":
        raise ValueError(f"the tag must be v{version}, as in settings.ini; found {tag}")
    entry = rf"^## {re.escape(version)}([^\n]*)\n(.*?)(?=^## |\Z)"
    found = re.search(entry, changelog, re.M | re.S)
    if not found:
        raise ValueError(f"CHANGELOG.md must have an entry ## {version}; found none")
    if "unreleased" in found[1]:
        raise ValueError(f"CHANGELOG.md still calls {version} unreleased")
    return found[2].strip()


def main(tag):
    settings, changelog = (
        (ROOT / name).read_text(encoding="utf-8")
        for name in ("settings.ini", "CHANGELOG.md")
    )
    try:
        text = notes(tag, settings, changelog)
    except ValueError as error:
        sys.exit(str(error))
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "notes.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
