import io

from rich.console import Console

from ecrec.launch.groups import Groups
from ecrec.train.progress import LiveProgress, PlainProgress, QuietProgress, make_progress, summary

KILL = {
    "shard": 2,
    "step": 20,
    "detect_s": 0.25,
    "first_row_s": 0.5,
    "whole_s": 3.0,
    "throughput_before": 1000.0,
    "throughput_during": 900.4,
    "throughput_after": None,
    "longest_pause_s": 0.8,
}
REPORT = {
    "steps": 30,
    "examples": 61440,
    "seconds": 12.5,
    "examples_per_s": 4915.2,
    "auc": 0.75,
    "logloss": 0.5,
    "model_digest": "abc",
    "lost_updates": 0,
    "kills": [KILL],
    "kills_not_done": ["ps:1@99"],
    "parity_ok": True,
    "stripes_scrubbed": 12345,
}


def console(terminal=False):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120)


def test_lines_where_there_is_no_terminal():
    out = console()
    with make_progress(out, 3, quiet=False) as view:
        assert isinstance(view, PlainProgress)
        view.health({0: "up", 1: "up"})
        view.step(1, 100, 0.7)
        view.step(2, 100, 0.6)
        view.health({0: "up", 1: "down"})
        view.step(3, 100, 0.5)
    lines = out.file.getvalue().splitlines()
    assert lines[0].startswith("step 1/3  loss 0.7000")
    assert lines[1] == "shard 1: down"
    assert lines[2].startswith("step 3/3  loss 0.5000")
    assert len(lines) == 3


def test_a_bar_and_the_health_of_shards_in_a_terminal():
    out = console(terminal=True)
    with make_progress(out, 30, quiet=False) as view:
        assert isinstance(view, LiveProgress)
        view.health({0: "up", 1: "recovering"})
        view.step(7, 2048, 0.5)
        view.say("hello")
    text = out.file.getvalue()
    for words in ("7/30", "ps 1", "recovering", "examples/s", "hello"):
        assert words in text


def test_several_groups_have_a_line_each():
    out = console(terminal=True)
    with make_progress(out, 30, quiet=False, groups=Groups(2, 16)) as view:
        view.health(dict.fromkeys(range(32), "up"))
    text = out.file.getvalue()
    assert "group 0:" in text and "group 1:" in text
    assert all(f"ps {shard} " in text for shard in range(32))


def test_quiet_says_nothing():
    out = console()
    with make_progress(out, None, quiet=True) as view:
        assert isinstance(view, QuietProgress)
        view.say("hello")
        view.step(1, 1, 1.0)
        view.health({0: "up"})
    assert out.file.getvalue() == ""


def test_the_summary_tells_each_kill_and_what_was_not_done():
    out = console()
    out.print(summary(REPORT))
    text = " ".join(out.file.getvalue().split())
    for words in ("kill ps 2 at step 20", "0.25 s", "1,000 / 900 / -", "ps:1@99", "12,345 stripes", "0.7500"):
        assert words in text


def test_without_parity_the_summary_says_so():
    out = console()
    out.print(summary({**REPORT, "parity_ok": None, "kills": [{**KILL, "first_row_s": None}]}))
    assert "no parity to compare" in out.file.getvalue()
    assert "never" in out.file.getvalue()
