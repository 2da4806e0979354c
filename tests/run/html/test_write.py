"""The page: what it says of runs, and that nothing that it shows can change it."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from attack import ATTACK
from parsed import Node, parse

from fastprune.errors import ConfigError
from fastprune.files import TEMPORARY
from fastprune.run.html.write import write_report
from fastprune.run.paths import RunPaths

COST = "Cost of one image, and latency"
RUNS = "The runs; press a heading to sort by it"


def report_of(run: Path) -> Any:
    return json.loads((run / "report.json").read_text())


def page(out: Path, *runs: Path) -> Node:
    write_report(runs, out)
    return parse(out.read_text())


@pytest.fixture(scope="module")
def both(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Node:
    """The page of all finished runs."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    return page(out, *(finished / name for name in ("gradual", "slimming", "colony")))


def test_it_says_what_the_report_has(finished: Path, tmp_path: Path) -> None:
    found = page(tmp_path / "r.html", finished / "gradual")
    report = report_of(finished / "gradual")
    before, after = (report["accuracy"][key]["top1"] for key in ("baseline", "finetuned"))
    full, small = report["cost"]["unpruned"], report["cost"]["pruned"]

    assert found.table(COST)[1] == [
        "MACs",
        f"{full['macs']:,}",
        f"{small['macs']:,}",
        f"{small['macs'] / full['macs']:.1%}",
    ]
    rows = {row[0]: row[1:] for row in found.table("Accuracy on the test images")}
    assert rows["baseline"][:2] == [f"{before:.2f}", ""]
    assert rows["fine-tuned"][:2] == [f"{after:.2f}", f"{after - before:+.2f}"]
    assert ["prune.budget.macs", "0.5"] in found.table("Options that are not the default")
    groups = {row[0]: row[3] for row in found.table("All channel groups")[1:]}
    assert groups == {name: str(kept) for name, kept in report["widths"].items()}
    for row in report["unprunable"]:
        assert [row["name"], str(row["channels"]), row["reason"]] in found.table("Not prunable")
    assert report["command"] in [node.text for node in found.all("pre")]
    (heading,) = found.all("h1")
    assert heading.text == "gradual"


def test_every_method_has_its_own_sections(both: Node) -> None:
    headings = {
        section.attributes["id"]: [part.text for part in section.all("h3")]
        for section in both.all("section")
        if section.attributes.get("class") == "run"
    }
    always = ["What was reached", "What was asked", "Channels"]

    assert headings["run-gradual"] == [
        *always,
        "Training",
        "What the method noted",
        "Repeating it",
    ]
    assert headings["run-slimming"][3:5] == ["Sparsity", "Training"]
    assert headings["run-colony"][3:5] == ["Search", "Training"]


def test_runs_stand_side_by_side_and_what_differs_in_them(both: Node, finished: Path) -> None:
    head, *rows = both.table(RUNS)

    assert [row[0] for row in rows] == ["gradual", "slimming", "colony"]
    for row in rows:
        cells = dict(zip([name.strip() for name in head], row, strict=True))
        report = report_of(finished / row[0])
        assert cells["state"] == "finished"
        assert cells["top-1, %"] == f"{report['accuracy']['finetuned']['top1']:.2f}"
        assert cells["MACs kept"] == f"{report['cost']['kept']['macs']:.1%}"
    (caption,) = (c.text for c in both.all("caption") if c.text.startswith("Options in which"))
    assert ["method.name", "one_shot", "slimming", "abc"] in both.table(caption)


def test_the_page_is_whole_by_itself(both: Node) -> None:
    names = [node.attributes["id"] for node in both.all() if "id" in node.attributes]
    links = [node.attributes["href"] for node in both.all("a")]

    assert len(set(names)) == len(names)
    assert links
    assert {link.removeprefix("#") for link in links} <= set(names)
    assert not both.all("img", "link", "iframe", "object", "base", "form")
    for node in both.all():
        for key, value in node.attributes.items():
            assert not key.startswith("on")
            if key in ("src", "href", "xlink:href", "action", "srcset"):
                assert value.startswith(("#", "data:image/png"))
    (style,) = both.all("style")
    assert "url(" not in style.text
    assert "@import" not in style.text
    (script,) = both.all("script")
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    (policy,) = (
        m.attributes["content"]
        for m in both.all("meta")
        if "content" in m.attributes and "default-src" in m.attributes["content"]
    )
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in policy


