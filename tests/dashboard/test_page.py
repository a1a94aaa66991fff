"""The page in a real browser, with real jobs and a Hub that fails."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hubsync import HubsyncError, Uploader
from hubsync.localhub import Fault, LocalHub
from hubsync.telemetry.heartbeat import Heartbeat, write_heartbeat
from tests.conftest import FAST
from tests.dashboard.conftest import Job, Page

pytestmark = [pytest.mark.slow("drives a browser"), pytest.mark.timeout(900)]  # it may have to be installed first

# No test needs nearly this long; it is for a busy machine.
_PATIENCE_MS = 60_000
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def windows(chrome: Any) -> list[Any]:
    """The browser's windows that no test uses: a new one takes it two seconds, another address half of one."""
    return []


@pytest.fixture
def browse(chrome: Any, windows: list[Any]) -> Iterator[Open]:
    """Open an address in a window; at the end, check that it had no errors and loaded nothing from other hosts."""
    used: list[tuple[Any, dict[str, Callable[[Any], None]]]] = []
    wrong: list[str] = []

    def heard(said: Any) -> None:
        # The browser's own word of a server that a test has ended; to others nothing may be sent at all: see below.
        if said.type in ("error", "warning") and not said.text.startswith("Failed to load resource: net::ERR_"):
            wrong.append(said.text)

    def open_(address: str, *, width: int = 1280, wait: str = ".plot svg", **media: str) -> Any:
        def requested(made: Any) -> None:
            if not made.url.startswith(address.partition("#")[0]):
                wrong.append(made.url)

        shown = windows.pop() if windows else chrome.new_context().new_page()
        shown.set_default_timeout(_PATIENCE_MS)
        shown.set_viewport_size({"width": width, "height": 800})
        shown.emulate_media(**{"color_scheme": "light", "reduced_motion": "no-preference", **media})
        listeners = {"console": heard, "pageerror": lambda error: wrong.append(str(error)), "request": requested}
        for event, listener in listeners.items():
            shown.on(event, listener)
        used.append((shown, listeners))
        shown.goto(address)  # on a port of its own: nothing is stored for it yet
        shown.wait_for_selector(wait)
        return shown

    yield open_
    for shown, listeners in used:
        for event, listener in listeners.items():
            shown.remove_listener(event, listener)
        shown.goto("about:blank")
        windows.append(shown)
    assert wrong == []


