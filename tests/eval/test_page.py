"""The page of an evaluation, as a browser reads it."""

import base64
import re
from html.parser import HTMLParser

import pytest

from eval.page import QUERIES, cut
from eval.score import main

HOSTILE = "<script src=https://example.org/x.js>alert('1')</script> & \"more\" <img src=http://example.org/y>"


class Page(HTMLParser):
    """Texts by tag, and all tags with their attributes."""

    def __init__(self, content: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())


def test_cut():
    assert cut("two\n words ", 9) == "two words"
    assert cut("two words", 8) == "two  ..." and cut("语" * 20, 8) == "语语语语 ..."


@pytest.fixture
def collection(tmp_path):
    """One passage and query with markup in them; the query has two relevant passages, of which one is not found."""
    directory = tmp_path / "col"
    directory.mkdir()
    (directory / "corpus.tsv").write_text(f"p<1\ta <b>title</b>\t{HOSTILE}\np2\t\tplain\np3\tlast\ttext\n")
    (directory / "queries.dev.tsv").write_text(f"q&1\t{HOSTILE}\nq2\tplain?\n")
    (directory / "qrels.dev.tsv").write_text("q&1\t0\tp<1\t1\nq&1\t0\tp3\t1\nq2\t0\tp2\t0\nq2\t0\tp3\t1\n")
    (tmp_path / "a<i>.trec").write_text("q&1 Q0 p2 1 2.5 x\nq&1 Q0 p<1 2 1.25 x\n")
    return directory


def test_page_shows_the_evaluation_and_nothing_from_elsewhere(collection, tmp_path):
    main(["--run", str(tmp_path / "a<i>.trec"), "--collection", str(collection), "--output", str(tmp_path / "o")])
    content = (tmp_path / "o" / "report.html").read_text()
    page = Page(content)
    # What texts hold is text: there is no tag and no attribute that could fetch anything.
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "a", "i"})
    assert all(
        attributes["src"].startswith("data:image/png;base64,") for _, attributes in page.tags if "src" in attributes
    )
    assert not any("href" in attributes or "style" in attributes for _, attributes in page.tags)
    assert "url(" not in content and "@import" not in content
    policy = next(attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'")
    assert page.texts.count(HOSTILE) == 1 and page.texts.count(f"a <b>title</b>: {HOSTILE}") == 1

    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [image["alt"] for image in images] == ["precision-recall curve", "ranks of the first relevant passages"]
    assert all(base64.b64decode(image["src"].partition(",")[2]).startswith(b"\x89PNG") for image in images)
    assert page.texts.count("a<i>") == 2
    measures = page.texts[page.texts.index("MRR@10") :][:3]
    assert measures == ["MRR@10", "0.2500", "0.0000 to 0.5000"]
    # The worst query first, of which nothing was found.
    queries = page.texts[page.texts.index("All queries, the worst first") + 1 :]
    assert queries[:2] == ["plain?", "q2, nDCG@10 0.0000"]
    assert queries[6:10] == ["not found", "1", "p3", "last: text"]
    first = queries.index(HOSTILE)
    assert queries[first + 6 : first + 10] == ["1", "2.5000", "p2", "plain"]
    assert queries[first + 10 : first + 14] == ["2", "1.2500", "1", "p<1"]
    assert queries[first + 15 : first + 18] == ["not found", "1", "p3"]
    marked = [attributes.get("class") for tag, attributes in page.tags if tag == "tr"]
    assert marked.count("relevant") == 3
    assert queries[queries.index("depth") + 1] == "1000"


def test_page_of_many_queries_stays_small(tmp_path):
    sizes = {}
    for count in (40, 2000):
        qrels, run = tmp_path / "qrels.tsv", tmp_path / "run.trec"
        qrels.write_text("".join(f"q{query} 0 d{query} 1\n" for query in range(count)))
        run.write_text("".join(f"q{query} Q0 d{query + query % 2} 1 1.0 x\n" for query in range(count)))
        main(f"--run {run} --qrels {qrels} --output {tmp_path / 'o'}".split())
        page = Page((tmp_path / "o" / "report.html").read_text())
        sizes[count] = (tmp_path / "o" / "report.html").stat().st_size
        assert [tag for tag, _ in page.tags].count("details") == 3 * QUERIES
        scores = [re.search(r"nDCG@10 (\S+)", text)[1] for text in page.texts if ", nDCG@10" in text]
        assert scores[: 2 * QUERIES] == ["0.0000"] * QUERIES + ["1.0000"] * QUERIES
    assert abs(sizes[2000] - sizes[40]) < 5000