def test_figures_and_tables_can_be_read_without_seeing_them(both: Node) -> None:
    figures = both.all("figure")

    assert len(figures) >= 8
    for figure in figures:
        (svg,) = figure.all("svg")
        assert svg.attributes["role"] == "img"
        assert len(svg.attributes["aria-label"]) > 20
        assert figure.all("figcaption")[0].text
    for table in both.all("table"):
        assert table.all("caption")[0].text
        head, *rows = table.all("tr")
        assert {cell.attributes["scope"] for cell in head.all("th", "td")} == {"col"}
        for row in rows:
            assert [c.attributes["scope"] for c in row.all("th")] == ["row"]
    (language,) = both.all("html")
    assert language.attributes["lang"] == "en"
    levels = [int(node.tag[1]) for node in both.all("h1", "h2", "h3")]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_no_name_is_ever_markup(hostile: Path, finished: Path, tmp_path: Path) -> None:
    alone = page(tmp_path / "alone.html", hostile)
    beside = page(tmp_path / "beside.html", hostile, finished / "gradual")

    for found in (alone, beside):
        assert len(found.all("script")) == 1
        assert not found.all("img", "b")
        for node in found.all():
            assert not any(key.startswith("on") for key in node.attributes)
    assert alone.all("h1")[0].text == hostile.name
    shown = [row[0] for row in alone.table("All channel groups")[1:]]
    assert shown == [ATTACK, "$x^2$" + ATTACK]
    assert [ATTACK, ATTACK] in alone.table("What it ran on")
    assert ATTACK[:24] in [row[1] for row in alone.table("Test accuracy of every class")]
    assert beside.table(RUNS)[1][0] == hostile.name
    # In pictures names are cut short, and no formula is made of them.
    words = [node.text for node in alone.all("text")]
    assert any(word.startswith("<script>alert(1)") for word in words)
    assert any(word.startswith("$x^2$<script>") for word in words)


def test_an_unfinished_run_is_reported_as_far_as_it_is(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished / "gradual", run)
    for stage in ("prune", "finetune", "report"):
        RunPaths(run).record_file(stage).unlink()
    (run / "report.html").unlink()
    written = write_report([run])
    found = parse(written.page.read_text())

    assert written.notes == (f"{run}: not finished, prune is next; reported as far as it is",)
    (warning,) = (n.text for n in found.all("p") if n.attributes.get("class") == "warning")
    assert f"prune is next. It goes on by: fastprune run {run}/config.yaml" in warning
    assert found.table(COST)[1] == ["MACs", "87,632", "", ""]
    assert found.table("The narrowest groups")[1:]
    beside = page(tmp_path / "all.html", run, finished / "gradual")
    assert [row[1] for row in beside.table(RUNS)[1:]] == ["prune is next", "finished"]


def test_where_it_goes_and_what_is_left_out(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [finished / "gradual", tmp_path / "none", finished / "colony", finished / "gradual/."]
    written = write_report(runs)

    assert written.page == Path("report.html")
    assert written.notes == (
        f"left out: {tmp_path}/none: there is no such folder; expected a run directory",
    )
    found = parse(written.page.read_text())
    assert [row[0] for row in found.table(RUNS)[1:]] == ["gradual", "colony"]
    assert write_report([finished / "gradual"], Path("deep/er/one.html")).page.is_file()
    assert not list(tmp_path.rglob(f"{TEMPORARY}*"))


def test_runs_of_one_name_are_told_apart(finished: Path, tmp_path: Path) -> None:
    for folder in "ab":
        shutil.copytree(finished / "gradual", tmp_path / folder / "run")
    found = page(tmp_path / "r.html", tmp_path / "a/run", tmp_path / "b/run")

    assert [row[0] for row in found.table(RUNS)[1:]] == ["a/run", "b/run"]
    assert {"run-a-run", "run-b-run"} <= {n.attributes.get("id") for n in found.all("section")}


def test_the_same_runs_give_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_report([finished / "slimming"], tmp_path / name)

    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_what_cannot_be_reported_or_written_is_refused_and_leaves_nothing(
    finished: Path, tmp_path: Path
) -> None:
    run = finished / "gradual"
    with pytest.raises(ConfigError, match=f"--out {re.escape(str(tmp_path))}: is a folder"):
        write_report([run], tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file: cannot write there"):
        write_report([run], tmp_path / "file/report.html")
    with pytest.raises(ConfigError, match="file: cannot write there"):
        write_report([run], tmp_path / "r.html", tmp_path / "file")
    with pytest.raises(ConfigError) as refused:
        write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "r.html")
    assert [line.split(": ")[1] for line in refused.value.problems] == [
        f"{tmp_path}/{name}" for name in "ab"
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