@pytest.fixture(scope="module")
def ended_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spool with everything in it that a page can show, and no job: commits, what waits, a dead shard, changes."""
    directory = tmp_path_factory.mktemp("ended")
    spool = directory / "spool"
    with (
        LocalHub(directory / "hub") as hub,
        Uploader("user/rows", endpoint=hub.endpoint, token=hub.token, spool=spool, retry=FAST["retry"]) as up,
    ):
        for code, times in ((503, 1), (422, 4)):
            up.put([{"id": n} for n in range(30)])
            up.flush()
            hub.faults.add(Fault.status(code, on="commit", times=times))
            up.put([{"id": code}])
            with contextlib.suppress(HubsyncError):
                up.flush()
        hub.stop()
        up.put([{"id": 1}])
        with contextlib.suppress(HubsyncError):
            up.close(timeout=0.5)
    return spool


@pytest.fixture
def ended(ended_once: Path, tmp_path: Path) -> Path:
    """A copy of `ended_once`, of a job that ended long ago."""
    shutil.copytree(ended_once, tmp_path / "spool")
    for lock in (tmp_path / "spool").rglob("*.lock"):
        os.utime(lock, (0, 0))
    return tmp_path / "spool"


def text(shown: Any, term: str) -> str:
    """What the page says of a term."""
    return str(shown.locator(f"dt:text-is('{term}') ~ dd").first.inner_text())


def until(shown: Any, script: str, argument: Any = None) -> None:
    shown.wait_for_function(script, arg=argument, timeout=_PATIENCE_MS)


STATE = "kind => document.querySelector('.state span').textContent === kind"


def test_the_figures_follow_a_job_in_another_process(
    hub: LocalHub, browse: Open, job: Job, page: Page, tmp_path: Path
) -> None:
    with job(hub, "user/rows", tmp_path / "spool") as process, page(tmp_path / "spool") as address:
        shown = browse(address, wait=".card")
        until(shown, STATE, "Uploading")
        shown.wait_for_selector("tbody tr [data-mark=committed]")
        before = text(shown, "On the Hub")
        until(
            shown,
            "before => ![...document.querySelectorAll('dd')].some(d => d.innerText === before)",
            before,
        )
        assert int(text(shown, "On the Hub").split()[0].replace(",", "")) > int(before.split()[0].replace(",", ""))
        assert str(process.pid) in shown.locator(".processes").inner_text()
        link = shown.locator(".shards a").first
        assert link.get_attribute("href").startswith(f"{hub.endpoint}/datasets/user/rows/blob/main/data/")
        assert shown.locator("h2 a").get_attribute("href") == f"{hub.endpoint}/datasets/user/rows"
        assert "of 67.1 MB" in shown.locator("dt:text-is('Queue in memory') ~ dd").inner_text()


def test_the_state_follows_the_hub_and_changes_are_read_out(
    hub: LocalHub, browse: Open, job: Job, page: Page, tmp_path: Path
) -> None:
    with job(hub, "user/rows", tmp_path / "spool") as process, page(tmp_path / "spool") as address:
        shown = browse(address, wait=".card")
        until(shown, STATE, "Uploading")
        shown.wait_for_selector("tbody tr [data-mark=committed]")
        said = shown.locator("[role=status]")
        hub.faults.add(Fault.rate_limit("commits", on="commit", times=1))
        until(shown, STATE, "Waiting")
        assert "user/rows: Waiting. The Hub's commit quota is used up. Next attempt at" in said.inner_text()
        assert text(shown, "Next commit").startswith("in ")
        assert shown.title() == "Waiting – hubsync"
        process.kill()
        process.wait()
        until(shown, STATE, "Not running")
        assert "No job has this spool open." in shown.locator(".reason").inner_text()
        assert f"hubsync drain {tmp_path / 'spool'}" in shown.locator(".lead").inner_text()
        assert "ended" in shown.locator(".processes").inner_text()
    hub.revoke(hub.token)


def test_a_revoked_token_is_shown_and_so_is_its_end(
    hub: LocalHub, browse: Open, job: Job, page: Page, tmp_path: Path
) -> None:
    with job(hub, "user/rows", tmp_path / "spool"), page(tmp_path / "spool") as address:
        shown = browse(address, wait=".card")
        until(shown, STATE, "Uploading")
        shown.wait_for_selector("tbody tr [data-mark=committed]")
        hub.revoke(hub.token)
        until(shown, STATE, "Blocked")
        assert "401" in shown.locator(".reason").inner_text()
        assert shown.locator(".changes [data-mark=blocked]").count() >= 1
        age = "() => document.querySelector('.big').textContent"
        first = shown.evaluate(age)
        until(shown, "first => document.querySelector('.big').textContent !== first", first)
        hub.add_user(hub.user, hub.token)
        until(shown, STATE, "Uploading")
        assert not shown.locator(".reason").is_visible()


def test_several_spools_side_by_side_and_one_that_comes_and_goes(
    hub: LocalHub, browse: Open, page: Page, tmp_path: Path, ended: Path
) -> None:
    home = tmp_path / "home"
    with page(HUBSYNC_HOME=str(home)) as address:
        shown = browse(address, wait=".empty")
        assert str(home) in shown.locator(".empty").inner_text()
        for name in ("one", "two"):
            shutil.copytree(ended, home / name)
        until(shown, "() => document.querySelectorAll('article').length === 2")
        assert not shown.locator(".empty").is_visible()
        boxes = [card.bounding_box() for card in shown.locator("article").all()]
        assert boxes[0]["y"] == boxes[1]["y"]
        assert boxes[0]["x"] + boxes[0]["width"] < boxes[1]["x"]
        for file in (home / "two").glob("catalogue.sqlite*"):
            file.unlink()
        (home / "two" / "catalogue.sqlite").write_bytes(b"not a database" * 100)
        until(shown, "() => document.querySelectorAll('.state span')[0].textContent === 'Corrupt'")
        assert "hubsync drain --rescue" in shown.locator("article").nth(0).inner_text()
        assert [shown.locator(".lead").nth(n).is_visible() for n in (0, 1)] == [False, True]
        shutil.rmtree(home / "two")
        until(shown, "() => document.querySelectorAll('article').length === 1")


@pytest.fixture(scope="module")
def many(ended_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with six spools: two that need someone, four that are finished. No test changes it."""
    directory = tmp_path_factory.mktemp("many")
    home = directory / "home"
    shutil.copytree(ended_once, home / "rejected")
    (home / "corrupt").mkdir()
    (home / "corrupt" / "catalogue.sqlite").write_bytes(b"not a database" * 100)
    with LocalHub(directory / "hub") as hub:
        for n in range(4):
            spool = home / f"finished-{n}"
            with Uploader(f"user/rows-{n}", endpoint=hub.endpoint, token=hub.token, spool=spool) as up:
                up.put([{"id": n} for n in range(10 * (n + 1))])
    for lock in home.rglob("*.lock"):
        os.utime(lock, (0, 0))  # long ago
    return home


