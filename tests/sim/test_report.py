"""The page of a simulation: it needs nothing else, says who won and who missed, and draws every course to its scale."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from zoneinfo import ZoneInfo

import pytest

from fleetd.sim.charts import COLUMNS, HEIGHT, LEFT, Chart, Mark, Shape, Times, draw, scale, thin
from fleetd.sim.report import About, duration, page
from fleetd.sim.result import QueueResult, Result, Series
from fleetd.sim.verdict import best, best_peer, late_allowed, meets, percent, sentence

BERLIN = ZoneInfo("Europe/Berlin")
ALLOWED = {"resize": 0.05}
ABOUT = About("shop", "jobs.csv.gz", 7, "24 November 2026", 72.0, ALLOWED, {"resize": 30.0}, {"cloud": 1}, "EUR")


def series(steps: int = 100, **changes: object) -> Series:
    level = tuple(at % 7 for at in range(steps))
    made = Series(
        10.0,
        waiting=level,
        running=level,
        ready={"cloud": level},
        coming={"cloud": tuple(int(at % 5 == 0) for at in range(steps))},
        wait_p95_s=tuple(float(at) for at in level),
        money=(0.25,) * steps,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def result(policy: str = "fleetd", cost: float = 100.0, late: float = 0.03, **changes: object) -> Result:
    made = Result(
        policy, cost * 3600.0, cost, late, 0.5, 12.0, 41.0, 10, 9, 2, 1000, 0, 80.0 * 3600.0, cost / 80.0,
        queues={"resize": QueueResult(1000, late, 12.0, 30.0)}, series=series(),
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


# ── the verdict


def test_the_sentence_compares_with_the_cheapest_peer_that_met_the_objective():
    results = [result(), result("keda", 116.3), result("dask", 90.0, late=0.2), result("step", 150.0)]
    assert sentence(results, ALLOWED) == (
        "On this trace fleetd would have cost 1.25 of the optimum, 14 % less than keda, "
        "with 3 % of jobs late (allowed 5 %)."
    )
    assert best(results, ALLOWED) is results[0]
    assert best_peer(results, ALLOWED) is results[1]


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([result(cost_over_bound=None)], "would have cost 100.00 EUR, with 3 % of jobs late"),
        ([result(cost_over_bound=None, cost_money=0.0)], "would have cost 100.0 worker-hours, with"),
        ([result(), result("keda", 90.0)], ", 11 % more than keda, with"),
        ([result(), result("keda", 100.2)], ", as much as keda, with"),
        ([result(), result("keda", 90.0, late=0.5)], ", where no peer met the objective, with"),
        ([result(late=0.06)], "with 6 % of jobs late (allowed 5 %): it missed the objective."),
        ([result(lost=2)], "(allowed 5 %): it missed the objective: 2 jobs were never started."),
    ],
)
def test_the_sentence_says_what_is_known_and_no_more(results, said):
    assert said in sentence(results, ALLOWED, "EUR")


def test_a_policy_is_held_to_each_queues_own_share():
    """Two queues: on the whole few are late, in one too many."""
    queues = {"resize": QueueResult(900, 0.01, 5.0, 30.0), "mail": QueueResult(100, 0.2, 90.0, 60.0)}
    one = result(late=0.029, queues=queues)
    assert not meets(one, {"resize": 0.05, "mail": 0.1})
    assert meets(one, {"resize": 0.05, "mail": 0.2})
    assert late_allowed(one, {"resize": 0.05, "mail": 0.1}) == pytest.approx(0.055)
    assert "it missed the objective: too many late in mail." in sentence([one], {"resize": 0.05, "mail": 0.1})


def test_a_policy_that_left_jobs_unstarted_never_wins():
    results = [result(), result("keda", 10.0, late=0.0, lost=1)]
    assert best(results, ALLOWED) is results[0]


def test_the_bound_is_measured_against_and_never_wins():
    results = [result(), result("optimal", 80.0, late=0.0)]
    assert best(results, ALLOWED) is results[0]
    assert best_peer(results, ALLOWED) is None


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (0.05, "5 %"), (0.0312, "3.1 %"), (0.0004, "0.04 %"), (0.1381, "13.8 %"), (1.0, "100 %")],
)
def test_shares_are_written_as_people_do(share, text):
    assert percent(share) == text


@pytest.mark.parametrize(
    ("value_s", "text"),
    [
        (0.0, "0 s"),
        (0.44, "0.4 s"),
        (28.3, "28 s"),
        (119.0, "119 s"),
        (270.0, "4.5 min"),
        (7200.0, "2 h"),
        (9000.0, "2.5 h"),
    ],
)
def test_waits_are_written_as_people_do(value_s, text):
    assert duration(value_s) == text


# ── the page


class Reader(HTMLParser):
    """Follows the tags of a page, and fails where they do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[tuple[str, list[str]]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append((dict(attrs).get("class") or "", []))
        if tag in ("td", "th"):
            self.rows[-1][1].append("")
        if tag not in ("meta", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][1][-1] += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def test_the_page_needs_nothing_else():
    text = page(ABOUT, [result(), result("keda", 120.0)])
    reader = read(text)
    assert {tag for tag, _ in reader.tags} & {"script", "link", "img", "iframe", "object", "use", "image"} == set()
    assert not [name for _, attrs in reader.tags for name in attrs if name in ("src", "href") or name.startswith("on")]
    assert re.search(r"https?:|url\(|@import", text) is None
    assert text == page(ABOUT, [result(), result("keda", 120.0)]), "the same results give the same page"


def test_the_table_marks_the_best_and_who_missed():
    results = [result(), result("keda", 120.0), result("dask", 90.0, late=0.138), result("optimal", 80.0, series=None)]
    rows = {cells[0]: (kind, cells) for kind, cells in read(page(ABOUT, results)).rows}
    assert rows["fleetd"][0] == "ours best"
    assert rows["fleetd"][1] == [
        "fleetd", "100.0", "100.00", "1.25", "3 %", "0.5 s", "12 s", "41 s", "10", "9", "2", "0",
    ]  # fmt: skip
    assert rows["keda"][0] == ""
    assert (rows["dask"][0], rows["dask"][1][4]) == ("missed", "13.8 %")
    assert rows["optimal"] == ("bound", ["optimal", "80.0", "80.00", "1.00", *[""] * 8])


def test_the_page_says_what_was_simulated():
    text = page(replace(ABOUT, notes=("boots are guessed",)), [result(notes=("cloud never came up",))])
    for said in ("Fleet shop", "jobs.csv.gz", "1,000 jobs over 72 hours, seed 7, 24 November 2026", "boots are guessed",
                 "fleetd: cloud never came up", "cost, EUR"):  # fmt: skip
        assert said in text


def test_names_are_escaped():
    name = '<b>&"'
    text = page(replace(ABOUT, fleet=name, trace=name, slots={name: 1}), [
        result(series=series(ready={name: (1,)}, coming={name: (1,)})), result(name, 120.0),
    ])  # fmt: skip
    assert name not in text
    assert text.count("&lt;b&gt;&amp;") >= 5
    read(text)


def test_a_page_without_courses_has_the_table_alone():
    text = page(ABOUT, [result(series=None)])
    assert "<svg" not in text
    assert "The policies compared" in text


def test_several_queues_have_a_table_of_their_own():
    queues = {"resize": QueueResult(900, 0.01, 5.0, 30.0), "mail": QueueResult(100, 0.2, 90.0, 60.0)}
    about = replace(ABOUT, allowed={"resize": 0.05, "mail": 0.1}, wait_s={"resize": 30.0, "mail": 60.0})
    rows = read(page(about, [result(queues=queues)])).rows
    assert ("missed", ["mail", "100", "60 s", "20 %", "10 %", "90 s"]) in rows
    assert ("", ["resize", "900", "30 s", "1 %", "5 %", "5 s"]) in rows


def test_a_long_course_makes_no_long_page():
    many = series(60_000)
    assert len(page(ABOUT, [result(series=many), result("keda", 120.0, series=many)])) < 400_000


# ── charts


def path(text: str, kind: str) -> list[tuple[float, float]]:
    """The corners of a path of this class."""
    (moves,) = re.findall(rf'<path class="{kind}" d="([^"]*)"', text)
    points, x, y = [], 0.0, 0.0
    for command, numbers in re.findall(r"([MHVZ])([^MHVZ]*)", moves):
        values = [float(number) for number in numbers.split()]
        x = values[0] if command in "MH" else x
        y = values[-1] if command in "MV" else y
        points.append((x, y))
    return points


def test_a_line_is_a_stair_through_its_values():
    text = draw(Chart("x", Times(0.0, 60.0), lines=[Shape("a", "ours", (0.0, 4.0, 4.0, 2.0))]))
    points = path(text, "line ours")
    quarter = COLUMNS / 4
    bottom, top = points[0][1], min(y for _, y in points)
    half = pytest.approx((bottom + top) / 2, abs=0.1)
    stair = [
        (LEFT, bottom),
        (LEFT + quarter, bottom),
        (LEFT + quarter, top),
        (LEFT + 3 * quarter, top),
        (LEFT + 3 * quarter, half),
        (LEFT + COLUMNS, half),
    ]
    assert list(dict.fromkeys(points)) == stair


def test_what_is_highest_stays_visible_in_a_long_course():
    values = [0.0] * 50_000
    values[31_234] = 9.0
    assert max(thin(Shape("a", "x", values, "highest"), 50_000)) == 9.0
    assert max(thin(Shape("a", "x", values, "mean"), 50_000)) < 1.0
    assert thin(Shape("a", "x", range(50_000), "last"), 50_000)[-1] == 49_999


def test_a_course_that_ends_earlier_keeps_to_the_same_clock():
    """Seen to fail with each line stretched over the whole width."""
    lines = [Shape("a", "ours", (1.0,) * 5000), Shape("b", "peer", (1.0,) * 2500)]
    text = draw(Chart("x", Times(0.0, 1.0), lines=lines))
    assert path(text, "line ours")[-1][0] == LEFT + COLUMNS
    assert path(text, "line peer")[-1][0] == pytest.approx(LEFT + COLUMNS / 2, abs=1.0)


def test_areas_are_stacked():
    areas = [Shape("a", "n0", (1.0, 1.0)), Shape("b", "n1", (3.0, 3.0))]
    text = draw(Chart("x", Times(0.0, 1.0), areas=areas))
    low, high = path(text, "area n0"), path(text, "area n1")
    bottom = max(y for _, y in low)
    assert max(y for _, y in high) == pytest.approx(min(y for _, y in low), abs=0.1)
    assert bottom - min(y for _, y in high) == pytest.approx(4 * (bottom - min(y for _, y in low)), abs=0.5)


def test_a_chart_that_is_cut_says_how_high_it_went():
    lines = [Shape("a", "ours", (1.0, 5000.0))]
    text = draw(Chart("x", Times(0.0, 1.0), lines=lines, mark=Mark("objective 30 s", 30.0), top=90.0, write=duration))
    assert "cut: highest 83.3 min" in text
    assert ">objective 30 s</text>" in text
    assert min(y for _, y in path(text, "line ours")) >= 0


@pytest.mark.parametrize(
    ("times", "count", "labels"),
    [
        (Times(0.0, 60.0), 60, ["0 min", "10 min", "20 min", "30 min", "40 min", "50 min", "60 min"]),
        (Times(0.0, 3600.0), 72, ["0 h", "12 h", "24 h", "36 h", "48 h", "60 h", "72 h"]),
        (Times(0.0, 3600.0), 240, [f"day {at}" for at in range(11)]),
        (Times(1795500000.0, 3600.0, BERLIN), 36, [f"{day} {hour:02}:00" for day, hour in zip(
            ("Tue", "Tue", "Wed", "Wed", "Wed", "Wed"), (12, 18, 0, 6, 12, 18), strict=True)]),
    ],
)  # fmt: skip
def test_the_clock_has_round_labels(times, count, labels):
    text = draw(Chart("x", times, lines=[Shape("a", "ours", (1.0,) * count)]))
    assert re.findall(rf'y="{HEIGHT - 8}">([^<]*)<', text) == labels


@pytest.mark.parametrize(("peak", "top"), [(0.0, 1.0), (4.0, 4.16), (104.0, 150.0), (0.003, 0.00312), (1e9, 1.04e9)])
def test_an_axis_ends_above_its_peak_at_round_steps(peak, top):
    found, steps = scale(peak)
    assert found == pytest.approx(top)
    assert found >= peak
    assert 2 <= len(steps) <= 6


def test_a_chart_of_nothing_says_so():
    assert "nothing was recorded" in draw(Chart("x", Times(0.0, 1.0)))
    assert "<svg" in draw(Chart("x", Times(0.0, 1.0), lines=[Shape("a", "ours", (0.0,))]))
