"""What a notebook shows of the public objects: readable, escaped, and without loading anything."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from akidb_mlx_chroma import MLXEmbeddingFunction

from akidb_mlx_plugin import EmbeddingConfig, EmbeddingService, ModelInfo, UpsertResponse
from akidb_mlx_plugin.display import facts_table

EVIL = "<img src=x onerror=\"alert('1')\">&amp;"


class Tags(HTMLParser):
    """Collects the tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, _: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_strings_of_a_stranger_stay_text() -> None:
    page = Tags(facts_table(EVIL, {EVIL: EVIL}))
    assert page.text == EVIL * 3
    assert page.tags == {"table", "caption", "b", "tbody", "tr", "th", "td", "span"}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (12345, "12,345"),
        (True, "yes"),
        (False, "no"),
        (1234.56, "1,234.6"),
        (("a", 1), "a, 1"),
        ("one\ntwo ", "one\\ntwo "),
    ],
)
def test_values_are_written_as_people_read_them(value: object, shown: str) -> None:
    assert Tags(facts_table("", {"x": value})).text == f"x{shown}"


@pytest.mark.parametrize("nothing", [None, "", ()])
def test_what_is_not_known_is_left_out(nothing: object) -> None:
    assert Tags(facts_table("title", {"label": nothing})).text == "title"


def test_long_values_are_cut() -> None:
    text = Tags(facts_table("", {"": "x" * 5000})).text
    assert len(text) == 120
    assert text.endswith("…")


def test_model_info_names_the_space_and_escapes_prompts() -> None:
    prompts = {"query": EVIL, "document": "", "clustering": "not shown"}
    info = ModelInfo(EVIL, 512, 32768, dimensions=tuple(range(32, 1025)), prompts=prompts, revision="a" * 40)
    page = Tags(info._repr_html_())
    assert page.text.count(EVIL) == 2
    assert "img" not in page.tags
    for expected in ("512 dimensions", "32 to 1024", "32,768 tokens", "a" * 19):
        assert expected in page.text
    assert "not shown" not in page.text
    assert "parameters" not in page.text


def test_model_info_lists_few_dimensions_one_by_one() -> None:
    assert "128, 256" in ModelInfo("m", 256, 8, dimensions=(128, 256))._repr_html_()


def test_upsert_response_tells_the_rate_of_what_was_embedded() -> None:
    page = Tags(UpsertResponse(1200, 1000, 50_000, 10_000.0, skipped=3)._repr_html_())
    for expected in ("written1,200", "embedded here1,000", "unchanged3", "50,000", "10.00 s", "100 texts/s"):
        assert expected in page.text
    assert "cut" not in page.text


def test_upsert_response_of_nothing_has_no_rate() -> None:
    assert "texts/s" not in UpsertResponse(0, 0, 0, 0.0)._repr_html_()


def test_service_shows_itself_without_loading_the_model() -> None:
    with EmbeddingService("org/never-fetched") as service:
        page = Tags(service._repr_html_())
        assert "not loaded yet" in page.text
        assert repr(service) == "EmbeddingService('org/never-fetched', mode='mlx', open)"
    assert "closed" in repr(service)
    assert "closed" in service._repr_html_()


def test_service_escapes_the_users_name_of_a_model() -> None:
    config = EmbeddingConfig.load(overrides={"mode": "user_provided", "user_provided": {"model": EVIL}})
    with EmbeddingService(config) as service:
        page = Tags(service._repr_html_())
    assert EVIL in page.text
    assert "img" not in page.tags


def test_service_tells_when_its_model_is_loaded(minilm: EmbeddingService) -> None:
    minilm.embed_batch(["a text"])
    assert "loaded in" in minilm._repr_html_()


def test_chroma_function_shows_what_a_collection_stores() -> None:
    page = Tags(MLXEmbeddingFunction(model="minilm-l6-v2", query_prompt=EVIL)._repr_html_())
    assert "minilm-l6-v2" in page.text
    assert "distancecosine" in page.text
    assert EVIL in page.text
    assert "img" not in page.tags
