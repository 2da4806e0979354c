"""The figures and tables of a report as files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

from parsed import parse
from PIL import Image

from fastprune.run.html.write import write_report


def test_every_table_and_figure_of_the_page_is_there_in_both_kinds(
    finished: Path, tmp_path: Path
) -> None:
    runs = [finished / "gradual", finished / "colony"]
    written = write_report(runs, tmp_path / "r.html", tmp_path / "files")
    page = parse((tmp_path / "r.html").read_text())

    kinds = {
        kind: list((tmp_path / "files").rglob(f"*.{kind}"))
        for kind in ("csv", "json", "png", "svg")
    }
    assert len(kinds["csv"]) == len(kinds["json"]) == len(page.all("table"))
    assert len(kinds["png"]) == len(kinds["svg"]) == len(page.all("figure"))
    assert sorted(written.files) == sorted(file for files in kinds.values() for file in files)
    assert {file.name for file in (tmp_path / "files").iterdir()} >= {"gradual", "colony"}
    for file in kinds["png"]:
        with Image.open(file) as image:
            image.load()
            assert min(image.size) > 100
    for file in kinds["svg"]:
        assert ElementTree.parse(file).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_values_are_whole_and_the_same_in_both(finished: Path, tmp_path: Path) -> None:
    write_report([finished / "colony"], tmp_path / "r.html", tmp_path / "files")
    report = json.loads((finished / "colony/report.json").read_text())
    for file in (tmp_path / "files").glob("*.csv"):
        rows = list(csv.reader(file.read_text().splitlines()))
        content = json.loads(file.with_suffix(".json").read_text())

        assert content["caption"]
        values = [["" if v is None else str(v) for v in row.values()] for row in content["rows"]]
        assert rows[1:] == values
        assert not content["rows"] or rows[0] == list(content["rows"][0])
    cost = json.loads((tmp_path / "files/cost.json").read_text())["rows"]
    assert cost[0]["pruned"] == report["cost"]["pruned"]["macs"]
    front = json.loads((tmp_path / "files/front.json").read_text())["rows"]
    best = max(front, key=lambda row: row["fitness"])
    assert best["fitness"] == report["notes"]["fitness"]
