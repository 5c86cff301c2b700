"""What is wrong with a rendered site: links that lead nowhere, pages that nothing leads to, requests elsewhere."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from shell import ROOT

OURS = "https://topotransfer.github.io/topotransfer/"
CODE = "https://github.com/topotransfer/topotransfer/blob/main/"
LOADED = {"link": ["href"], "video": ["src", "poster"], "object": ["data"]}
LOADED |= dict.fromkeys(
    ("img", "script", "iframe", "source", "audio"), ["src", "srcset"]
)
ASKED = re.compile(r"(?:@import\s*|url\()\s*(?:url\()?[\"']?((?:https?:)?//[^\"')]+)")
STYLE = re.compile(r"<style[^>]*>(.*?)</style>", re.S)
NAMED_ONLY = {"canonical", "alternate"}  # kinds of <link> that load nothing


class Page(HTMLParser):
    "The addresses that a page links to, those that it loads, and the places in it that can be linked to."

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.places, self.menu = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.places.update(filter(None, (attrs.get("id"), attrs.get("name"))))
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
            if "sidebar-link" in (attrs.get("class") or ""):
                self.menu.append(attrs["href"])
        if not NAMED_ONLY & set((attrs.get("rel") or "").split()):
            found = (attrs.get(name) for name in LOADED.get(tag, ()))
            self.loads += [word.split()[0] for word in found if word]
        self.loads += ASKED.findall(attrs.get("style") or "")


def faults(site):
    "A sentence for each dead link, each page that the sidebar leaves out, each file that comes from elsewhere."
    site = Path(site).resolve()
    paths = sorted(site.rglob("*.html"))
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in paths}
    found = [*dead(site, pages), *orphans(pages), *elsewhere(pages)]
    for path in sorted([*site.rglob("*.css"), *paths]):
        text = path.read_text(encoding="utf-8")
        asked = ASKED.findall(
            text if path.suffix == ".css" else "".join(STYLE.findall(text))
        )
        found += [(path, f"loads {address} from elsewhere") for address in asked]
    return [f"{path.relative_to(site)}: {said}" for path, said in found]


def dead(site, pages):
    "Links of the site, and to files of the repository, that lead nowhere."
    for path, page in pages.items():
        for link in dict.fromkeys([*page.links, *page.loads]):
            if not leads_somewhere(site, pages, path, link):
                yield path, f"{link} is not there"


def leads_somewhere(site, pages, path, link):
    "Whether a link of a page leads to something; what others keep is not asked for."
    if link.startswith(CODE):
        return (ROOT / unquote(urlsplit(link[len(CODE) :]).path)).exists()
    if link.startswith(OURS):
        path, link = Path(site, "index.html"), link[len(OURS) :]
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    target = target / "index.html" if target.is_dir() else target
    there = pages.get(target)
    if there is None or not parts.fragment:
        return target.exists() and target.is_relative_to(Path(site).resolve())
    return unquote(parts.fragment) in there.places


def orphans(pages):
    "Pages that the sidebar of the first page doesn't list."
    first = next(path for path in pages if path.name == "index.html")
    listed = {(first.parent / link).resolve() for link in pages[first].menu}
    for path in pages:
        if path.resolve() not in listed:
            yield path, "stands in no chapter of nbs/sidebar.yml"


def elsewhere(pages):
    "Files that a reader's browser would ask another server for."
    for path, page in pages.items():
        for address in page.loads:
            if re.match(r"(https?:)?//", address):
                yield path, f"loads {address} from elsewhere"
