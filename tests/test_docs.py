"""Links, paths and names in the documentation exist; the README stays short."""

import re
from pathlib import Path

import pytest

from realcustom_jax.toybox import WORDS
from realcustom_jax.toybox.backgrounds import PHRASES

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("studies/*.md")])
# Paths that commands write, paths of users, and placeholders.
NOT_HERE = re.compile(r"^(runs|data|models|samples|bucket|dreambooth|photos)/|[A-Z]{3}|\*")


def test_readme_is_short_and_lists_toybox_words():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 900
    assert ", ".join(WORDS) in text and ", ".join(PHRASES.values()) in text


@pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.name if page.parent == ROOT else str(page)[-24:]
)
def test_links_and_paths_of_page_exist(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert not [link for link in links if not (page.parent / link).exists()]
    paths = {
        path for path in re.findall(r"`([\w./-]+/[\w./-]*\.(?:py|sh|md))", text) if not NOT_HERE.search(path)
    }
    found = {path for path in paths for root in (ROOT, ROOT / "realcustom_jax") if (root / path).exists()}
    assert paths == found


@pytest.mark.parametrize("page", ["docs/method.md", "CONTRIBUTING.md"])
def test_names_beside_a_file_exist_in_it(page):
    """Checks table rows with a file in one column and names in the next."""
    rows = re.findall(r"\| `([\w./]+\.py)` \| ([^|]*)\|", (ROOT / page).read_text(encoding="utf-8"))
    assert rows
    for file, names in rows:
        path = next(path for path in (ROOT / file, ROOT / "realcustom_jax" / file) if path.is_file())
        # Names after a semicolon belong to another file.
        for name in re.findall(r"`(\w+)`", names.partition(";")[0]):
            assert re.search(rf"\b{name}\b", path.read_text(encoding="utf-8")), (file, name)
