"""The live page in a real browser: its rules, and that everybody can read it. The cluster behind it is told by hand."""

import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from chromium import Browser, executable
from dashboard_states import HOSTILE, WHOLE_MS, death, shard, state, table, worker

from ecrec.launch.dashboard.feed import Feed
from ecrec.launch.dashboard.page import Dashboard
from ecrec.launch.watched import Snapshot, Watched
from ecrec.protocol.messages import HistoryEntry

pytestmark = pytest.mark.skipif(executable() is None, reason="there is no Chromium here")

DESK, PHONE = (1280, 1000), (390, 900)
NOTHING = "\u2013"
CONTRAST_MIN = 4.5
"""Of text (WCAG 2.2, 1.4.3)."""
SPACE, ENTER, TAB = (" ", 32), ("Enter", 13), ("Tab", 9)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as made:
        yield made


class Told:
    """The page of a cluster that the test tells."""

    def __init__(self, browser: Browser) -> None:
        self.browser, self.feed = browser, Feed("tcp://scheduler:7070")
        self.begin_s = time.time()
        self.server = Watched(lambda: Snapshot("")).serve("--http", "127.0.0.1:0", dashboard=Dashboard(self.feed))

    def tell(self, before_s: float = 0.0, **changes: Any) -> None:
        """How the cluster is now, or was some seconds before that."""
        now_s = time.time() - before_s
        self.feed.take(state(**{"now_ms": WHOLE_MS + 1e3 * (now_s - self.begin_s), **changes}), now_s)

    def show(self, *, dark: bool = False, size: tuple[int, int] = DESK, still: bool = False) -> None:
        self.browser.look(*size, dark=dark, still=still)
        self.browser.open(f"{self.server.url}/")
        self.browser.until("document.querySelectorAll('.tile').length > 0")


@pytest.fixture
def told(browser: Browser) -> Iterator[Told]:
    made = Told(browser)
    yield made
    made.server.close()
    assert browser.errors == [], "the page raised something, or its policy kept it from something"


def busy(told: Told) -> None:
    """A cluster in which there is one of everything."""
    history = [*death(WHOLE_MS - 20_000.0, 1), *death(WHOLE_MS - 2_000.0, 2, until="up")]
    recovering = shard(2, "recovering", 2, repair_done=0.62, seed_done=0.25)
    shards = [shard(0), shard(1, epoch=2), recovering, shard(3), shard(4, "down")]
    for second in range(30):
        workers = {0: worker(100.0 * second, loss=0.5 - second / 100), 1: worker(90.0 * second)}
        told.tell(
            29.0 - second, workers=workers, history=history, shards=shards, suspected={3: "silent for 900 ms"},
            leaving={0: "waits for ps 2"}, tables=[table(), table(HOSTILE)],
        )  # fmt: skip


# ------------------------------------------------------------------ rules
def rule(browser: Browser, name: str, *arguments: Any) -> Any:
    return browser.evaluate(f"{name}({', '.join(json.dumps(each) for each in arguments)})")


def test_figures_are_written_as_people_read_them(told: Told) -> None:
    told.tell()
    told.show()
    page = told.browser
    for value, words in ((0, "0"), (7, "7"), (0.123, "0.12"), (999.6, "1.00 k"), (1234567, "1.23 M"), (None, NOTHING),
                         (52.25, "52.3"), (-2500, "-2.50 k"), (0.0001, "1.0e-4"), (1000, "1.00 k")):  # fmt: skip
        assert rule(page, "short", value) == words
    for value, words in ((0, "0 B"), (1023.99, "1.0 KiB"), (1536, "1.5 KiB"), (2.0**50, "1.0 PiB"), (None, NOTHING)):
        assert rule(page, "bytes", value) == words
    for value, words in ((0.0421, "42 ms"), (0.9999, "1.0 s"), (4.21, "4.2 s"), (59.97, "1 min"), (75, "1 min 15 s"),
                         (120, "2 min"), (7260, "2 h 1 min"), (3 * 86400, "3 days"), (-1, "0 ms")):  # fmt: skip
        assert rule(page, "duration", value) == words


def test_the_points_of_before_stay_when_a_scheduler_begins_its_series_anew(told: Told) -> None:
    told.tell()
    told.show()
    before = {"at": [1, 2, 3, 4], "loss": [9, 8, 7, 6]}
    merged = rule(told.browser, "mergeSeries", before, {"at": [3.5, 5], "loss": [5, None], "auc": [1, 2]}, 3)
    assert merged == {"at": [2, 3, 3.5, 5], "loss": [8, 7, 5, None], "auc": [None, None, 1, 2]}
    assert rule(told.browser, "mergeSeries", None, before, 600) == before
    assert rule(told.browser, "mergeSeries", before, {"at": [], "loss": []}, 600) == before