def names(shown: Any) -> list[str]:
    return [str(text) for text in shown.locator(".overview .open").all_inner_texts()]


def test_many_spools_have_an_overview_to_sort_and_filter(browse: Open, page: Page, many: Path) -> None:
    with page(HUBSYNC_HOME=str(many)) as address:
        shown = browse(address, wait=".overview tbody tr")
        assert names(shown) == ["corrupt", "user/rows", *(f"user/rows-{n}" for n in range(4))]
        assert shown.locator("article").count() == 0
        assert shown.locator(".chip").all_inner_texts() == ["All 6", "Running 0", "Needs attention 2", "Finished 4"]
        by_rows = shown.locator("th button:text-is('On the Hub')")
        by_rows.click()
        assert names(shown)[:2] == ["user/rows", "user/rows-3"]
        assert shown.locator("th[aria-sort=descending]").inner_text().startswith("On the Hub")
        by_rows.click()
        assert names(shown)[:3] == ["corrupt", "user/rows-0", "user/rows-1"]
        by_rows.click()
        assert names(shown)[0] == "corrupt"
        assert shown.locator("th[aria-sort]").count() == 0
        shown.locator(".chip", has_text="Finished").click()
        assert names(shown) == [f"user/rows-{n}" for n in range(4)]
        shown.locator("input[type=search]").fill("ROWS-2")
        assert names(shown) == ["user/rows-2"]
        shown.locator("input[type=search]").fill("no such spool")
        assert shown.locator(".overview .none").inner_text() == "No spool matches."


def test_a_spool_of_the_overview_opens_and_its_address_can_be_kept(browse: Open, page: Page, many: Path) -> None:
    with page(HUBSYNC_HOME=str(many)) as address:
        shown = browse(address, wait=".overview tbody tr")
        row = shown.locator(".open:text-is('user/rows-1')")
        row.focus()
        shown.keyboard.press("Enter")
        shown.wait_for_selector("article .plot svg")
        assert shown.locator("article h2").inner_text() == "user/rows-1"
        assert row.get_attribute("aria-expanded") == "true"
        again = browse(shown.url, wait="article .plot svg")
        assert again.locator("article h2").inner_text() == "user/rows-1"
        row.click()
        shown.wait_for_selector("article", state="detached")
        assert row.evaluate("e => e === document.activeElement")


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_the_overview_fits_and_can_be_read(browse: Open, page: Page, many: Path, width: int, scheme: str) -> None:
    with page(HUBSYNC_HOME=str(many)) as address:
        shown = browse(address, width=width, wait=".overview tbody tr", color_scheme=scheme)
        assert shown.evaluate("() => document.documentElement.scrollWidth") <= width
        found = shown.evaluate(CONTRASTS)["found"]
        assert len(found) > 30
        assert [entry for entry in found if entry[1] < 4.5] == []


def test_the_page_outlives_its_server(browse: Open, page: Page, ended: Path) -> None:
    with page(ended) as address:
        shown = browse(address)
    until(shown, "() => document.getElementById('connection').textContent.startsWith('disconnected since ')")
    assert "Disconnected" in shown.locator("[role=status]").inner_text()
    with page(ended, port=int(address.rpartition(":")[2])):
        until(shown, "() => document.getElementById('connection').textContent === 'live'")
        assert "Connected again" in shown.locator("[role=status]").inner_text()


def test_rejections_are_shown_at_the_top_and_nothing_says_that_all_went_well(
    hub: LocalHub, uploader: Callable[..., Uploader], browse: Open, page: Page, tmp_path: Path
) -> None:
    with uploader() as up:
        hub.faults.add(Fault.status(422, on="commit"))
        up.put([{"id": n} for n in range(3)])
        with contextlib.suppress(HubsyncError):
            up.flush()
        with page(tmp_path / "spool") as address:
            shown = browse(address)
            until(shown, STATE, "Rows rejected")
            assert shown.locator("header .rejected").inner_text() == "3 rows in the dead letter"
            said = shown.locator(".lead").inner_text()
            assert "Every row is on the Hub except 3 rows in the dead letter." in said
            assert "Everything else is on the Hub." in said
            assert (
                "No state changes. For rejected and lost rows, see the dead letter."
                in shown.locator(".changes").inner_text()
            )
            shown.locator(".rejected").click()
            assert shown.evaluate("() => document.activeElement.className") == "dead-letter"