def test_a_line_breaks_where_nothing_is_known(told: Told) -> None:
    told.tell()
    told.show()
    pieces = rule(told.browser, "pieces", [1, 2, 3, 4, 20, 21], [5, 6, None, 7, 8, 9], 5)
    assert pieces == [[[1, 5], [2, 6]], [[4, 7]], [[20, 8], [21, 9]]]
    assert rule(told.browser, "extent", [None, 3, 5]) == [3, 5] and rule(told.browser, "extent", [None]) is None
    low, high = rule(told.browser, "range", [3, 3], False)
    assert low < 3 < high and rule(told.browser, "range", [3, 5], True) == [0, 5]
    assert rule(told.browser, "range", None, False) == [0, 1]
    assert [rule(told.browser, "spanOf", [100], 100 + age) for age in (0, 60, 61, 299, 301, 9999)] == [
        60, 60, 120, 300, 600, 600
    ]  # fmt: skip


def test_the_page_says_since_when_it_hears_nothing_and_of_whom(told: Told) -> None:
    told.tell()
    told.show()
    page = told.browser
    fresh = {"version": 1, "at": 100.0, "heard_at": 99.5}
    assert rule(page, "silence", fresh, None, 100.0) == ""
    assert rule(page, "silence", fresh, 90.0, 100.0).startswith("This page has had no answer since ")
    assert rule(page, "silence", {**fresh, "heard_at": 80.0}, None, 100.0).startswith("The scheduler has not answered")
    assert rule(page, "silence", {**fresh, "version": 2}, None, 100.0).startswith("The server of this page was changed")


# ------------------------------------------------------------------ what is shown
def test_shards_groups_and_a_recovery_are_shown(told: Told) -> None:
    busy(told)
    told.show()
    page = told.browser
    states = page.evaluate("[...document.querySelectorAll('#groups .tile')].map((each) => each.dataset.state)")
    assert states == ["leaving", "up", "recovering", "suspected", "down"]
    recovering = page.evaluate("document.querySelectorAll('#groups .tile')[2].innerText")
    assert "recovering" in recovering and "rows" in recovering and "62 %" in recovering and "25 %" in recovering
    assert "Another death" not in page.evaluate("document.querySelector('#verdict').textContent")
    assert "More servers are missing than the code tolerates" in page.evaluate("document.title")
    assert page.evaluate("document.querySelectorAll('#spares .tile').length") == 1
    stories = page.evaluate("[...document.querySelectorAll('.story')].map((each) => each.innerText)")
    assert "ps 2" in stories[0] and "a spare took over" in stories[0] and "rebuilds" in stories[0]
    assert "whole again after 4.2 s" in stories[1] and "+3.0 s" in stories[1]
    assert page.evaluate("document.querySelectorAll('rect.band').length") == 4 * 2
    assert page.evaluate("document.querySelectorAll('polyline').length") >= 5
    assert len(page.evaluate("[...document.querySelectorAll('#workers tbody tr')].map((row) => row.innerText)")) == 2


def test_names_that_are_markup_are_shown_as_they_are(told: Told) -> None:
    down = HistoryEntry(WHOLE_MS - 5_000, "down", 1, 1, HOSTILE, -1.0)
    told.tell(tables=[table(HOSTILE)], history=[down], suspected={2: HOSTILE}, lost=HOSTILE)
    told.show()
    page = told.browser
    page.until("document.title.includes('Data is lost')")
    assert page.evaluate("document.querySelector('#tables tbody th').textContent") == HOSTILE
    assert HOSTILE in page.evaluate("document.querySelector('.story').textContent")
    assert page.evaluate("document.querySelectorAll('img, body script:not(:last-of-type)').length") == 0
    assert not page.evaluate("document.title").startswith("taken")


# ------------------------------------------------------------------ for everybody
CONTRASTS = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = (css) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = css; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = (c) => { const l = c.slice(0, 3).map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92
    : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * l[0] + 0.7152 * l[1] + 0.0722 * l[2]; };
  const back = (element) => { for (let at = element; at; at = at.parentElement) {
    const color = rgba(getComputedStyle(at).backgroundColor); if (color[3] === 255) return color; }
    return [255, 255, 255, 255]; };
  const out = [];
  document.querySelectorAll('details').forEach((each) => { each.open = true; });
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility() || element.closest('script, style, .unseen')) continue;
    const [a, b] = [light(rgba(getComputedStyle(element).color)), light(back(element))];
    out.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.data.trim().slice(0, 40)]);
  }
  return out;
})()
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_all_text_can_be_read(told: Told, dark: bool) -> None:
    busy(told)
    told.show(dark=dark)
    found = told.browser.evaluate(CONTRASTS)
    assert len(found) > 80 and [each for each in found if each[0] < CONTRAST_MIN] == []
    back = told.browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, back.removeprefix("rgb(").removesuffix(")").split(","))) < 200) == dark