def test_lost_rows_are_a_figure_of_their_own(ended: Path, browse: Open, page: Page) -> None:
    with contextlib.closing(sqlite3.connect(ended / "catalogue.sqlite", isolation_level=None)) as db:
        db.execute(
            "UPDATE segments SET lost = 1234, error = 'a file was cut' "
            "WHERE id = (SELECT max(id) FROM segments WHERE state = 'committed')"
        )
    for n in range(4):  # so that there is an overview
        shutil.copytree(ended, ended.parent / f"more-{n}")
    with page(ended, *(ended.parent / f"more-{n}" for n in range(4))) as address:
        shown = browse(address, wait=".overview tbody tr")
        heads = shown.locator(".overview th").all_inner_texts()
        assert shown.locator(".overview tbody tr").first.locator("td").nth(heads.index("Lost")).inner_text() == "1,234"
        shown.locator(".overview .open").first.click()
        shown.wait_for_selector("article .dead-letter td")
        words = "1 row in the dead letter and 1,234 lost rows"
        assert shown.locator("header .rejected").inner_text() == words
        reasons = shown.locator(".dead-letter").inner_text()
        assert words in reasons
        assert "a file was cut" in reasons


def test_words_of_a_spool_are_never_more_than_words(browse: Open, page: Page, ended: Path) -> None:
    evil = "<img src=x onerror=\"document.title='got you'\"><script>alert(1)</script>"
    with contextlib.closing(sqlite3.connect(ended / "catalogue.sqlite", isolation_level=None)) as db:
        db.execute("UPDATE segments SET error = ? WHERE state = 'dead'", (evil,))
        db.execute("UPDATE segments SET path = ? WHERE id = (SELECT min(id) FROM segments)", (f"data/{evil}",))
        target = db.execute("SELECT value FROM meta WHERE key = 'target'").fetchone()[0]
        db.execute("UPDATE meta SET value = ? WHERE key = 'target'", (target.replace("user/rows", "user/<b>rows</b>"),))
    with page(ended) as address:
        shown = browse(address)
        assert evil in shown.locator(".dead-letter").inner_text()
        assert evil in shown.locator(".shards").inner_text()
        assert shown.locator("h2").inner_text() == "user/<b>rows</b>"
        assert shown.locator("img, b, body script").count() == 0


@pytest.mark.parametrize("width", [360, 600, 1280, 1440])
def test_nothing_is_wider_than_its_card_and_no_card_than_a_small_telephone(
    browse: Open, page: Page, ended: Path, width: int
) -> None:
    (lock,) = (ended / "writers").glob("*.lock")
    (ended / "committer.lock").write_text("4194304\n")
    write_heartbeat(ended, lock.stem, Heartbeat(pid=4194304, at=time.time() - 200, since=0))  # it was killed
    shutil.copytree(ended, ended.parent / "other")
    with page(ended, ended.parent / "other") as address:
        shown = browse(address, width=width)
        assert shown.locator(".processes td").nth(1).inner_text() == "writes and commits"
        assert shown.locator(".processes td").last.inner_text() == "3 min ago, ended"
        for more in shown.locator("summary").all():
            more.click()
        shown.wait_for_selector("details table tbody tr")
        wide = shown.evaluate(
            "() => [...document.querySelectorAll('.card *')]"
            ".filter(e => e.getClientRects().length && getComputedStyle(e).clipPath === 'none')"
            ".filter(e => e.getBoundingClientRect().right > e.closest('.card').getBoundingClientRect().right)"
            ".map(e => e.outerHTML)"
        )
        assert wide == []
        assert shown.evaluate("() => document.documentElement.scrollWidth") <= width
        assert (
            max(card.bounding_box()["x"] + card.bounding_box()["width"] for card in shown.locator("article").all())
            <= width
        )


CONTRASTS = """() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => [r, g, b].map((c) => linear(c / 255))
    .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
  const ground = (e) => {
    const color = rgba(getComputedStyle(e).backgroundColor);
    return color[3] === 255 || !e.parentElement ? color : ground(e.parentElement);
  };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || e.closest('.visually-hidden, noscript, .skip, title')) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(rgba(e instanceof SVGElement ? style.fill : style.color)), light(ground(e))];
    found.push([e.textContent.trim().slice(0, 40), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]);
  }
  return { found, ground: light(ground(document.body)) };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read_in_light_and_in_the_dark(browse: Open, page: Page, ended: Path, scheme: str) -> None:
    """WCAG AA: 4.5 to 1."""
    with page(ended) as address:
        shown = browse(address, color_scheme=scheme)
        for more in shown.locator("summary").all():
            more.click()
        for tone in ("ok", "warning", "error", "idle"):
            # Whatever the state: the colours hang on one attribute.
            result = shown.evaluate(
                f"() => {{ document.querySelector('.card').dataset.tone = '{tone}'; return ({CONTRASTS})(); }}"
            )
            assert len(result["found"]) > 60
            assert [entry for entry in result["found"] if entry[1] < 4.5] == []
        assert (result["ground"] < 0.05) == (scheme == "dark")


def test_a_reader_of_screens_finds_its_way(browse: Open, page: Page, ended: Path) -> None:
    with page(ended) as address:
        shown = browse(address)
        outline = shown.evaluate("() => [...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
        assert outline.count(1) == 1
        assert all(after - before <= 1 for before, after in pairwise(outline))
        assert shown.evaluate("() => document.documentElement.lang") == "en"
        assert [shown.locator(name).count() for name in ("main", "body > header")] == [1, 1]
        unnamed = shown.evaluate(
            "() => [...document.querySelectorAll('svg')].filter(s => !(s.getAttribute('aria-hidden') === 'true'"
            " || (s.getAttribute('role') === 'img' && s.getAttribute('aria-label')))).length"
        )
        assert unnamed == 0
        labels = shown.evaluate("() => [...document.querySelectorAll('svg[role=img]')].map(s => s.ariaLabel)")
        assert any("MB/s" in label or "B/s" in label for label in labels)
        assert any(label.startswith("Commits in the last hour: ") for label in labels)
        nameless = shown.evaluate(
            "() => [...document.querySelectorAll('a,summary,input,table')].filter(e => !(e.innerText.trim()"
            " || e.labels?.[0]?.innerText || e.caption?.textContent)).length"
        )
        assert nameless == 0
        assert shown.evaluate("() => [...document.querySelectorAll('article')].every(a => document.getElementById("
                              "a.getAttribute('aria-labelledby')).textContent)")  # fmt: skip
        assert shown.evaluate("() => { const ids = [...document.querySelectorAll('[id]')].map(e => e.id);"
                              " return ids.length === new Set(ids).size; }")  # fmt: skip
        assert shown.locator("[role=status]").inner_text() == ""  # figures are not read out


def test_everything_can_be_done_by_the_keyboard(browse: Open, page: Page, ended: Path) -> None:
    with page(ended) as address:
        shown = browse(address)
        what = (
            "() => { const e = document.activeElement;"
            " return [e.tagName, e.className || e.value || e.closest('section, figure, h2')?.className || '']; }"
        )
        order, outlined = [], []
        for _ in range(30):
            shown.keyboard.press("Tab")
            order.append(shown.evaluate(what))
            if order[-1][0] == "BODY":
                break
            outlined.append(
                shown.evaluate(
                    "() => { const e = document.activeElement;"
                    " return getComputedStyle(e.tagName === 'INPUT' ? e.nextElementSibling : e).outlineStyle; }"
                )
            )
        assert order[:3] == [["A", "skip"], ["INPUT", "bytes"], ["A", ""]]
        assert [tag for tag, _ in order].count("SUMMARY") == 3
        assert [place for tag, place in order if tag == "A"][2:].count("shards") >= 3
        assert set(outlined) == {"solid"}
        shown.locator("summary").first.focus()
        shown.keyboard.press("Enter")
        shown.wait_for_selector("figure details table tbody tr")
        shown.locator("input[value=bytes]").focus()
        shown.keyboard.press("ArrowRight")
        until(shown, "() => document.querySelector('svg[role=img]').ariaLabel.includes('rows/s')")
        # The page refreshes all the time; a reader who scrolled is not moved.
        link = shown.locator(".shards a").first
        link.focus()
        for _ in range(3):
            with shown.expect_response("**/api/spools"):
                pass
        assert shown.evaluate("() => document.activeElement.href") == link.get_attribute("href")


def test_who_wants_no_movement_gets_none(browse: Open, page: Page, ended: Path) -> None:
    with page(ended) as address:
        moving = (
            "() => [...document.querySelectorAll('*')]"
            ".filter(e => getComputedStyle(e).transitionDuration !== '0s').length"
        )
        assert browse(address, reduced_motion="no-preference").evaluate(moving) > 0
        assert browse(address, reduced_motion="reduce").evaluate(moving) == 0