@pytest.mark.parametrize("size", [PHONE, DESK, (320, 800), (1920, 1080)], ids=str)
def test_nothing_is_wider_than_the_window(told: Told, size: tuple[int, int]) -> None:
    busy(told)
    told.show(size=size)
    told.browser.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert told.browser.evaluate("document.documentElement.scrollWidth") <= size[0]
    outside = """[...document.querySelectorAll('main *')].filter((each) => !each.closest('.scroll')
      && each.getBoundingClientRect().right > innerWidth + 1).map((each) => each.outerHTML.slice(0, 100))"""
    assert told.browser.evaluate(outside) == []


def test_each_part_has_a_name_and_each_state_a_word(told: Told) -> None:
    busy(told)
    told.show()
    nodes = told.browser.call("Accessibility.getFullAXTree")["nodes"]
    parts = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    roles = [role for role, _ in parts]
    assert roles.count("main") == roles.count("banner") == roles.count("contentinfo") == 1
    named = {name for role, name in parts if role == "region"}
    assert {"Training", "Servers", "Deaths and recoveries", "Workers", "More"} <= named
    assert all(name for role, name in parts if role in ("region", "progressbar", "img", "image", "button", "link"))
    levels = [int(p["value"]["value"]) for node in nodes if not node["ignored"] for p in node.get("properties", ())
              if p["name"] == "level" and node["role"]["value"] == "heading"]  # fmt: skip
    assert levels[0] == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert {"rows", "parity"} <= {name for role, name in parts if role == "progressbar"}
    assert any("Examples a second, last" in name and "from" in name for role, name in parts if role in ("img", "image"))
    words = told.browser.evaluate("[...document.querySelectorAll('.tile .state')].map((each) => each.textContent)")
    assert words == ["leaving", "up", "recovering", "suspected", "down", "waits"], "not by colour alone"


def test_a_screen_reader_hears_of_changes_and_not_of_figures(told: Told) -> None:
    told.tell()
    told.show()
    page = told.browser
    page.evaluate("""(() => { window.heard = [];
      document.querySelectorAll('[role=status], [role=alert], [aria-live]').forEach((each) =>
        new MutationObserver(() => heard.push(each.textContent)).observe(each,
          { childList: true, subtree: true, characterData: true })); })()""")
    tiles = [*map(shard, (0, 1, 3, 4))]
    for part in (0.1, 0.4, 0.9):
        told.tell(shards=[*tiles, shard(2, "recovering", 2, repair_done=part)], workers={0: worker(1e4 * part)})
        page.until(f"document.body.innerText.includes('{part * 100:.0f} %')")
    told.tell(shards=[*tiles, shard(2, epoch=2)])
    page.until("document.title.includes('All 5')")
    first, second = page.evaluate("heard")
    assert first.startswith("ps 2 is recovering. Training goes on.") and second == "All 5 servers are whole."


def test_it_can_be_used_by_keyboard_and_stopped(told: Told) -> None:
    busy(told)
    told.show()
    page = told.browser
    reached = []
    for _ in range(6):
        page.press(*TAB)
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert reached == ["A", "pause", "DIV", "SUMMARY", "SUMMARY", "A"]
    page.evaluate("document.querySelector('#pause').focus()")
    page.press(*SPACE)
    assert page.evaluate("document.querySelector('#pause').getAttribute('aria-pressed')") == "true"
    assert page.evaluate("document.querySelector('#as-of').textContent").startswith("paused at ")
    told.tell(lost="gone")
    page.evaluate("new Promise((done) => setTimeout(done, 1500))")  # longer than it waits between two looks
    assert "Data is lost" not in page.evaluate("document.title")
    page.press(*ENTER)
    page.until("document.title.includes('Data is lost')")
    assert page.evaluate("document.activeElement.id") == "pause", "the focus stays where it was"


def test_nothing_moves_for_those_who_want_it_still(told: Told) -> None:
    busy(told)
    moving = "document.getAnimations().filter((each) => each.playState === 'running').length"
    told.show()
    told.browser.until(f"{moving} > 0")
    told.show(still=True)
    told.browser.until("document.body.dataset.live === 'live' || document.body.dataset.live === 'silent'")
    assert told.browser.evaluate(moving) == 0


def test_what_is_read_is_not_drawn_again_unless_it_changes(told: Told) -> None:
    told.tell()
    told.show()
    page = told.browser
    page.evaluate("window.kept = document.querySelector('.tile')")
    told.tell(workers={0: worker(2_000)})
    page.until("document.querySelector('#workers').innerText.includes('2.00 k')")
    assert page.evaluate("kept.isConnected")
    told.tell(shards=[shard(i, epoch=2) for i in range(5)])
    page.until("document.querySelector('.tile').innerText.includes('life\\u00a02')")
    assert not page.evaluate("kept.isConnected")
